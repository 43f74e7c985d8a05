"""The shipped FCOS finds digits that it has not seen."""

from __future__ import annotations

from detr_distill.checkpoint.strict import load_strict
from detr_distill.config.build import build_config
from detr_distill.data.digits import CLASS_NAMES, draw_digits, split_samples

import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, pairwise_iou
from helpers.builders import ROOT

PICTURES = 12


def test_it_finds_digits():
    cfg = build_config(str(ROOT / "configs/digits/fcos_teacher.yaml"), ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg).eval()
    load_strict(model, str(ROOT / "weights/digits_fcos_teacher.pth"))
    assert len(CLASS_NAMES) == model.num_classes
    labels = split_samples("test")[1]
    drawn = [draw_digits("test", index) for index in range(PICTURES)]
    with torch.no_grad():
        seen = model([{"image": torch.from_numpy(picture.copy()).permute(2, 0, 1)} for picture, _ in drawn])
    found = total = 0
    for (_, digits), output in zip(drawn, seen, strict=True):
        sure = output["instances"][output["instances"].scores > 0.4]
        corners = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (digit.box for digit in digits)]).float()
        near = pairwise_iou(Boxes(corners), sure.pred_boxes) > 0.7
        right = torch.tensor([int(labels[digit.sample]) for digit in digits])[:, None] == sure.pred_classes
        found += int((near & right).any(1).sum())
        total += len(digits)
    assert total > 2 * PICTURES and found >= 0.95 * total
