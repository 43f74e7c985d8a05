import random
from itertools import islice

from detr_distill.data import DataError, TrainLoader, build_test_loader, build_train_loader
from detr_distill.data.stream import batches_of
from detr_distill.data.transport import pack, unpack

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils import comm


def take(loader, batches):
    iterator = iter(loader)
    result = list(islice(iterator, batches))
    iterator.close()
    return result


def assert_same(first, second):
    assert len(first) == len(second)
    for one, two in zip((e for batch in first for e in batch), (e for batch in second for e in batch), strict=True):
        assert one["file_name"] == two["file_name"]
        assert torch.equal(one["image"], two["image"])
        assert torch.equal(one["instances"].gt_boxes.tensor, two["instances"].gt_boxes.tensor)
        assert torch.equal(one["instances"].gt_classes, two["instances"].gt_classes)


def names(batches):
    return [element["file_name"] for batch in batches for element in batch]


@pytest.mark.parametrize("mapper", ["detr", "detectron2"])
def test_the_stream_does_not_depend_on_the_number_of_workers(cfg, mapper):
    cfg.INPUT.MAPPER = mapper
    cfg.INPUT.CROP.ENABLED = True
    here = take(build_train_loader(cfg), 20)
    cfg.DATALOADER.NUM_WORKERS = 2
    assert_same(here, take(build_train_loader(cfg), 20))


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_a_late_start_gives_the_tail_of_the_stream(cfg, grouping, sampler):
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.5
    whole = take(build_train_loader(cfg), 24)  # more than one pass over the 60 images
    late = build_train_loader(cfg)
    late.start_from(17)
    assert_same(whole[17:], take(late, 7))


def test_seed_and_start_can_be_set_until_the_first_batch(cfg):
    cfg.SEED = 3
    expected = take(build_train_loader(cfg), 6)[4:]
    cfg.SEED = 99
    loader = build_train_loader(cfg)
    assert loader.seed == 99
    iterator = iter(loader)
    loader.seed = 3
    loader.start_from(4)
    assert_same(expected, list(islice(iterator, 2)))
    with pytest.raises(RuntimeError, match="before the first batch"):
        loader.start_from(0)


def test_nothing_happens_before_the_first_batch():
    def explode(_):
        raise AssertionError("touched")

    iterator = iter(TrainLoader([{}], explode, explode, 1, 0))
    with pytest.raises(AssertionError, match="touched"):
        next(iterator)


def test_every_image_comes_once_a_pass(cfg):
    order = names(take(build_train_loader(cfg), 15))
    assert len(order) == len(set(order)) == 60


def test_other_seeds_and_ranks_have_other_streams(cfg, monkeypatch):
    first = names(take(build_train_loader(cfg), 5))
    cfg.SEED += 1
    assert names(take(build_train_loader(cfg), 5)) != first
    cfg.SEED -= 1
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        batches = take(build_train_loader(cfg), 15)
        assert {len(batch) for batch in batches} == {2}
        shares.append(set(names(batches)))
    assert not shares[0] & shares[1]


def test_the_same_image_is_augmented_anew_at_each_place_and_rank(monkeypatch):
    loader = TrainLoader(
        [{}], lambda _: {"x": np.random.rand(), "y": random.random(), "z": torch.rand(1)}, _zeros, 8, 1
    )
    batch = take(loader, 1)[0]
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    again = take(loader, 1)[0]
    for key in "xyz":
        values = [float(element[key]) for element in batch]
        assert len(set(values)) == 8
        assert values == [float(element[key]) for element in again]
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    other = take(loader, 1)[0]
    assert not {element["x"] for element in batch} & {element["x"] for element in other}


def _zeros(_seed):
    while True:
        yield 0


def test_a_negative_seed_is_drawn_and_kept(cfg):
    cfg.SEED = -1
    loader = build_train_loader(cfg)
    again = build_train_loader(cfg)
    assert loader.seed >= 0
    assert loader.seed != again.seed
    again.seed = loader.seed
    assert_same(take(loader, 2), take(again, 2))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_random_states_of_the_process_are_left_alone(cfg, workers):
    cfg.DATALOADER.NUM_WORKERS = workers
    iterator = iter(build_train_loader(cfg))
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    next(iterator)
    next(iterator)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    iterator.close()


def test_aspect_ratio_grouping():
    wide = [index % 3 == 0 for index in range(30)]
    batches = list(batches_of(range(30), 4, wide))
    assert all(len({wide[index] for _, index in batch}) == 1 for batch in batches)
    assert {wide[batch[0][1]] for batch in batches} == {False, True}
    assert all(position == index for batch in batches for position, index in batch)
    mixed = list(batches_of(range(30), 4))
    assert [index for batch in mixed for _, index in batch] == list(range(28))


def test_grouping_follows_the_configuration(cfg, tmp_path):
    sizes = {f"{n}.jpg": (20, 10) if n % 2 else (10, 20) for n in range(8)}
    name = "wide_and_high"
    if name not in DatasetCatalog:
        DatasetCatalog.register(
            name, lambda: [{"file_name": f, "width": w, "height": h, "annotations": []} for f, (w, h) in sizes.items()]
        )
    cfg.DATASETS.TRAIN = (name,)
    kinds = {}
    for grouping in (True, False):
        cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
        loader = build_train_loader(cfg)
        loader._mapper = lambda record: record
        kinds[grouping] = [len({sizes[element["file_name"]] for element in batch}) for batch in take(loader, 20)]
    assert set(kinds[True]) == {1}
    assert 2 in kinds[False]


def break_an_image(cfg, tmp_path, monkeypatch):
    path = tmp_path / "cut.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    original = DatasetCatalog[cfg.DATASETS.TRAIN[0]]
    records = original()
    records[5]["file_name"] = str(path)
    monkeypatch.setitem(DatasetCatalog.data, cfg.DATASETS.TRAIN[0], lambda: records)


@pytest.mark.parametrize("mapper", ["detr", "detectron2"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_error_arrives_with_its_plain_message(cfg, tmp_path, monkeypatch, workers, mapper):
    break_an_image(cfg, tmp_path, monkeypatch)
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.INPUT.MAPPER = mapper
    for loader in (build_train_loader(cfg), build_test_loader(cfg, cfg.DATASETS.TRAIN[0])):
        with pytest.raises(DataError) as caught:
            take(loader, 15 if isinstance(loader, TrainLoader) else 60)
        assert str(caught.value).startswith("Image file ")
        assert "cut.jpg" in str(caught.value)
        assert "worker" not in str(caught.value)


def test_another_error_in_a_worker_keeps_its_trace():
    def fail(_):
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        take(TrainLoader([{}], fail, _zeros, 1, 0, num_workers=1), 1)


def test_images_without_objects_are_kept_unless_filtered(cfg, monkeypatch):
    records = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    for record in records[:30]:
        record["annotations"] = []
    monkeypatch.setitem(DatasetCatalog.data, cfg.DATASETS.TRAIN[0], lambda: records)
    assert sum(len(element["instances"]) == 0 for batch in take(build_train_loader(cfg), 15) for element in batch) == 30
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    assert len(set(names(take(build_train_loader(cfg), 15)))) == 30


def test_bad_boxes_of_a_dataset_that_others_registered(cfg):
    item = {"bbox": [1, 1, 90, 5], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    if "made_elsewhere" not in DatasetCatalog:
        DatasetCatalog.register(
            "made_elsewhere",
            lambda: [{"file_name": "a.jpg", "width": 50, "height": 50, "annotations": [{**item}]}],
        )
    cfg.DATASETS.TRAIN = ("made_elsewhere",)
    with pytest.raises(DataError, match=r"DATASETS\.TRAIN made_elsewhere: 1 of 1 boxes(.|\n)*a\.jpg"):
        build_train_loader(cfg)
    cfg.DATASETS.BAD_BOXES = "fix"
    assert build_train_loader(cfg)._records[0]["annotations"][0]["bbox"] == [1, 1, 49, 5]


def test_the_test_loader_gives_every_image_once_in_order(cfg, digits_folders):
    for workers, batch_size in ((0, 1), (2, 16)):
        cfg.DATALOADER.NUM_WORKERS = workers
        loader = build_test_loader(cfg, cfg.DATASETS.TRAIN[0], batch_size)
        batches = list(loader)
        assert len(loader) == len(batches) == -(-60 // batch_size)
        assert [element["image_id"] for batch in batches for element in batch] == list(range(1, 61))
        assert batches[0][0]["image"].shape == (3, 96, 96)


def test_settings_that_cannot_work(cfg, monkeypatch):
    faults = [
        ("INPUT.MAPPER", "coco", r"INPUT\.MAPPER is 'coco'; choose one of: detr, detectron2"),
        ("DATALOADER.SAMPLER_TRAIN", "Shuffle", r"DATALOADER\.SAMPLER_TRAIN is 'Shuffle'.*TrainingSampler"),
        ("DATASETS.TRAIN", ("nothing",), r"DATASETS\.TRAIN has 'nothing'.*DATASETS\.REGISTER.*digits_train"),
        ("DATASETS.TRAIN", (), r"DATASETS\.TRAIN is empty"),
        ("DATASETS.TRAIN", ("coco_2017_train",), r"coco_2017_train cannot be loaded.*DETECTRON2_DATASETS"),
        ("SOLVER.IMS_PER_BATCH", 0, r"SOLVER\.IMS_PER_BATCH is 0"),
    ]
    for key, value, message in faults:
        broken = cfg.clone()
        broken.merge_from_list([key, value])
        with pytest.raises(DataError, match=message):
            build_train_loader(broken)
    with pytest.raises(DataError, match=r"DATASETS\.TEST has 'nothing'"):
        build_test_loader(cfg, "nothing")
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    with pytest.raises(DataError, match=r"SOLVER\.IMS_PER_BATCH is 4, which 3 process"):
        build_train_loader(cfg)


def test_datasets_with_other_classes_cannot_be_mixed(cfg):
    if "other_classes" not in DatasetCatalog:
        DatasetCatalog.register(
            "other_classes", lambda: [{"file_name": "a", "width": 9, "height": 9, "annotations": []}]
        )
        MetadataCatalog.get("other_classes").thing_classes = ["cat"]
    cfg.DATASETS.TRAIN += ("other_classes",)
    with pytest.raises(DataError, match="small_digits, other_classes cannot be used"):
        build_train_loader(cfg)


def test_a_packed_batch_comes_back_whole():
    batch = [
        {"image": torch.arange(7, dtype=torch.uint8), "boxes": torch.rand(3, 4), "name": "a"},
        {"image": torch.rand(2, 3).t(), "empty": torch.zeros(0, 4), "flag": torch.tensor(True), "list": [1, 2.5, None]},
    ]
    data, block = pack(batch)
    assert block.is_shared()
    result = unpack((data, block))
    for one, two in zip(batch, result, strict=True):
        assert list(one) == list(two)
        for key, value in one.items():
            if isinstance(value, torch.Tensor):
                assert two[key].dtype == value.dtype
                assert torch.equal(two[key], value)
            else:
                assert two[key] == value
    assert unpack(pack(DataError("text"))).args == ("text",)


def test_empty_tensors_that_come_from_numpy_can_be_packed():
    """An image without objects: NumPy gives such arrays a stride of 0."""
    batch = [{"classes": torch.from_numpy(np.array([3, 4])[np.zeros(2, dtype=bool)]), "boxes": torch.zeros(0, 4)}]
    (result,) = unpack(pack(batch))
    assert result["classes"].dtype == torch.int64 and result["classes"].shape == (0,)
    assert result["boxes"].shape == (0, 4)
