"""Which images a run trains on, by the ids under which files of predictions know them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ...errors import DataError, first
from ..records import load_records
from ..unlabeled import REST, registered
from .store import StoredImage


@dataclass(frozen=True)
class TrainingImages:
    """Images of ``DATASETS.TRAIN`` and, where a run uses them, of ``DATASETS.UNLABELED``.

    Attributes:
        source: names of the sets, for messages. images: by their ids.
        categories: category id of the annotation file -> class, 0, 1, ...
    """

    source: str
    images: Mapping[int | str, StoredImage]
    categories: Mapping[int, int]

    @property
    def sizes(self) -> dict[int | str, tuple[int, int]]:
        """Image id -> (width, height)."""
        return {image.id: (image.width, image.height) for image in self.images.values()}

    def check_all_in(self, stored: Mapping[int | str, StoredImage], key: str) -> None:
        """Raises DataError where images are not stored, or others under their ids; ``key`` names the place."""
        absent = [image_id for image_id in self.images if image_id not in stored]
        if absent:
            raise DataError(
                f"{key} has nothing of {len(absent)} of the {len(self.images)} images of {self.source} (ids "
                f"{first(absent)}). "
                "Is it of another data set? Make it anew with tools/predict.py on this one."
            )
        other = [image for image in self.images.values() if stored[image.id] != image]
        if other:
            theirs = stored[other[0].id]
            raise DataError(
                f"{key} is of another data set: {len(other)} of the {len(self.images)} images of {self.source} have "
                f"another file or size there, the first of them with the id {theirs.id}: {theirs.file_name} of "
                f"{theirs.width} x {theirs.height} pixels instead of {other[0].file_name} of {other[0].width} x "
                f"{other[0].height}. Make it anew with tools/predict.py on this set."
            )


def training_images(cfg: CfgNode) -> TrainingImages:
    """The images that a run trains on.

    Raises:
        DataError: see ``load_records``; two sets use the same id for two images.
    """
    others = [name for name in cfg.DATASETS.UNLABELED if name != REST] if cfg.DATALOADER.UNLABELED_PER_BATCH else []
    records = [*load_records(cfg), *(record for name in others for record in registered(name))]
    source = ", ".join([*cfg.DATASETS.TRAIN, *others])
    images: dict[int | str, StoredImage] = {}
    files: dict[int | str, str] = {}
    for record in records:
        image_id = record["image_id"]
        if files.setdefault(image_id, record["file_name"]) != record["file_name"]:
            raise DataError(
                f"{source}: image id {image_id} is of {files[image_id]} and of {record['file_name']}, "
                "and predictions are found by id. Give the images of all sets different ids."
            )
        images[image_id] = StoredImage.of(record)
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    classes = range(len(metadata.get("thing_classes") or ()))
    categories = metadata.get("thing_dataset_id_to_contiguous_id") or {index: index for index in classes}
    return TrainingImages(source, images, categories)
