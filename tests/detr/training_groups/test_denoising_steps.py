"""Denoising queries in a step: no read of the device, its own noise, other groups beside them, none at inference."""

from __future__ import annotations

from detr_distill.errors import ConfigError
from detr_distill.randomness import seed_step

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs, small_cfg
from helpers.detr.denoising_detectors import DN, VARIANTS, begin_step, build, every_variant
from helpers.host_reads import host_reads
from torch import Tensor


@every_variant
def test_queries_are_made_without_reading_the_device(variant, inputs):
    model = build(variant).train()
    with host_reads() as reads:
        begin_step(model, inputs)
    assert reads == []


@every_variant
def test_noise_follows_from_the_step(variant, inputs):
    """As a resumed run draws it, see engine/randomness.py."""
    model = build(variant).train()

    def noise(iteration: int) -> tuple[Tensor, Tensor]:
        seed_step(3, 0, iteration, part=1)
        group = begin_step(model, inputs)[2][1]
        return group.position, group.content

    first, again, other = noise(7), noise(7), noise(8)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@every_variant
def test_nothing_is_denoised_at_inference(variant):
    model = build(variant).eval()
    plain = build_model(small_cfg(**{**VARIANTS[variant], "MODEL__DETR__TRAINING_GROUPS": []})).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "training_groups" not in k})
    (maker,) = model.training_groups.values()
    maker.register_forward_pre_hook(lambda *_: pytest.fail("denoising queries at inference"))
    with torch.no_grad():
        for a, b in zip(model(make_inputs(labels=False)), plain(make_inputs(labels=False)), strict=True):
            assert torch.equal(a["instances"].scores, b["instances"].scores)


@every_variant
def test_other_training_groups_stand_beside_it(variant, inputs):
    makers = ["GroupQueries", "HybridQueries", *VARIANTS[variant]["MODEL__DETR__TRAINING_GROUPS"]]
    keys = {
        "MODEL__DETR__TRAINING_GROUPS": makers,
        "MODEL__DETR__GROUP_QUERIES__NUM_GROUPS": 2,
        "MODEL__DETR__HYBRID_QUERIES__NUM_QUERIES": 5,
        "MODEL__DETR__HYBRID_QUERIES__REPEATS": 2,
    }
    model = build(variant, **keys).train()
    memory, _, groups = begin_step(model, inputs)
    assert [group.name for group in groups] == ["own", "group_1", "hybrid", "denoising"]
    together = model.decode(memory, groups)
    pair = model.decode(memory, [groups[0], groups[3]])
    for name in ("own", "denoising"):
        assert torch.allclose(pair[name].logits, together[name].logits, atol=1e-5)
    losses = model(inputs)
    assert {"loss_class_denoising", "loss_class_group_1", "loss_class_hybrid"} <= set(losses)
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"MODEL__DETR__TRAINING_GROUPS": ["DenoisingQueries"]}, "names DenoisingQueries.*LearnedQueries"),
        ({**DN, "MODEL__DETR__DENOISING__NUM_GROUPS": 0}, "DENOISING.NUM_GROUPS is 0"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_in_words(keys, message):
    with pytest.raises(ConfigError, match=message):
        build_model(small_cfg(**keys))
