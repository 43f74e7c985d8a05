"""The train loader's stream: workers, late starts, seeds, ranks, and the random states of the process."""

from __future__ import annotations

import random
from itertools import islice

from detr_distill.data import TrainLoader, build_train_loader

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from helpers.data.streams import assert_same, names, take, zeros


@pytest.mark.parametrize("mapper", ["detr", "detectron2"])
def test_the_stream_does_not_depend_on_the_number_of_workers(cfg, mapper):
    cfg.INPUT.MAPPER = mapper
    cfg.INPUT.CROP.ENABLED = True
    here = take(build_train_loader(cfg), 20)
    cfg.DATALOADER.NUM_WORKERS = 2
    assert_same(here, take(build_train_loader(cfg), 20))


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"])
def test_a_late_start_gives_the_tail_of_the_stream(cfg, grouping, sampler):
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.5
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    whole = take(build_train_loader(cfg), 24)  # more than one pass over the 60 images
    late = build_train_loader(cfg)
    late.start_from(17)
    assert_same(whole[17:], take(late, 7))


def test_a_random_subset_is_always_the_same(cfg):
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.RANDOM_SUBSET_RATIO = "RandomSubsetTrainingSampler", 0.2
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    three_passes = names(take(build_train_loader(cfg), 9))
    assert len(set(three_passes)) == 12 and len(three_passes) == 36


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
    loader = TrainLoader([{}], lambda _: {"x": np.random.rand(), "y": random.random(), "z": torch.rand(1)}, zeros, 8, 1)
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
