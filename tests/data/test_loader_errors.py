"""How errors of the data, of a worker and of the settings reach whoever asks a loader."""

from __future__ import annotations

from detr_distill.data import DataError, TrainLoader, build_test_loader, build_train_loader

import pytest
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from helpers.data.streams import take, zeros


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
        take(TrainLoader([{}], fail, zeros, 1, 0, num_workers=1), 1)


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
