"""Images without labels beside labelled ones: their sets, the stream of both, what must not be among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ..config.defaults import CLASS_NODES
from ..config.keys import Key, declare
from ..config.ranges import IMAGES, NOT_NEGATIVE, PROPER_SHARE, Range
from ..errors import ConfigError, DataError, first
from .image_files import check_image_files, content_hash, file_bytes
from .records import load_images, load_records

KEY = "DATASETS.UNLABELED"
REST = "rest"
_NAMED = 3

declare(
    __name__,
    {
        "DATASETS.UNLABELED": Key(
            (),
            "sets of images without labels, of which `DATALOADER.UNLABELED_PER_BATCH` join each batch; labels that "
            f'they have are not looked at. `"{REST}"`: the training images that `LABELED_SHARE` leaves',
        ),
        "DATASETS.LABELED_SHARE": Key(
            1.0,
            "share of the training images that are trained on with their labels: always the same ones, and those of a "
            "smaller share are among those of a larger",
            PROPER_SHARE,
        ),
        "DATASETS.LABELED_SEED": Key(0, "which images these are", NOT_NEGATIVE),
        "DATALOADER.UNLABELED_PER_BATCH": Key(
            0,
            "images of `DATASETS.UNLABELED` in a batch, beside `SOLVER.IMS_PER_BATCH` labelled ones",
            Range(0, most=IMAGES.most),
        ),
    },
)


class _Stream(Protocol):
    seed: int

    def start_from(self, batch_number: int) -> None: ...

    def __iter__(self) -> Iterator[list[dict]]: ...


class MixedLoader:
    """Batches of two streams, labelled images first; both start at the same batch number.

    Args:
        labelled, unlabelled: endless training loaders.
    """

    def __init__(self, labelled: _Stream, unlabelled: _Stream):
        self._streams = (labelled, unlabelled)

    @property
    def seed(self) -> int:
        """Decides order and augmentation of both."""
        return self._streams[0].seed

    @seed.setter
    def seed(self, value: int) -> None:
        for stream in self._streams:
            stream.seed = value

    def start_from(self, batch_number: int) -> None:
        """Lets the next iteration begin with batch ``batch_number`` of both streams, counted from 0."""
        for stream in self._streams:
            stream.start_from(batch_number)

    def __iter__(self) -> Iterator[list[dict]]:
        for batches in zip(*self._streams, strict=False):
            yield [entry for batch in batches for entry in batch]


def divide_labels(cfg: CfgNode, records: list[dict]) -> tuple[list[dict], list[dict]]:
    """The training images whose labels are used, and the rest, each in the order of the set."""
    share = cfg.DATASETS.LABELED_SHARE
    count = len(records) if share == 1 else max(1, round(share * len(records)))
    order = np.random.default_rng(cfg.DATASETS.LABELED_SEED).permutation(len(records))
    chosen = set(order[:count].tolist())
    labelled = [record for index, record in enumerate(records) if index in chosen]
    return labelled, [record for index, record in enumerate(records) if index not in chosen]


def load_unlabeled(cfg: CfgNode, labelled: Sequence[dict], rest: Sequence[dict]) -> list[dict]:
    """The records of ``DATASETS.UNLABELED``, without annotations.

    Args:
        labelled, rest: of :func:`divide_labels`.

    Raises:
        ConfigError: images are wanted and no set is named. DataError: a set that is not registered or has no image, or
            an image that is trained on with labels or tested on too.
    """
    names = tuple(cfg.DATASETS.UNLABELED)
    if not names:
        raise ConfigError(
            f"DATALOADER.UNLABELED_PER_BATCH is {cfg.DATALOADER.UNLABELED_PER_BATCH}, and DATASETS.UNLABELED is empty. "
            f'Name sets of images there ("{REST}": what LABELED_SHARE leaves), or set the first to 0.'
        )
    records = []
    for name in names:
        found = list(rest) if name == REST else registered(name)
        if not found:
            raise DataError(
                f"DATASETS.UNLABELED: {name!r} has no image."
                + (" DATASETS.LABELED_SHARE leaves none: set it below 1." if name == REST else " Name another set.")
            )
        records += [{key: value for key, value in record.items() if key != "annotations"} for record in found]
    tested = [record for name in cfg.DATASETS.TEST if name in DatasetCatalog for record in DatasetCatalog.get(name)]
    _check_apart(records, labelled, "trained on with its labels")
    _check_apart(records, tested, "of a test set")
    return records


def check_unlabeled_sets(cfg: CfgNode) -> None:
    """Looks at all that the stream of images without labels will need, before a run starts.

    Raises:
        ConfigError: the detector learns from labels alone, or no set is named. DataError: see :func:`load_unlabeled`;
            an image file that is missing, damaged, or of another size than its set says.
    """
    count = cfg.DATALOADER.UNLABELED_PER_BATCH
    if not count:
        return
    if cfg.MODEL.META_ARCHITECTURE in CLASS_NODES:
        raise ConfigError(
            f"DATALOADER.UNLABELED_PER_BATCH is {count}, and MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} is "
            "trained on labels alone. Set the first to 0, or distil: MODEL.META_ARCHITECTURE DistillDetector."
        )
    for name, records in unlabeled_sets(cfg).items():
        check_image_files(records, f"{KEY} {name}")
    load_unlabeled(cfg, *divide_labels(cfg, load_records(cfg)))


def registered(name: str) -> list[dict]:
    """The records of a set of ``DATASETS.UNLABELED``.

    Raises:
        DataError: it is not registered, or has no image.
    """
    if name not in DatasetCatalog:
        raise DataError(
            f"{KEY} has {name!r}, which is not registered. Add [name, annotation file or nothing, image folder] to "
            "DATASETS.REGISTER."
        )
    return load_images(name, KEY)


def unlabeled_sets(cfg: CfgNode) -> dict[str, list[dict]]:
    """The records of each set of ``DATASETS.UNLABELED`` that a run uses, but for what ``LABELED_SHARE`` leaves."""
    names = [name for name in cfg.DATASETS.UNLABELED if name != REST] if cfg.DATALOADER.UNLABELED_PER_BATCH else []
    return {name: registered(name) for name in names}


def _check_apart(records: Sequence[dict], others: Sequence[dict], what: str) -> None:
    """Raises DataError where images of two sets have the same content.

    Files are compared by size first, so that few have to be read.
    """
    by_size: dict[int, list[str]] = {}
    for record in others:
        by_size.setdefault(file_bytes(record["file_name"]), []).append(record["file_name"])
    known: dict[int, dict[str, str]] = {}
    same = []
    for record in records:
        size = file_bytes(record["file_name"])
        if size not in by_size:
            continue
        if size not in known:
            known[size] = {content_hash(file): file for file in by_size[size]}
        twin = known[size].get(content_hash(record["file_name"]))
        if twin is not None:
            same.append(f"{record['file_name']} is {twin}")
    if same:
        raise DataError(
            f"DATASETS.UNLABELED has {len(same)} images whose content is {what}: {first(same, _NAMED)}. "
            "Take them out of one of the sets."
        )
