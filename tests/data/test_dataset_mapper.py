import copy

from detr_distill.data import DataError, DetrDatasetMapper
from detr_distill.data.augmentation import Flip, RandomFlip, Resize, ResizeShortSide
from detr_distill.data.mapper import PillowDatasetMapper

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

BOX = (30, 20, 70, 80)  # x1, y1, x2, y2 of a bright rectangle
WIDTH, HEIGHT = 160, 120


@pytest.fixture
def record(tmp_path):
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    item = {"bbox": [30, 20, 40, 60], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 3, "iscrowd": 0}
    file_name = str(tmp_path / "a.png")
    return {"file_name": file_name, "width": WIDTH, "height": HEIGHT, "image_id": 5, "annotations": [item]}


def crop_everything(cfg, size=(48, 90), before=(100, 140)):
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute_range"
    cfg.INPUT.CROP.SIZE = list(size)
    cfg.INPUT.CROP.RESIZE = list(before)
    cfg.INPUT.MIN_SIZE_TRAIN = (60, 90, 180)


def assert_box_encloses_rectangle(result):
    """The box's sides are within interpolation of the bright pixels' extent."""
    bright = result["image"][0] >= 128
    boxes = result["instances"].gt_boxes.tensor
    if not bright.any():
        assert len(boxes) == 0 or (boxes[:, 2:] - boxes[:, :2]).min() <= 1.5
        return False
    rows, columns = torch.where(bright.any(1))[0], torch.where(bright.any(0))[0]
    extent = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
    assert (boxes[0] - extent).abs().max() <= 1.5
    return True


def test_boxes_follow_flip_resize_and_crop(cfg, record):
    crop_everything(cfg)
    mapper = DetrDatasetMapper(cfg, True)
    np.random.seed(0)
    shapes, seen = set(), 0
    for _ in range(200):
        result = mapper(record)
        shapes.add(tuple(result["image"].shape))
        assert result["instances"].image_size == tuple(result["image"].shape[1:])
        seen += assert_box_encloses_rectangle(result)
    assert seen > 150
    assert len(shapes) > 50


@pytest.mark.parametrize("transform", [Flip(WIDTH), Resize(HEIGHT, WIDTH, 300, 200), Resize(HEIGHT, WIDTH, 37, 91)])
def test_masks_follow_the_image(transform):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[BOX[1] : BOX[3], BOX[0] : BOX[2]] = True
    moved = transform.apply_segmentation(mask).astype(bool)
    expected = transform.apply_box(np.array([BOX], float))[0]
    rows, columns = np.where(moved.any(1))[0], np.where(moved.any(0))[0]
    assert np.abs(expected - (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)).max() <= 1
    labels = transform.apply_segmentation(mask.astype(np.uint8) * 77)
    assert set(np.unique(labels)) == {0, 77}  # a class in between would be another class
    assert np.allclose(transform.inverse().apply_box(expected[None].copy())[0], BOX)


def test_fast_boxes_equal_detectron2s_functions(record):
    rng = np.random.default_rng(0)
    objects = []
    for number in range(40):
        x, y = rng.uniform(-5, 150, 2)
        mode = (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)[number % 2]
        width, height = rng.uniform(1, 60, 2)
        box = [x, y, width, height] if mode == BoxMode.XYWH_ABS else [x, y, x + width, y + height]
        objects.append({"bbox": box, "bbox_mode": mode, "category_id": number})
    steps = [Flip(WIDTH), Resize(HEIGHT, WIDTH, 240, 300), T.CropTransform(40, 30, 130, 110)]
    fast = DetrDatasetMapper(is_train=True, augmentations=steps)({**record, "annotations": objects})["instances"]
    transforms = T.TransformList(steps)
    moved = [detection_utils.transform_instance_annotations(copy.deepcopy(o), transforms, (110, 130)) for o in objects]
    slow = detection_utils.filter_empty_instances(detection_utils.annotations_to_instances(moved, (110, 130)))
    assert 0 < len(slow) < 40
    assert torch.equal(fast.gt_classes, slow.gt_classes)
    assert torch.allclose(fast.gt_boxes.tensor, slow.gt_boxes.tensor, atol=1e-4)


def test_crop_branch_is_used_half_of_the_time(cfg, record):
    crop_everything(cfg, before=(400,))
    augmentations = DetrDatasetMapper(cfg, True).augmentations
    np.random.seed(1)
    counts = 0
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for _ in range(400):
        transforms = augmentations(T.AugInput(image))
        crops = [transform for transform in transforms.transforms if isinstance(transform, T.CropTransform)]
        counts += len(crops)
        for crop in crops:
            assert min(crop.w, crop.h) >= 48
            assert max(crop.w, crop.h) <= 90
    assert 160 < counts < 240


def test_crop_is_clipped_to_a_small_image(cfg, record):
    crop_everything(cfg, size=(384, 600), before=())
    for _ in range(20):
        assert_box_encloses_rectangle(DetrDatasetMapper(cfg, True)(record))


def test_without_crop_only_flip_and_multi_scale(cfg, record):
    cfg.INPUT.MIN_SIZE_TRAIN = (60, 90)
    mapper = DetrDatasetMapper(cfg, True)
    np.random.seed(0)
    shapes = {tuple(mapper(record)["image"].shape) for _ in range(30)}
    assert shapes == {(3, 60, 80), (3, 90, 120)}
    cfg.INPUT.MAX_SIZE_TRAIN = 100
    assert {tuple(DetrDatasetMapper(cfg, True)(record)["image"].shape) for _ in range(30)} == {
        (3, 60, 80),
        (3, 75, 100),
    }


@pytest.mark.parametrize("sizes", [0, (), (0,)])
def test_size_zero_keeps_the_size(cfg, record, sizes):
    cfg.INPUT.MIN_SIZE_TRAIN = sizes
    cfg.INPUT.RANDOM_FLIP = "none"
    result = DetrDatasetMapper(cfg, True)(record)
    assert result["image"].shape == (3, HEIGHT, WIDTH)
    assert result["instances"].gt_boxes.tensor.tolist() == [list(BOX)]
    assert result["instances"].gt_classes.tolist() == [3]


def test_range_of_sizes():
    resize = ResizeShortSide((50, 53), is_range=True)
    image = np.zeros((100, 200, 3), np.uint8)
    np.random.seed(0)
    heights = {resize.get_transform(image).new_h for _ in range(100)}
    assert heights == {50, 51, 52, 53}


def test_flip_happens_half_of_the_time():
    np.random.seed(0)
    image = np.zeros((4, 4, 3), np.uint8)
    flips = sum(isinstance(RandomFlip().get_transform(image), Flip) for _ in range(400))
    assert 160 < flips < 240


def test_output_is_detectron2s_format_and_the_record_stays(cfg, record):
    record["annotations"].append({**record["annotations"][0], "iscrowd": 1})
    before = copy.deepcopy(record)
    result = DetrDatasetMapper(cfg, True)(record)
    assert record == before
    assert result["image"].dtype == torch.uint8
    assert result["image"].is_contiguous()
    assert (result["height"], result["width"], result["image_id"]) == (HEIGHT, WIDTH, 5)
    assert "annotations" not in result
    assert len(result["instances"]) == 1  # without the crowd
    assert result["instances"].gt_boxes.tensor.dtype == torch.float32


def test_an_image_without_objects_is_kept(cfg, record):
    instances = DetrDatasetMapper(cfg, True)({**record, "annotations": []})["instances"]
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.dtype == torch.int64


def test_an_object_outside_the_crop_is_removed(cfg, record):
    crop_everything(cfg, size=(20, 24), before=())
    record["annotations"].append({**record["annotations"][0], "bbox": [150, 110, 8, 8], "category_id": 1})
    np.random.seed(0)
    counts = [len(DetrDatasetMapper(cfg, True)(record)["instances"]) for _ in range(60)]
    assert set(counts) == {0, 1, 2}


def test_evaluation_only_resizes(cfg, record):
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 240, 300
    result = DetrDatasetMapper(cfg, False)(record)
    assert result["image"].shape == (3, 225, 300)
    assert (result["height"], result["width"]) == (HEIGHT, WIDTH)
    assert not {"instances", "annotations"} & set(result)


def test_polygons_become_masks_when_asked(cfg, record):
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = "bitmask"
    x1, y1, x2, y2 = BOX
    record["annotations"][0]["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    np.random.seed(0)
    for _ in range(5):
        result = DetrDatasetMapper(cfg, True)(record)
        mask = result["instances"].gt_masks.tensor[0]
        assert (mask != (result["image"][0] >= 128)).float().mean() < 0.03


def test_image_format(cfg, record):
    cv2.imwrite(record["file_name"], np.full((HEIGHT, WIDTH, 3), (200, 100, 0), np.uint8))
    for order, expected in (("BGR", [200, 100, 0]), ("RGB", [0, 100, 200])):
        cfg.INPUT.FORMAT = order
        assert DetrDatasetMapper(cfg, False)(record)["image"][:, 0, 0].tolist() == expected


def test_errors(cfg, record):
    with pytest.raises(DataError, match=r"a\.png is 160 x 120 pixels, but its annotation file says 161 x 120"):
        DetrDatasetMapper(cfg, True)({**record, "width": 161})
    for key, value, message in (
        ("INPUT.FORMAT", "L", "INPUT.FORMAT is 'L'.*BGR, RGB"),
        ("INPUT.RANDOM_FLIP", "vertical", "INPUT.RANDOM_FLIP is 'vertical'"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", r"INPUT.MIN_SIZE_TRAIN is \(1, 2, 3\)"),
    ):
        broken = cfg.clone()
        broken.INPUT.MIN_SIZE_TRAIN = (1, 2, 3)
        broken.merge_from_list([key, value])
        with pytest.raises(DataError, match=message):
            DetrDatasetMapper(broken, True)
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = True, "square"
    with pytest.raises(DataError, match=r"INPUT\.CROP\.TYPE is 'square'"):
        DetrDatasetMapper(cfg, True)


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (1, 1)])
def test_an_extremely_thin_image_keeps_a_pixel(tmp_path, shape):
    cv2.imwrite(str(tmp_path / "thin.png"), np.full((*shape, 3), 90, np.uint8))
    box = {"bbox": [0, 0, shape[1], shape[0]], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 3}
    record = {"file_name": str(tmp_path / "thin.png"), "height": shape[0], "width": shape[1], "annotations": [box]}
    result = DetrDatasetMapper(is_train=True, augmentations=[ResizeShortSide((800,), 1333)])(record)
    assert min(result["image"].shape) >= 1 and max(result["image"].shape) <= 1333
    assert len(result["instances"]) == 1


def test_detectron2s_mapper_refuses_what_it_would_cut_off(cfg, record):
    mapper = PillowDatasetMapper(cfg, True)
    assert mapper(record)["image"].dtype == torch.uint8
    cv2.imwrite(record["file_name"], np.full((HEIGHT, WIDTH), 4000, np.uint16))
    with pytest.raises(DataError, match=r"a\.png has more than 8 bits .*Set INPUT\.MAPPER detr"):
        mapper(record)
