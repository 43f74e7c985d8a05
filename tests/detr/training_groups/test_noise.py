"""The noise of denoising queries by hand and by transformers: boxes and labels."""

from __future__ import annotations

from collections.abc import Callable

from detr_distill.detr.boxes import to_corners
from detr_distill.detr.training_groups.noise import draw_labels, move_corners, shift_boxes

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import small_cfg
from helpers.detr.denoising_detectors import DINO, DN, make_group, make_targets, own_group
from torch import Tensor


def test_shifted_boxes_by_hand():
    box = torch.tensor([0.5, 0.5, 0.4, 0.2])
    # Draws 0.75, 0.25, 0, 1 are moves of 0.5, -0.5, -1, 1.
    found = shift_boxes(box, torch.tensor([0.75, 0.25, 0.0, 1.0]), 0.4)
    expected = torch.tensor([0.5 + 0.5 * 0.2 * 0.4, 0.5 - 0.5 * 0.1 * 0.4, 0.4 - 0.4 * 0.4, 0.2 + 0.2 * 0.4])
    assert torch.allclose(found, expected)
    assert torch.equal(shift_boxes(box, torch.full((4,), 0.5), 0.4), box)
    assert shift_boxes(torch.tensor([0.95, 0.02, 0.9, 0.04]), torch.tensor([1.0, 0.0, 1.0, 0.0]), 1.0).tolist() == [
        1, 0, 1, 0,
    ]  # fmt: skip


def test_moved_corners_by_hand():
    box = torch.tensor([0.5, 0.5, 0.4, 0.2])  # corners 0.3, 0.4, 0.7, 0.6
    positive = move_corners(box, torch.tensor([0.5, -0.5, 0.25, 0.0]), 1.0)
    assert torch.allclose(to_corners(positive), torch.tensor([0.4, 0.35, 0.75, 0.6]))
    negative = move_corners(box, torch.tensor([-1.5, -1.0, 1.25, 1.5]), 0.5)
    assert torch.allclose(to_corners(negative), torch.tensor([0.15, 0.35, 0.825, 0.675]))
    outside = move_corners(box, torch.tensor([-2.0, 0.0, 2.0, 0.0]), 1.0)
    assert torch.allclose(to_corners(outside), torch.tensor([0.0, 0.4, 1.0, 0.6])), "cut at the image"
    crossed = move_corners(box, torch.tensor([1.5, 0.0, -1.5, 0.0]), 1.0)
    assert torch.allclose(crossed, torch.tensor([0.5, 0.5, 0.0, 0.2])), "sides that pass each other leave no width"


def test_positive_and_negative_boxes_stay_in_their_bands():
    """Boxes in the middle, where neither the image nor the other side limits them."""
    torch.manual_seed(0)
    box = [0.5, 0.5, 0.2, 0.3]
    group = make_group(
        "ContrastiveDenoisingQueries", make_targets([box] * 40), MODEL__DETR__CONTRASTIVE_DENOISING__BOX_NOISE=0.4
    )
    assert group.position.shape == (1, 80, 4)
    moved = to_corners(group.position.sigmoid()) - to_corners(torch.tensor(box))
    distance = moved.abs() / (0.4 * torch.tensor([0.1, 0.15, 0.1, 0.15]))
    positive, negative = distance[0].split(40)
    assert positive.max() < 1 + 1e-4 and positive.min() < 0.05 and positive.max() > 0.95
    assert negative.min() > 1 - 1e-4 and negative.max() < 2 + 1e-4 and negative.max() > 1.95
    assert (moved > 0).float().mean().item() == pytest.approx(0.5, abs=0.1), "both directions"


def test_noise_equals_that_of_transformers(monkeypatch):
    """RT-DETR's function, with its random numbers taken out and given to ours."""
    rt_detr = pytest.importorskip("transformers.models.rt_detr.modeling_rt_detr")
    targets = make_targets([[0.3, 0.4, 0.2, 0.3], [0.9, 0.5, 0.3, 0.6]], [[0.5, 0.1, 0.8, 0.3], [0.6, 0.6, 0.1, 0.2]])
    drawn: dict[str, list[Tensor]] = {"rand_like": [], "randint_like": []}
    for name, numbers in drawn.items():
        original: Callable = getattr(torch, name)

        def keep(*args, original=original, numbers=numbers, **kwargs):
            numbers.append(original(*args, **kwargs))
            return numbers[-1].clone()

        monkeypatch.setattr(torch, name, keep)
    torch.manual_seed(0)
    objects = [{"class_labels": targets.labels[i], "boxes": targets.boxes[i]} for i in range(2)]
    embed = torch.nn.Embedding(6, 8)
    _, boxes, mask, meta = rt_detr.get_contrastive_denoising_training_group(objects, 5, 7, embed, 6, 0.5, 1.0)
    assert meta["dn_num_group"] == 3 and boxes.shape == (2, 12, 4)

    # Theirs: groups one after another, in each the positive and then the negative queries. Ours: all positive queries,
    # then all negative ones, in each the copies of an object side by side.
    order = torch.arange(12).view(3, 2, 2).permute(1, 2, 0).flatten()
    signs, parts = 2 * drawn["randint_like"][1][:, order].float() - 1, drawn["rand_like"][1][:, order]
    band = torch.arange(12).ge(6).float()[None, :, None]
    copies = targets.repeat(3).boxes.repeat(1, 2, 1)
    ours = move_corners(copies, signs * (parts + band), 1.0)
    assert torch.allclose(ours, boxes.sigmoid()[:, order], atol=1e-4)
    group = make_group("ContrastiveDenoisingQueries", targets, MODEL__DETR__CONTRASTIVE_DENOISING__NUM_PAIRS=6)
    assert torch.equal(group.inner_mask, mask[:12, :12].isinf()[order][:, order])
    first = torch.stack([x.sort().values for x in meta["dn_positive_idx"]])
    assert torch.equal(order[group.pairs.query[0]].sort(-1).values, first)


def test_labels_are_drawn_anew_as_often_as_asked():
    torch.manual_seed(0)
    labels = torch.full((1, 20_000), 2)
    assert torch.equal(draw_labels(labels, 0.0, 5), labels)
    changed = draw_labels(labels, 0.5, 5) != 2
    assert changed.float().mean().item() == pytest.approx(0.5 * 4 / 5, abs=0.02), "the right class may be drawn"
    shares = draw_labels(labels, 1.0, 5).flatten().bincount(minlength=5) / 20_000
    assert shares.tolist() == pytest.approx([0.2] * 5, abs=0.02)


@pytest.mark.parametrize(
    ("name", "key", "probability"),
    [("DenoisingQueries", "DENOISING", 1.0), ("ContrastiveDenoisingQueries", "CONTRASTIVE_DENOISING", 0.5)],
)
def test_contrastive_denoising_halves_the_label_noise(name, key, probability):
    torch.manual_seed(0)
    targets = make_targets([[0.5, 0.5, 0.2, 0.2]] * 400)
    keys = {f"MODEL__DETR__{key}__LABEL_NOISE": 1.0}
    model = build_model(small_cfg(**{**(DN if key == "DENOISING" else DINO), **keys}))
    maker = model.training_groups[name]
    maker.label_embedding.weight.data[:] = torch.arange(5.0)[:, None]
    (group,) = maker(None, own_group(1, model.queries.widths[0]), targets)
    labels = group.targets.labels.repeat(1, group.content.shape[1] // group.targets.labels.shape[1])
    changed = (group.content[..., 0] != labels).float().mean().item()
    assert changed == pytest.approx(probability * 4 / 5, abs=0.04)
