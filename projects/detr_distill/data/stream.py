"""The order of training images and the randomness of each, as a function of seed, rank and position alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from detectron2.data.detection_utils import SizeMismatchError
from torch.utils.data import Dataset

from ..errors import DataError
from ..moved import renamed
from ..randomness import LOADING, preserved_randomness, seed_step

__getattr__ = renamed(__name__, {})

# Position in a rank's endless stream, and index of the image in the dataset.
Position = tuple[int, int]


def batches_of(indices: Iterable[int], batch_size: int, wide: Sequence[bool] | None = None) -> Iterator[list[Position]]:
    """Numbers a stream of indices and cuts it into batches; what is left at the end of a finite stream is dropped.

    Args:
        indices: dataset indices in the order of the sampler.
        batch_size: images in a batch.
        wide: whether each image of the dataset is wider than high; a batch then holds images of one kind only.
    """
    buckets: tuple[list[Position], list[Position]] = ([], [])
    for position in enumerate(indices):
        bucket = buckets[wide[position[1]] if wide is not None else 0]
        bucket.append(position)
        if len(bucket) == batch_size:
            yield bucket[:]
            bucket.clear()


class SeededDataset(Dataset):
    """Maps batches of positions, each element with its own seed.

    A ``DataError`` is returned in place of the batch: raised in a worker, it would reach the main process inside
    torch's own text.

    Args:
        records: dataset dicts. mapper: makes a model's input of one. seed, rank, part: see ``seed_step``.
    """

    def __init__(
        self, records: Sequence[dict], mapper: Callable[[dict], dict], seed: int, rank: int, part: int = LOADING
    ) -> None:
        self.records = records
        self.mapper = mapper
        self.seed = seed
        self.rank = rank
        self.part = part

    def __getitems__(self, positions: list[Position]) -> list[dict] | DataError:
        with preserved_randomness():
            try:
                return [self._map(*position) for position in positions]
            except DataError as error:
                return error

    def _map(self, position: int, index: int) -> dict:
        record = self.records[index]
        seed_step(self.seed, self.rank, position, self.part, devices=False)
        try:
            return self.mapper(record)
        except (OSError, SizeMismatchError) as error:  # of a mapper that is not ours
            raise DataError(f"Image file {record.get('file_name')} cannot be used: {error}") from error
