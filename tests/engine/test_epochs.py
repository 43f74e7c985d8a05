"""The length of a run in epochs is turned into iterations by the number of training images."""

from __future__ import annotations

from detr_distill.engine.starting.epochs import in_iterations, schedule_warnings
from detr_distill.errors import ConfigError

import pytest
from helpers.builders import small_cfg
from helpers.data.sets import write_set


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Ten images."""
    return write_set(tmp_path_factory.mktemp("epochs"), "ten", 1)


def config(dataset, **keys):
    settings = {"DATASETS__TRAIN": (dataset[0],), "SOLVER__IMS_PER_BATCH": 4, "SOLVER__EPOCHS": 8.0, **keys}
    cfg = small_cfg(**settings)
    cfg.DATASETS.REGISTER = [dataset]
    return cfg


def test_everything_is_counted_in_iterations(dataset):
    keys = {"SOLVER__EPOCH_STEPS": (4, 6), "SOLVER__WARMUP_EPOCHS": 0.5, "TEST__EVAL_EPOCHS": 1.0}
    cfg = config(dataset, **keys)
    cfg.freeze()
    found = in_iterations(cfg)
    assert found.is_frozen() and cfg.SOLVER.MAX_ITER == 800
    assert (found.SOLVER.MAX_ITER, found.SOLVER.STEPS, found.SOLVER.WARMUP_ITERS) == (20, (10, 15), 2)
    assert found.TEST.EVAL_PERIOD == 3
    assert in_iterations(found) == found


@pytest.mark.parametrize(
    ("keys", "iterations"),
    [
        ({"SOLVER__ACCUMULATE": 2}, 10),
        ({"DATASETS__LABELED_SHARE": 0.2}, 4),
        ({"SOLVER__EPOCHS": 0.01}, 1),
        ({"DATALOADER__SAMPLER_TRAIN": "RandomSubsetTrainingSampler", "DATALOADER__RANDOM_SUBSET_RATIO": 0.4}, 8),
    ],
)
def test_what_an_epoch_is(dataset, keys, iterations):
    assert iterations == in_iterations(config(dataset, **keys)).SOLVER.MAX_ITER


def test_a_run_does_not_end_within_its_warm_up(dataset):
    with pytest.raises(ConfigError, match=r"WARMUP_EPOCHS is 9\.0 and SOLVER\.EPOCHS 8\.0: the run would end within"):
        in_iterations(config(dataset, SOLVER__WARMUP_EPOCHS=9.0))


def test_iterations_count_where_no_epochs_are_given(dataset):
    cfg = config(dataset, SOLVER__EPOCHS=0.0)
    assert in_iterations(cfg) is cfg
    with pytest.raises(ConfigError, match=r"SOLVER\.EPOCHS is 0 beside .*TEST\.EVAL_EPOCHS 2\.0"):
        in_iterations(config(dataset, SOLVER__EPOCHS=0.0, TEST__EVAL_EPOCHS=2.0))


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"SOLVER__WARMUP_ITERS": 20}, "SOLVER.WARMUP_ITERS"),
        ({"SOLVER__WARMUP_EPOCHS": 8.0}, "SOLVER.WARMUP_EPOCHS"),
        ({"SOLVER__WARMUP_ITERS": 19}, ""),
        ({"SOLVER__WARMUP_EPOCHS": 7.0}, ""),
        ({"SOLVER__WARMUP_ITERS": 20, "SOLVER__WARMUP_FACTOR": 1.0}, ""),
    ],
)
def test_a_warm_up_as_long_as_the_run_is_warned_of(dataset, keys, named):
    found = schedule_warnings(in_iterations(config(dataset, **keys)))
    if not named:
        assert found == []
        return
    assert len(found) == 1 and found[0].startswith("The warm-up takes 20 iterations and the run 20, so the learning")
    assert found[0].endswith(f"Give less than the run has in {named}.")
