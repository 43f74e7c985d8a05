"""The order of training images and the randomness of each, as a function of seed, rank and position alone."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from detectron2.data.detection_utils import SizeMismatchError
from torch.utils.data import Dataset

from ..errors import DataError

# Position in a rank's endless stream, and index of the image in the dataset.
Place = tuple[int, int]


def batches_of(indices: Iterable[int], batch_size: int, wide: Sequence[bool] | None = None) -> Iterator[list[Place]]:
    """Numbers a stream of indices and cuts it into batches; what is left at the end of a finite stream is dropped.

    Args:
        indices: dataset indices in the order of the sampler.
        batch_size: places in a batch.
        wide: whether each image of the dataset is wider than high; a batch then holds images of one kind only.
    """
    buckets: tuple[list[Place], list[Place]] = ([], [])
    for place in enumerate(indices):
        bucket = buckets[wide[place[1]] if wide is not None else 0]
        bucket.append(place)
        if len(bucket) == batch_size:
            yield bucket[:]
            bucket.clear()


def seed_globally(seed: int, rank: int, position: int) -> None:
    """Seeds ``random``, ``numpy.random`` and torch's CPU generator for one element of a rank's stream."""
    state = np.random.SeedSequence((seed, rank, position)).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(state[1])
    # Not torch.manual_seed, which reseeds the accelerators of the model as well.
    torch.default_generator.manual_seed(int(state[2]))


@contextlib.contextmanager
def preserved_randomness() -> Iterator[None]:
    """Gives the process its random states back at the end."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class SeededDataset(Dataset):
    """Maps batches of places, each element with its own seed.

    A ``DataError`` is returned in place of the batch: raised in a worker, it would reach the main process inside
    torch's own text.

    Args:
        records: dataset dicts. mapper: makes a model's input of one. seed, rank: see ``seed_globally``.
    """

    def __init__(self, records: Sequence[dict], mapper: Callable[[dict], dict], seed: int, rank: int) -> None:
        self.records = records
        self.mapper = mapper
        self.seed = seed
        self.rank = rank

    def __getitems__(self, places: list[Place]) -> list[dict] | DataError:
        with preserved_randomness():
            try:
                return [self._map(*place) for place in places]
            except DataError as error:
                return error

    def _map(self, position: int, index: int) -> dict:
        record = self.records[index]
        seed_globally(self.seed, self.rank, position)
        try:
            return self.mapper(record)
        except (OSError, SizeMismatchError) as error:  # of a mapper that is not ours
            raise DataError(f"Image file {record.get('file_name')} cannot be used: {error}") from error
