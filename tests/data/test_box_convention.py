"""Boxes in another convention are told by how they lie in their images."""

from __future__ import annotations

from detr_distill.data import DataError
from detr_distill.data.annotations.box_convention import CORNERS, XYWH, check_relative, check_share, likely_convention

import numpy as np
import pytest

FORMS = {
    "corners x1, y1, x2, y2": lambda x, y, w, h: [x, y, x + w, y + h],
    "corners y1, x1, y2, x2": lambda x, y, w, h: [y, x, y + h, x + w],
    "x1, x2, y1, y2": lambda x, y, w, h: [x, x + w, y, y + h],
    "centre x, centre y": lambda x, y, w, h: [x + w / 2, y + h / 2, w, h],
}


@pytest.fixture
def boxes():
    """(60, 4) x, y, width, height in images of 100 x 300 pixels, mostly in their far half."""
    random = np.random.default_rng(0)
    sides = random.uniform(5, 45, (60, 2))
    corner = random.uniform(0.3, 1, (60, 2)) * ([100, 300] - sides)
    return np.concatenate([corner, sides], axis=1), np.tile([100, 300], (60, 1))


@pytest.mark.parametrize("name", FORMS)
def test_a_convention_is_recognised(boxes, name):
    numbers, sizes = np.array([FORMS[name](*box) for box in boxes[0]]), boxes[1]
    assert likely_convention(numbers, sizes, XYWH).startswith(name)
    with pytest.raises(DataError, match=f"set: .* of 60 boxes leave their image.*look like {name}"):
        check_share(numbers, sizes, XYWH, "set")


def test_images_that_were_turned(boxes):
    with pytest.raises(DataError, match="turned since"):
        check_share(boxes[0], boxes[1][:, ::-1], XYWH, "set")


def test_widths_and_heights_that_are_read_as_corners(boxes):
    numbers, sizes = boxes
    assert likely_convention(numbers, sizes, CORNERS) == XYWH
    with pytest.raises(DataError, match=r"turned round .*read as corners .*look like x, y, width, height"):
        check_share(numbers, sizes, CORNERS, "set")


@pytest.mark.parametrize(("faulty", "refused"), [(0, False), (3, False), (4, True)])
def test_a_few_boxes_are_faulty_each_for_itself(boxes, faulty, refused):
    numbers, sizes = boxes
    numbers[:faulty, 2] += 200
    fractions = boxes[0].copy()
    fractions[:faulty] = [0.1, 0.2, 0.3, 0.4]
    for check in (lambda: check_share(numbers, sizes, XYWH, "set"), lambda: check_relative(fractions, sizes, "set")):
        if refused:
            with pytest.raises(DataError, match=f"set: {faulty} of 60 boxes"):
                check()
        else:
            check()


def test_the_unit_box_and_tiny_images_are_pixels():
    check_relative(np.array([[0.0, 0, 1, 1]] * 9), np.full((9, 2), 100.0), "set")
    check_relative(np.array([[0.5, 0, 0.5, 1]] * 9), np.full((9, 2), 2.0), "set")
