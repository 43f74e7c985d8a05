"""Which images a run trains on, and where a file of predictions has them."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ...errors import DataError, first
from ..image_files import SECONDS, THREADS, content_hash, file_bytes
from ..records import load_records
from ..unlabeled import unlabeled_sets
from .description import StoredImage, shared_id
from .store import PredictionStore

logger = logging.getLogger(__name__)


class TrainingImage(NamedTuple):
    """An image of a run: where its file is, and how its data set describes it."""

    file: str
    image: StoredImage


@dataclass(frozen=True)
class TrainingImages:
    """Images of ``DATASETS.TRAIN`` and, where a run uses them, of ``DATASETS.UNLABELED``.

    Attributes:
        source: names of the sets, for messages. images: of all sets; several sets may share ids.
        categories: category id of the annotation file -> class, 0, 1, ...
    """

    source: str
    images: Sequence[TrainingImage]
    categories: Mapping[int, int]

    @property
    def sizes(self) -> dict[int | str, tuple[int, int]]:
        """Image id -> (width, height)."""
        return {image.id: (image.width, image.height) for _, image in self.images}

    def check_ids(self, key: str) -> None:
        """Raises DataError where two images have one id, by which alone COCO's results know them."""
        shared = shared_id((image.id, file) for file, image in self.images)
        if shared is not None:
            raise DataError(
                f"{key}: image id {shared[0]} is of {shared[1]} and of {shared[2]}, and a .json file knows images by "
                f"id alone. Give the images of {self.source} different ids, or let tools/predict.py write a folder, "
                "which tells them apart."
            )

    def rows_in(self, store: PredictionStore, key: str) -> dict[tuple[int | str, str], int]:
        """Row of each image in a store, by id and file.

        An image is that of its id, file name and size; where several are, its content tells which.

        Raises:
            DataError: images are not stored, or others under their ids, or of another content; ``key`` names the place.
        """
        found = [_rows_of(image, store) for _, image in self.images]
        self._check_all_found(found, store, key)
        rows = [
            rows[0] if len(rows) == 1 else _row_by_content(file, rows, store, key)
            for (file, _), rows in zip(self.images, found, strict=True)
        ]
        pairs = [(file, store.images[row]) for (file, _), row in zip(self.images, rows, strict=True)]
        check_content(pairs, key)
        return {(image.id, file): row for (file, image), row in zip(self.images, rows, strict=True)}

    def _check_all_found(self, found: Sequence[Sequence[int]], store: PredictionStore, key: str) -> None:
        lost = [image for (_, image), rows in zip(self.images, found, strict=True) if not rows]
        absent = [image.id for image in lost if image.id not in store]
        if absent:
            raise DataError(
                f"{key} has nothing of {len(absent)} of the {len(self.images)} images of {self.source} (ids "
                f"{first(absent)}). "
                "Is it of another data set? Make it anew with tools/predict.py on this one."
            )
        if lost:
            theirs = store.images[store.rows[lost[0].id][0]]
            raise DataError(
                f"{key} is of another data set: {len(lost)} of the {len(self.images)} images of {self.source} have "
                f"another file or size there, the first of them with the id {theirs.id}: {theirs.file_name} of "
                f"{theirs.width} x {theirs.height} pixels instead of {lost[0].file_name} of {lost[0].width} x "
                f"{lost[0].height}. Make it anew with tools/predict.py on this set."
            )


def _rows_of(image: StoredImage, store: PredictionStore) -> list[int]:
    rows = store.rows.get(image.id, ())
    return [row for row in rows if store.images[row].described == image.described]


def _row_by_content(file: str, rows: Sequence[int], store: PredictionStore, key: str) -> int:
    content = content_hash(file)
    same = [row for row in rows if store.images[row].content == content]
    if not same:
        raise DataError(
            f"{key} has {len(rows)} images of the id, name and size of {file}, and "
            + ("none of its content." if store.description.dataset else "an earlier version wrote it, without content.")
            + " Make it anew with tools/predict.py."
        )
    return same[0]


def check_content(pairs: Sequence[tuple[str, StoredImage]], key: str, seconds: float = SECONDS) -> None:
    """Whether image files hold what they did when they were looked at.

    The length of every file is compared, and the content of as many as can be read in time, in random order.

    Args:
        pairs: files with what a store knows of them. key: names the store. seconds: no further file is read after them.

    Raises:
        DataError: some hold something else.
    """
    known = [(file, image) for file, image in pairs if image.content]
    if not known:
        logger.warning(
            "%s was written by an earlier version, which did not keep what its images hold: they are known by id, file "
            "name and size alone. If pictures were replaced since, make it anew.",
            key,
        )
        return
    deadline = time.monotonic() + seconds

    def same(pair: tuple[str, StoredImage]) -> bool | None:
        return content_hash(pair[0]) == pair[1].content if time.monotonic() < deadline else None

    changed = [file for file, image in known if file_bytes(file) != image.bytes]
    read: list[bool | None] = []
    if not changed:
        known = random.Random(0).sample(known, len(known))
        with ThreadPoolExecutor(THREADS) as pool:
            read = list(pool.map(same, known))
        changed = [file for (file, _), equal in zip(known, read, strict=True) if equal is False]
    if changed:
        raise DataError(
            f"{key} was made of other pictures: {len(changed)} image files hold something else than when they were "
            f"looked at: {first(changed)}. Restore them, or make it anew with tools/predict.py."
        )
    if None in read:
        logger.info("%s: the content of %d of %d images was compared.", key, len(read) - read.count(None), len(read))


def training_images(cfg: CfgNode) -> TrainingImages:
    """The images that a run trains on.

    Raises:
        DataError: see ``load_records``.
    """
    others = unlabeled_sets(cfg)
    records = [*load_records(cfg), *(record for found in others.values() for record in found)]
    source = ", ".join([*cfg.DATASETS.TRAIN, *others])
    images = [TrainingImage(record["file_name"], StoredImage.of(record)) for record in records]
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    classes = range(len(metadata.get("thing_classes") or ()))
    categories = metadata.get("thing_dataset_id_to_contiguous_id") or {index: index for index in classes}
    return TrainingImages(source, images, categories)
