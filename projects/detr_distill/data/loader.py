"""The loaders. The training loader can be resumed exactly: see ``stream``."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import cv2
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data.samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, get_worker_info

from ..config.keys import read_key
from ..errors import DataError
from ..randomness import LOADING, LOADING_UNLABELED
from .mapper import DetrDatasetMapper, PillowDatasetMapper
from .records import load_records
from .stream import Position, SeededDataset, batches_of
from .strong import check_strong
from .transport import pack, unpack
from .unlabeled import MixedLoader, divide_labels, load_unlabeled

Mapper = Callable[[dict], dict]

_MAPPERS = {"detr": DetrDatasetMapper, "detectron2": PillowDatasetMapper}


class TrainLoader:
    """An endless stream of training batches that can start anywhere.

    What is at stream position n depends on the seed, the rank and n: not on the number of workers, nor on where the
    iteration started. Nothing happens before the first ``next``, so that ``seed`` and ``start_from`` may still be set
    after ``iter``.

    Args:
        records: dataset dicts.
        mapper: makes a model's input of one.
        make_sampler: gives this rank's endless stream of indices for a seed.
        batch_size: images of a batch on this rank.
        seed: decides order and augmentation; the same on all ranks.
        wide: whether each image is wider than high, to keep the two kinds in separate batches; None mixes them.
        num_workers: processes; 0 loads in this one and leaves its random states as they are.
        pin_memory: page-locked tensors, for a faster copy to a CUDA device. part: of the stream's randomness.
    """

    def __init__(
        self,
        records: Sequence[dict],
        mapper: Mapper,
        make_sampler: Callable[[int], Iterable[int]],
        batch_size: int,
        seed: int,
        *,
        wide: Sequence[bool] | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        part: int = LOADING,
    ) -> None:
        self.seed = seed
        self._part = part
        self._records = records
        self._mapper = mapper
        self._make_sampler = make_sampler
        self._batch_size = batch_size
        self._wide = wide
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._start = 0
        self._running = False

    def start_from(self, batch_number: int) -> None:
        """Lets the next iteration begin with batch ``batch_number`` of the stream, counted from 0.

        Raises:
            RuntimeError: the stream is being read already.
        """
        if self._running:
            raise RuntimeError("start_from() has to be called before the first batch is taken.")
        self._start = batch_number

    def __iter__(self) -> Iterator[list[dict]]:
        self._running = True
        try:
            batches = batches_of(self._make_sampler(self.seed), self._batch_size, self._wide)
            dataset = SeededDataset(self._records, self._mapper, self.seed, comm.get_rank(), self._part)
            remaining = itertools.islice(batches, self._start, None)
            yield from _load(dataset, remaining, self._num_workers, self._pin_memory)
        finally:
            self._running = False


class TestLoader:
    """Every image of a dataset once, shared among the ranks.

    Args:
        records: dataset dicts. mapper: makes a model's input of one.
        batch_size: images of a batch; detectron2 times inference with 1. num_workers: processes.
    """

    __test__ = False  # no test class, whatever pytest makes of the name

    def __init__(self, records: Sequence[dict], mapper: Mapper, batch_size: int = 1, num_workers: int = 0) -> None:
        positions = [(index, index) for index in InferenceSampler(len(records))]
        self._batches = [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
        self._dataset = SeededDataset(records, mapper, seed=0, rank=0)
        self._num_workers = num_workers

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[dict]]:
        yield from _load(self._dataset, self._batches, self._num_workers, pin_memory=False)


def build_train_loader(cfg: CfgNode) -> TrainLoader | MixedLoader:
    """The training loader of a configuration; a mixed one where images without labels join the batches.

    Raises:
        DataError: see ``load_records``; an unknown ``INPUT.MAPPER`` or ``DATALOADER.SAMPLER_TRAIN``; a batch that
            cannot be shared equally among the ranks.
    """
    mapper = _mapper(cfg, is_train=True)
    # Kept by the loader, so that a checkpoint can store it and a resumed run can set it.
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()

    def stream(records: list[dict], sampler: Callable[[int], Iterable[int]], images: str, part: int) -> TrainLoader:
        wide = None
        if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
            wide = [record.get("width", 0) > record.get("height", 0) for record in records]
        return TrainLoader(
            DatasetFromList(records),
            mapper,
            sampler,
            _batch_size(images, read_key(cfg, images), comm.get_world_size()),
            seed,
            wide=wide,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            pin_memory=cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available(),
            part=part,
        )

    records, rest = divide_labels(cfg, load_records(cfg))
    labelled = stream(records, _sampler(cfg, records), "SOLVER.IMS_PER_BATCH", LOADING)
    if not cfg.DATALOADER.UNLABELED_PER_BATCH:
        return labelled
    others = load_unlabeled(cfg, records, rest)
    any_order = partial(TrainingSampler, len(others), True)
    return MixedLoader(labelled, stream(others, any_order, "DATALOADER.UNLABELED_PER_BATCH", LOADING_UNLABELED))


def build_test_loader(cfg: CfgNode, dataset_name: str, batch_size: int = 1) -> TestLoader:
    """The loader that evaluates a configuration's model on a dataset.

    Raises:
        DataError: see ``load_records``; an unknown ``INPUT.MAPPER``.
    """
    mapper = _mapper(cfg, is_train=False)
    records = load_records(cfg, test_name=dataset_name)
    return TestLoader(DatasetFromList(records), mapper, batch_size, cfg.DATALOADER.NUM_WORKERS)


def _load(dataset: SeededDataset, batches: Iterable[list[Position]], workers: int, pin_memory: bool) -> Iterator[Any]:
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # torch draws the workers' seeds: not from the global generator
    )
    for batch in loader:
        result = unpack(batch) if workers else batch
        if isinstance(result, DataError):
            raise result
        yield result


def _collate(batch: Any) -> Any:
    return batch if get_worker_info() is None else pack(batch)


def _start_worker(_worker: int) -> None:
    # The workers are the parallelism; threads of their own would only fight over the same cores.
    torch.set_num_threads(1)
    # Ctrl-C reaches all processes of a terminal; the one that trains ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)


def _batch_size(key: str, images: int, world_size: int) -> int:
    if images <= 0 or images % world_size:
        raise DataError(
            f"{key} is {images}, which {world_size} process(es) cannot share equally. "
            f"Set it to a multiple of {world_size}."
        )
    return images // world_size


def _mapper(cfg: CfgNode, is_train: bool) -> Mapper:
    if cfg.INPUT.MAPPER not in _MAPPERS:
        raise DataError(f"INPUT.MAPPER is {cfg.INPUT.MAPPER!r}; choose one of: {', '.join(_MAPPERS)}.")
    if is_train:
        check_strong(cfg)
    return _MAPPERS[cfg.INPUT.MAPPER](cfg, is_train)


def _sampler(cfg: CfgNode, records: list[dict]) -> Callable[[int], Iterable[int]]:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return lambda seed: TrainingSampler(len(records), seed=seed)
    if name == "RepeatFactorTrainingSampler":
        # A key and an argument of detectron2's main branch.
        options = {"sqrt": cfg.DATALOADER.REPEAT_SQRT} if "REPEAT_SQRT" in cfg.DATALOADER else {}
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            records, cfg.DATALOADER.REPEAT_THRESHOLD, **options
        )
        return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)
    if name == "RandomSubsetTrainingSampler":
        ratio = cfg.DATALOADER.RANDOM_SUBSET_RATIO
        if int(len(records) * ratio) < 1:
            raise DataError(
                f"DATALOADER.RANDOM_SUBSET_RATIO is {ratio}: of {len(records)} training images none is left. Give "
                f"{1 / len(records):.2g} or more."
            )
        return lambda seed: RandomSubsetTrainingSampler(len(records), ratio, seed_shuffle=seed, seed_subset=seed)
    raise DataError(
        f"DATALOADER.SAMPLER_TRAIN is {name!r}; choose one of: "
        "TrainingSampler, RepeatFactorTrainingSampler, RandomSubsetTrainingSampler."
    )
