import logging

from detr_distill.data import DataError, check_boxes

import pytest
from detectron2.structures import BoxMode

XYWH, XYXY = BoxMode.XYWH_ABS, BoxMode.XYXY_ABS


def record(*boxes, mode=XYWH, **extra):
    items = [{"bbox": list(box), "bbox_mode": mode, "category_id": 0, "id": 50 + n} for n, box in enumerate(boxes)]
    return {"file_name": "street.jpg", "width": 100, "height": 80, "annotations": [{**i, **extra} for i in items]}


GOOD = [(0, 0, 100, 80), (10, 10, 0.4, 0.3), (-0.9, -0.9, 20, 20), (90, 70, 10.9, 10.9), (0, 0, 1, 1)]
BAD = [
    (10, 10, 0, 5),
    (10, 10, 5, -1),
    (-1.2, 10, 20, 20),
    (10, 10, 91.5, 5),
    (10, 70, 5, 12),
    (100, 10, 0.5, 5),
    (300, 10, 5, 5),
    (float("nan"), 10, 5, 5),
    (float("inf"), 10, 5, 5),
]


@pytest.mark.parametrize("box", GOOD)
@pytest.mark.parametrize("policy", ["error", "fix"])
def test_good_boxes_stay_as_they_are(box, policy):
    records = [record(box)]
    check_boxes(records, policy, "set")
    assert records == [record(box)]


@pytest.mark.parametrize("box", BAD)
def test_a_bad_box_is_refused_with_all_that_helps_to_find_it(box):
    with pytest.raises(DataError) as caught:
        check_boxes([record(), record((1, 1, 5, 5), box)], "error", "my set")
    message = str(caught.value)
    for part in ("my set: 1 of 2 boxes", "annotation 51 of street.jpg (100 x 80 pixels)", "DATASETS.BAD_BOXES fix"):
        assert part in message
    assert str(list(box)) in message


def test_only_a_few_are_listed():
    with pytest.raises(DataError, match=r"9 of 9 boxes(.|\n)*and 4 more"):
        check_boxes([record(*[(1, 1, 0, 0)] * 9)], "error", "set")


@pytest.mark.parametrize("mode", [XYWH, XYXY])
def test_fix_cuts_drops_and_says_so_once(mode, caplog):
    boxes = [(-5, 10, 20, 90), (10, 10, 15, 15), (30, 30, 30, 30), (200, 10, 220, 20)]
    given = boxes if mode == XYXY else [(x, y, x2 - x, y2 - y) for x, y, x2, y2 in boxes]
    records = [record(*given, mode=mode)]
    with caplog.at_level(logging.WARNING):
        check_boxes(records, "fix", "set")
    kept = records[0]["annotations"]
    assert [item["id"] for item in kept] == [50, 51]
    assert BoxMode.convert(list(kept[0]["bbox"]), mode, XYXY) == [0, 10, 20, 80]
    assert list(kept[1]["bbox"]) == list(given[1])
    assert [entry.getMessage() for entry in caplog.records] == [
        "set: 3 bad boxes: 1 cut to their image, 2 without area dropped (DATASETS.BAD_BOXES fix)."
    ]
    check_boxes(records, "error", "set")


@pytest.mark.parametrize("policy", ["error", "fix"])
def test_crowds_pass_untouched(policy):
    records = [record((-50, 0, 300, 0), iscrowd=1)]
    check_boxes(records, policy, "set")
    assert records == [record((-50, 0, 300, 0), iscrowd=1)]


def test_unknown_policy():
    with pytest.raises(DataError, match=r"DATASETS.BAD_BOXES is 'ignore'.*error, fix"):
        check_boxes([], "ignore", "set")
