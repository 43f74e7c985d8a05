"""Batches of images of one aspect ratio."""

from __future__ import annotations

from detr_distill.data import build_train_loader
from detr_distill.data.stream import batches_of

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from helpers.data.streams import take


def test_aspect_ratio_grouping():
    wide = [index % 3 == 0 for index in range(30)]
    batches = list(batches_of(range(30), 4, wide))
    assert all(len({wide[index] for _, index in batch}) == 1 for batch in batches)
    assert {wide[batch[0][1]] for batch in batches} == {False, True}
    assert all(position == index for batch in batches for position, index in batch)
    mixed = list(batches_of(range(30), 4))
    assert [index for batch in mixed for _, index in batch] == list(range(28))


def test_grouping_follows_the_configuration(cfg, tmp_path):
    sizes = {str(tmp_path / f"{n}.png"): (20, 10) if n % 2 else (10, 20) for n in range(8)}
    for file, (width, height) in sizes.items():
        cv2.imwrite(file, np.zeros((height, width, 3), np.uint8))
    name = "wide_and_high"
    if name not in DatasetCatalog:
        DatasetCatalog.register(
            name, lambda: [{"file_name": f, "width": w, "height": h, "annotations": []} for f, (w, h) in sizes.items()]
        )
    cfg.DATASETS.TRAIN = (name,)
    kinds = {}
    for grouping in (True, False):
        cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
        batches = take(build_train_loader(cfg), 20)
        kinds[grouping] = [len({sizes[element["file_name"]] for element in batch}) for batch in batches]
    assert set(kinds[True]) == {1}
    assert 2 in kinds[False]
