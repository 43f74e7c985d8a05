"""Queries and keys that decoders hand over in place of attention maps."""

from __future__ import annotations

from detr_distill.structures import CROSS_ATTENTION, FACTORS, SELF_ATTENTION, AttentionFactors, QueryGroup

import pytest
import torch
from helpers.builders import make_inputs
from helpers.distill.families import NAMES, detector

NAMES_WITH_FACTORS = [name for name in NAMES if detector(name).decoder.captures & set(FACTORS.values())]


@pytest.mark.parametrize("name", NAMES_WITH_FACTORS)
def test_factors_make_the_maps(name):
    """Of padded images, a group beside that masks its own, and with both asked for, maps."""
    model = detector(name).eval()
    started = model.start(make_inputs(sizes=((40, 56), (64, 72)), counts=(1, 1), labels=False))
    memory = model.finish(started).memory
    own = model.finish(started).groups[0]
    other = QueryGroup("other", own.content[:, :4], own.position[:, :4], inner_mask=~torch.eye(4, dtype=torch.bool))
    kept = {
        SELF_ATTENTION: ("self_attention", "self_factors"),
        CROSS_ATTENTION: ("cross_attention", "cross_factors"),
    }
    given = [word for word in FACTORS if FACTORS[word] in model.decoder.captures]
    maps, factors, both = (
        model.decode(memory, [own, other], frozenset(words))
        for words in (given, [FACTORS[word] for word in given], given + [FACTORS[word] for word in given])
    )
    for group in ("own", "other"):
        assert torch.allclose(maps[group].logits, factors[group].logits, atol=1e-5)
        for word in given:
            map_field, factor_field = kept[word]
            found = vars(factors[group])[factor_field]
            assert vars(factors[group])[map_field] is None and vars(both[group])[factor_field] is None
            assert all(isinstance(layer, AttentionFactors) for layer in found)
            for goal, layer, again in zip(
                vars(maps[group])[map_field], found, vars(both[group])[map_field], strict=True
            ):
                assert torch.allclose(layer.map(), goal, atol=1e-6) and torch.equal(goal, again)
            first = vars(factors[group].select(slice(1, None)))[factor_field][0]
            assert torch.allclose(first.map(), found[0].map()[1:], atol=1e-6)


def test_decoders_that_multiply_queries_and_keys_alone_hand_them_over():
    names = {name.partition("/")[0] for name in NAMES_WITH_FACTORS}
    assert {"DetrDecoder", "ConditionalDecoder", "DabDecoder", "DeformableDecoder", "DinoDecoder"} <= names
    assert "AdaMixerDecoder" not in names, "its self-attention has a bias"
