"""FGD and MGD against values computed by hand."""

from __future__ import annotations

from detr_distill.distill.losses.focal_global import ContextBlock, FocalGlobalLoss, find_attention, inverse_areas
from detr_distill.distill.losses.masked_generation import MaskedGenerationLoss
from detr_distill.errors import ConfigError
from detr_distill.structures import GroundTruth

import pytest
import torch
from helpers.builders import randomise
from helpers.feature_maps import levels, map_pairs, random_maps, run
from torch import nn

NO_WEIGHT = dict.fromkeys(("object_weight", "background_weight", "attention_weight", "relation_weight"), 0.0)


def focal(**options) -> FocalGlobalLoss:
    return randomise(FocalGlobalLoss(**{"pairs": map_pairs(), **options}))


def test_attention_of_fgd_by_hand():
    values = torch.tensor([[[[2.0, -2.0]], [[0.0, -3.0]]]])  # means over channels 1 and 2.5, over places 2 and 1.5
    space, channels = find_attention(values, 0.5)
    assert torch.allclose(space, 2 * torch.tensor([[[2.0, 5.0]]]).softmax(-1))
    assert torch.allclose(channels, 2 * torch.tensor([[4.0, 3.0]]).softmax(-1))


def objects(*corners, padding=0) -> GroundTruth:
    """Those of one image, by corners in pixels; ``padding`` more at its origin, which are none."""
    count = len(corners)
    corners = torch.tensor([[*corners, *[[0.0] * 4] * padding]])
    valid = GroundTruth.count_valid([count], count + padding)
    return GroundTruth(torch.zeros(valid.shape, dtype=torch.long), torch.zeros_like(corners), valid, [count], corners)


def test_masks_of_fgd_by_hand():
    truth = objects([0.0, 0, 31, 31], [17, 17, 23, 23], padding=1)
    found = inverse_areas(truth, (32, 32), (4, 4))[0]
    expected = torch.full((4, 4), 1 / 16)
    expected[2:, 2:] = 1 / 4  # from the cell of its corner, 2, to the corner rounded up, 3
    assert torch.allclose(found, expected), "the smaller object counts; padding owns no cell"
    small = inverse_areas(objects([9.0, 9, 10, 10]), (32, 32), (2, 2))
    assert small[0, 0, 0] > 0, "an object smaller than a cell has one"


def test_masks_of_fgd_on_a_map_of_another_shape():
    """32 high and 128 wide as 4 x 8 cells: a cell is 8 pixels high and 16 wide."""
    found = inverse_areas(objects([33.0, 17, 63, 23]), (32, 128), (4, 8))
    expected = torch.zeros(4, 8)
    expected[2:4, 2:5] = 1 / 6  # from cell 2 in both directions; to 23 / 8 and 63 / 16, rounded up to 3 and 4
    assert torch.allclose(found[0], expected)


def test_focal_terms_are_the_published_sums():
    found = run(focal(object_weight=1.0, background_weight=1.0, attention_weight=1.0, relation_weight=0.0))
    expected = dict.fromkeys(("object", "background", "attention"), 0.0)
    for (own, target), size in zip(levels(), (4, 2), strict=True):
        (space, channels), (own_space, own_channels) = find_attention(target, 0.5), find_attention(own, 0.5)
        error = (space[:, None] * channels[:, :, None, None] * (target - own).square()).sum(1)
        # The box ends at 15 of 32: at 1.875 of 4 cells, rounded up to 2, and at 0.94 of 2, rounded up to 1.
        end = size // 2 + 1
        expected["object"] += (error[0, :end, :end].sum() / end**2).item() / 2
        free = torch.ones(size, size)
        free[:end, :end] = 0
        outside = (error[0] * free).sum() / free.sum().clamp(min=1) + error[1].mean()
        expected["background"] += outside.item() / 2
        distance = (space - own_space).abs().sum() + (channels - own_channels).abs().sum()
        expected["attention"] += distance.item() / 2
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {f"loss_distill_{term}": value for term, value in expected.items()}, rel=1e-4
    )


def test_context_block_by_hand():
    block = ContextBlock(2)
    values = torch.randn(1, 2, 1, 3)
    assert torch.equal(block(values), values), "it starts as no change"
    nn.init.zeros_(block.weigh.weight)
    block.transform = nn.Linear(2, 2, bias=False)
    nn.init.eye_(block.transform.weight)
    assert torch.allclose(block(values), values + values.mean(-1, keepdim=True), atol=1e-6), "equal shares: the mean"


def test_relation_trains_both_blocks():
    own, target = random_maps("a", 0, 8, [(4, 4)]), random_maps("x", 1, 8, [(4, 4)])
    loss = focal(pairs=map_pairs("a", "x", 8, 8), **{**NO_WEIGHT, "relation_weight": 2.0})
    difference = loss.relation_teacher[0](target["x"]) - loss.relation_student[0](own["a"])
    expected = difference.square().sum() / 2
    found = run(loss, own, target)["loss_distill_relation"]
    assert found.item() == pytest.approx(2 * expected.item(), rel=1e-5)
    found.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters() if p.dim() > 1)


def test_generation_sees_the_shown_cells_alone():
    """With G the centre of its kernels and no hidden cell, the loss is the squared error of ReLU(student)."""
    loss = MaskedGenerationLoss(weight=0.5, pairs=map_pairs(), mask_ratio=0.0)
    for layer in (layer for block in loss.generation for layer in block if isinstance(layer, nn.Conv2d)):
        nn.init.dirac_(layer.weight)
        nn.init.zeros_(layer.bias)
    whole = sum((own.relu() - target).square().sum() / 2 for own, target in levels())
    assert run(loss)["loss_distill_generation"].item() == pytest.approx(0.5 * whole.item(), rel=1e-5)
    loss.mask_ratio = 1.0  # refused from a configuration; hides every cell
    hidden = sum(target.square().sum() / 2 for _, target in levels())
    assert run(loss)["loss_distill_generation"].item() == pytest.approx(0.5 * hidden.item(), rel=1e-5)
    loss.mask_ratio, many = 0.65, torch.ones(1, 3, 200, 200)
    loss.generation[0], seen = nn.Identity(), []
    loss.generation[0].register_forward_hook(lambda module, arguments, output: seen.append(output))
    share = loss.level_terms(0, many, many, None)["generation"].item() / many.numel()
    assert share == pytest.approx(0.65, abs=0.01), "as often as asked"
    assert torch.equal(seen[0], seen[0][:, :1].expand_as(seen[0])), "a cell is hidden in all channels"


def test_masks_follow_the_seed():
    loss = MaskedGenerationLoss(weight=1.0, pairs=map_pairs())

    def value(seed: int) -> float:
        torch.manual_seed(seed)
        return run(loss)["loss_distill_generation"].item()

    assert value(1) == value(1) and value(1) != value(2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: focal(**NO_WEIGHT), "all four"),
    ],
)
def test_bad_options_are_named(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
