"""Which images a run trains on, by the ids under which files of predictions know them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ...errors import DataError, first
from ..records import load_records
from ..unlabeled import REST, registered


@dataclass(frozen=True)
class TrainingImages:
    """Images of ``DATASETS.TRAIN`` and, where a run uses them, of ``DATASETS.UNLABELED``.

    Attributes:
        source: names of the sets, for messages. sizes: image id -> (width, height).
        categories: category id of the annotation file -> class, 0, 1, ...
    """

    source: str
    sizes: Mapping[int, tuple[int, int]]
    categories: Mapping[int, int]

    def check_all_in(self, image_ids: Collection[int], key: str) -> None:
        """Raises DataError where some images are not among ``image_ids``; ``key`` names what should hold them."""
        absent = [image_id for image_id in self.sizes if image_id not in image_ids]
        if absent:
            raise DataError(
                f"{key} has nothing of {len(absent)} of the {len(self.sizes)} images of {self.source} (ids "
                f"{first(absent)}). "
                "Is it of another data set? Make it anew with tools/predict.py on this one."
            )


def training_images(cfg: CfgNode) -> TrainingImages:
    """The images that a run trains on.

    Raises:
        DataError: see ``load_records``; two sets use the same id for two images.
    """
    others = [name for name in cfg.DATASETS.UNLABELED if name != REST] if cfg.DATALOADER.UNLABELED_PER_BATCH else []
    records = [*load_records(cfg), *(record for name in others for record in registered(name))]
    source = ", ".join([*cfg.DATASETS.TRAIN, *others])
    sizes: dict[int, tuple[int, int]] = {}
    files: dict[int, str] = {}
    for record in records:
        image_id = record["image_id"]
        if files.setdefault(image_id, record["file_name"]) != record["file_name"]:
            raise DataError(
                f"{source}: image id {image_id} is of {files[image_id]} and of {record['file_name']}, "
                "and predictions are found by id. Give the images of all sets different ids."
            )
        sizes[image_id] = (record["width"], record["height"])
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    classes = range(len(metadata.get("thing_classes") or ()))
    categories = metadata.get("thing_dataset_id_to_contiguous_id") or {index: index for index in classes}
    return TrainingImages(source, sizes, categories)
