"""AP does not depend on how many images are evaluated at a time, although their sizes differ."""

from __future__ import annotations

import json

from detr_distill.data import build_test_loader, register_datasets
from detr_distill.engine.evaluation import build_evaluator

import cv2
import numpy as np
import pytest
import torch
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from helpers.builders import randomise, small_cfg

SIZES = [(40, 64), (72, 48), (56, 56), (33, 71), (64, 40)]


@pytest.fixture
def uneven_dataset(tmp_path):
    """Images of five sizes, two boxes each, in a COCO-format set."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index, (height, width) in enumerate(SIZES):
        name = f"{index}.png"
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        for box in ([2, 3, width - 8, height - 9], [width // 4, height // 4, width // 2, height // 2]):
            entry = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": 1 + index % 5, "iscrowd": 0}
            annotations.append({**entry, "bbox": box, "area": box[2] * box[3]})
    categories = [{"id": n + 1, "name": f"class{n}"} for n in range(5)]
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    register_datasets([[f"uneven_{tmp_path.name}", str(file), str(tmp_path)]])
    return f"uneven_{tmp_path.name}"


def test_ap_does_not_depend_on_batch_size(uneven_dataset):
    cfg = small_cfg(DATASETS__TEST=(uneven_dataset,), INPUT__MIN_SIZE_TEST=0, MODEL__DETR__NUM_QUERIES=60)
    model = randomise(build_model(cfg)).eval()
    # Boxes that cover most of the image, so that some are right by their size alone.
    model.decoder.heads.box_head.layers[-1].bias.data = torch.tensor([0.0, 0.0, 2.0, 2.0])
    results = []
    for batch_size in (1, 2, 5):
        loader = build_test_loader(cfg, uneven_dataset, batch_size)
        assert len(next(iter(loader))) == batch_size
        results.append(inference_on_dataset(model, loader, build_evaluator(cfg, uneven_dataset))["bbox"])
    assert results[0]["AP50"] > 0, "a score of zero would prove nothing"
    for other in results[1:]:
        assert other == pytest.approx(results[0], nan_ok=True)
