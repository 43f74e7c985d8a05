"""Groups of denoising queries: which objects stand in them, and who sees whom."""

from __future__ import annotations

import dataclasses

from detr_distill.structures import Memory, QueryGroup

import pytest
import torch
from helpers.builders import make_inputs
from helpers.detr.denoising_detectors import QUIET, VARIANTS, begin_step, build, every_variant, make_group, make_targets
from torch import Tensor


def test_repeated_objects_stand_side_by_side():
    targets = make_targets([[0.1] * 4, [0.2] * 4], [[0.3] * 4])
    repeated = targets.repeat(3)
    assert repeated.counts == [6, 3]
    assert repeated.labels.tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]]
    assert repeated.valid.tolist() == [[True] * 6, [True] * 3 + [False] * 3]
    assert repeated.boxes[0, :, 0].tolist() == pytest.approx([0.1] * 3 + [0.2] * 3)


def test_every_object_stands_in_every_group():
    group = make_group("DenoisingQueries", make_targets([[0.2] * 4, [0.4] * 4], [[0.6] * 4]), **QUIET)
    assert group.name == "denoising" and group.sees == ("own",) and group.targets.counts == [6, 3]
    assert torch.allclose(group.position.sigmoid()[0, :, 0], torch.tensor([0.2] * 3 + [0.4] * 3), atol=1e-6)
    assert (group.content[..., -1] == 1).all(), "the mark of a denoising query"
    assert group.padding.tolist() == [[False] * 6, [False] * 3 + [True] * 3]
    assert group.pairs.weight.tolist() == [[[1] * 6, [1] * 3 + [0] * 3]]
    # Queries 0 and 3 are the two objects of the first group.
    assert group.inner_mask.tolist() == [[(a - b) % 3 != 0 for b in range(6)] for a in range(6)]


@pytest.mark.parametrize(("objects", "groups"), [(1, 9), (2, 4), (4, 2), (9, 1), (30, 1)])
def test_number_of_contrastive_groups(objects, groups):
    group = make_group("ContrastiveDenoisingQueries", make_targets([[0.5] * 4] * objects, []))
    assert group.content.shape[1] == 2 * objects * groups and group.targets.counts == [objects * groups, 0]
    assert (~group.inner_mask[0]).sum() == 2 * objects, "a group has the objects twice"
    assert group.pairs.query.shape[-1] == objects * groups, "negative queries have no object"


def test_own_queries_of_dn_detr():
    shared, marked = (
        build(name).queries(Memory(torch.zeros(2, 1, 1), None, None, [])) for name in VARIANTS if "dn" in name
    )
    for own in (shared, marked):
        assert (own.content[..., -1] == 0).all() and own.content.shape[:2] == own.position.shape[:2] == (2, 7)
    assert torch.equal(shared.content[:, :1].expand_as(shared.content), shared.content)
    assert not torch.equal(marked.content[:, 0], marked.content[:, 1])


@torch.no_grad()
@every_variant
def test_isolation(variant):
    model = build(variant).eval()
    memory, _, (own, noised) = begin_step(model, make_inputs(counts=(2, 3)))
    alone = model.decode(memory, [own])["own"]
    before = model.decode(memory, [own, noised])
    assert torch.allclose(alone.logits, before["own"].logits, atol=1e-5)
    assert torch.allclose(alone.boxes, before["own"].boxes, atol=1e-5)

    def effect(group: QueryGroup, name: str) -> Tensor:
        """(B, Q): the largest change of each query's hidden states."""
        groups = {"own": own, "denoising": noised, group.name: group}
        after = model.decode(memory, list(groups.values()))[name]
        return (after.hidden - before[name].hidden).abs().amax((0, -1))

    def change(group: QueryGroup, image: int, query: int) -> QueryGroup:
        content = group.content.clone()
        content[image, query] += 1
        return dataclasses.replace(group, content=content)

    changed = effect(change(noised, 1, 0), "denoising")
    same_group = ~noised.inner_mask[0]
    assert changed[0].max() == 0 and changed[1][~same_group].max() < 1e-5
    assert changed[1][same_group].min() > 1e-4, "a group's queries see each other"
    assert effect(change(noised, 1, 0), "own").max() < 1e-5
    padded = int(noised.padding[0].float().argmax())
    changed = effect(change(noised, 0, padded), "denoising")
    assert changed[0, padded] > 1e-4
    changed[0, padded] = 0
    assert changed.max() < 1e-5, "nothing sees padding"
    changed = effect(change(own, 0, 0), "denoising")
    assert changed[0].min() > 1e-5 and changed[1].max() == 0, "denoising queries see the detector's own"


@torch.no_grad()
@every_variant
def test_an_image_does_not_notice_how_many_objects_its_neighbour_has(variant):
    """Without noise, whose numbers depend on the batch; the first group's queries."""
    model = build(variant, **QUIET).eval()
    outputs = []
    for count in (1, 6):
        inputs = make_inputs(sizes=((48, 48), (48, 48)), counts=(2, count))
        inputs[0] = make_inputs(sizes=((48, 48),), counts=(2,))[0]
        memory, _, groups = begin_step(model, inputs)
        output = model.decode(memory, groups)["denoising"]
        (group,) = [group for group in groups if group.name == "denoising"]
        first = ~group.inner_mask[0] & ~group.padding[0]
        outputs.append(output.logits[:, 0, first])
    assert torch.allclose(*outputs, atol=1e-5)
