"""Segmentations: which are usable, and their areas."""

from __future__ import annotations

from detr_distill.data.annotations.masks import check_masks, mask_area, usable_segmentation

import numpy as np
import pytest
from pycocotools import mask as mask_util

HEIGHT, WIDTH = 40, 50
POLYGON = [5, 5, 25, 5, 25, 20, 5, 20]


def codes(seed):
    """A random mask as compressed and as uncompressed run lengths."""
    mask = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < (0.001, 0.5, 0.999, 0, 1)[seed]
    flat = mask.flatten(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    compressed = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = {"size": list(compressed["size"]), "counts": compressed["counts"].decode()}
    return mask, text, {"size": [HEIGHT, WIDTH], "counts": [0, *runs] if flat[0] else runs}


@pytest.mark.parametrize("seed", range(5))
def test_run_length_codes_of_both_forms(seed):
    mask, text, runs = codes(seed)
    for code in (text, runs):
        assert mask_area(code, HEIGHT, WIDTH) == mask.sum()
        check_masks([record(usable_segmentation(code))], "bitmask", "set")
        assert mask_area(code, WIDTH, HEIGHT) is None  # of another image
    assert mask_area({**text, "counts": text["counts"] + "1"}, HEIGHT, WIDTH) is None


def record(segmentation, **item):
    return {"file_name": "a", "height": HEIGHT, "width": WIDTH, "annotations": [{"segmentation": segmentation, **item}]}


def test_polygons_keep_those_that_are_some():
    assert usable_segmentation([POLYGON, [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]]) == [POLYGON]
    assert mask_area([POLYGON], HEIGHT, WIDTH) == 20 * 15
    check_masks([record([POLYGON])], "polygon", "set")
    check_masks([record([POLYGON])], "bitmask", "set")


@pytest.mark.parametrize("side", [10**30, 2**31, 0, -1, 5.0, True])
def test_an_impossible_size_is_no_mask(side):
    for counts in ([1, 2], "12"):
        assert usable_segmentation({"size": [side, 5], "counts": counts}) is None
        assert usable_segmentation({"size": [5, side], "counts": counts}) is None


@pytest.mark.parametrize("number", [10**400, -(10**400), float("inf"), float("nan"), 1e7, "5", None])
def test_a_polygon_of_an_impossible_number_has_no_area(number):
    assert mask_area([[*POLYGON[:-1], number]], HEIGHT, WIDTH) is None


def test_crowds_need_no_mask():
    check_masks([record(None, iscrowd=1)], "polygon", "set")
