"""The DETRs of the library, and those with groups: their two halves are its forward, and what each layer predicts."""

from __future__ import annotations

import pytest
import torch
from helpers.builders import make_inputs
from helpers.hugging_face import DETRS, GROUPED, LARGE, LAYERS, build_student, labels_of, solved

transformers = pytest.importorskip("transformers")


@torch.no_grad()
@pytest.mark.parametrize("kind", [*DETRS, *GROUPED])
def test_two_halves_are_the_librarys_forward(kind, tmp_path):
    """Images of one batch that is padded, where the network looks at the mask."""
    student = build_student(tmp_path, kind).eval()
    half = student.start(make_inputs(LARGE))
    assert len(half.maps) == len(student.network.level_channels)
    assert [values.shape[1] for values in half.maps] == student.network.level_channels
    mask = None if half.images.mask is None else (~half.images.mask).long()
    expected = student.model(half.images.tensor, pixel_mask=mask)
    found = student.finish(half).outputs["own"]
    assert (mask is not None) == (kind in DETRS)
    assert expected.logits.std() > 0.01 and expected.pred_boxes.std() > 1e-3
    assert torch.allclose(found.logits[-1], expected.logits, atol=1e-6)
    assert torch.allclose(found.boxes[-1], expected.pred_boxes, atol=1e-6)
    assert found.hidden.shape == (LAYERS, 2, found.logits.shape[2], student.network.width)
    half.maps = [torch.zeros_like(values) for values in half.maps]
    assert not torch.allclose(student.finish(half).outputs["own"].logits, found.logits, atol=1e-3), "maps are read"


@pytest.mark.parametrize("kind", GROUPED)
def test_each_group_is_matched_for_itself(kind, tmp_path):
    """As the library's criterion does, whose box losses of all groups together ours add up to."""
    student = build_student(tmp_path, kind)
    losses, decoded, truth = solved(student, make_inputs(LARGE))
    groups, queries = student.model.config.group_detr, student.model.config.num_queries
    assert len(decoded.groups) == groups == 3
    config, matcher = student.model.config, student.criterion.matcher
    config.class_cost, config.bbox_cost, config.giou_cost = matcher.cost_class, matcher.cost_l1, matcher.cost_giou
    module = transformers.loss.loss_lw_detr
    library = module.LwDetrHungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
    criterion = module.LwDetrImageLoss(library, config.num_labels, config.focal_alpha, ["boxes"], groups)
    for layer, suffix in ((0, "_0"), (LAYERS - 1, "")):
        joined = {
            "logits": torch.cat([decoded.outputs[group.name].logits[layer] for group in decoded.groups], dim=1),
            "pred_boxes": torch.cat([decoded.outputs[group.name].boxes[layer] for group in decoded.groups], dim=1),
        }
        assert joined["logits"].shape[1] == groups * queries
        expected = criterion(joined, labels_of(truth))
        names = ["", *(f"_group{number}" for number in range(1, groups))]
        weights = {"bbox": ("box", student.criterion.l1_weight), "giou": ("giou", student.criterion.giou_weight)}
        for theirs, (ours, weight) in weights.items():
            found = sum(losses[f"loss_{ours}{name}{suffix}"] for name in names)
            assert torch.allclose(found, weight * expected[f"loss_{theirs}"], rtol=1e-4)
    assert "loss_class_encoder_group2" in losses
