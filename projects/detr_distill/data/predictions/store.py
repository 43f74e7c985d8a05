"""Predictions of a detector on many images, kept on disk: a folder of memory-mapped parts and a description.

Letters: N images of a part, L decoder layers, Q queries, K class scores, k of them that are kept.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...checkpoint.writing import write_atomically
from ...errors import DataError

DESCRIPTION = "predictions.json"
NOTHING = -20.0  # logit of a class that was not kept: its probability is 2e-9
DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Description:
    """What the parts of a store have in common.

    Attributes:
        class_names: of the logits, in order. activation: "sigmoid" or "softmax" (then a last column is "no object").
        layers: L. queries: Q, of the image with the most. best_classes: k; 0: all are kept. dtype: of the numbers.
        images: of all parts. part_images: of each part but the last.
        data: names of the data sets, or folders. teacher: SHA-256 of the detector's weights.
    """

    class_names: tuple[str, ...]
    activation: str
    layers: int
    queries: int
    best_classes: int
    dtype: str
    images: int
    part_images: int
    data: tuple[str, ...]
    teacher: str

    @property
    def parts(self) -> int:
        return -(-self.images // self.part_images)


class StoredImage(NamedTuple):
    """An image as its data set describes it: by this a set is told from another that has the same ids."""

    id: int | str
    file_name: str
    width: int
    height: int

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> StoredImage:
        """The image of a record in detectron2's dataset format; its file's name without the folder."""
        name = os.path.basename(record["file_name"])
        return cls(record["image_id"], name, record["width"], record["height"])


@dataclass
class StoredPredictions:
    """Predictions of some images, on the host.

    Attributes:
        logits: (L, B, Q, K) float32. boxes: (L, B, Q, 4) float32, shares of the image as it is in its file.
        counts: how many queries each image has; those behind are padding.
    """

    logits: Tensor
    boxes: Tensor
    counts: list[int]


class PredictionStore:
    """Reads a folder that :func:`write_part` filled.

    Args:
        folder: with the description and every part that it names.

    Raises:
        DataError: no such folder, damaged, or not finished.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self.description = read_description(self.folder)
        absent = [n for n in range(self.description.parts) if not part_file(self.folder, n).is_file()]
        if absent:
            raise DataError(
                f"{self.folder} has {self.description.parts - len(absent)} of {self.description.parts} parts: the "
                "program that made it was stopped. Start it again with the same command; it goes on where it was."
            )
        self._files = [_open(part_file(self.folder, n)) for n in range(self.description.parts)]
        self.images: dict[int | str, StoredImage] = {}
        self._places: dict[int | str, tuple[int, int]] = {}
        for n, file in enumerate(self._files):
            for row, image in enumerate(_images_of(part_file(self.folder, n), file)):
                self.images[image.id], self._places[image.id] = image, (n, row)

    def __contains__(self, image_id: int | str) -> bool:
        return image_id in self._places

    def read(self, image_ids: Sequence[int | str]) -> StoredPredictions:
        """The predictions of some images, in this order.

        Raises:
            KeyError: an image that is not in the store.
        """
        found = [self._read_row(*self._places[image_id]) for image_id in image_ids]
        logits, boxes, counts = zip(*found, strict=True)
        return StoredPredictions(torch.stack(logits, dim=1), torch.stack(boxes, dim=1), list(counts))

    def _read_row(self, part: int, row: int) -> tuple[Tensor, Tensor, int]:
        file, described = self._files[part], self.description
        logits = file.get_slice("logits")[row : row + 1][0].float()
        if described.best_classes:
            kept = file.get_slice("classes")[row : row + 1][0].long()
            width = len(described.class_names)
            logits = logits.new_full((*logits.shape[:2], width), NOTHING).scatter_(-1, kept, logits)
        count = int(file.get_slice("counts")[row : row + 1][0])
        return logits, file.get_slice("boxes")[row : row + 1][0].float(), count


def read_description(folder: Path) -> Description:
    """The description of a store.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = folder / DESCRIPTION
    try:
        content = json.loads(path.read_text())
        described = Description(**content)
        return dataclasses.replace(described, class_names=tuple(described.class_names), data=tuple(described.data))
    except FileNotFoundError as error:
        raise DataError(f"{folder} holds no {DESCRIPTION}. Name a folder that tools/predict.py wrote.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}. Make the folder again with tools/predict.py.") from error


def part_file(folder: Path, number: int) -> Path:
    """File of a part, counted from 0."""
    return folder / f"part-{number:05d}.safetensors"


def missing_parts(folder: Path, described: Description) -> Iterator[int]:
    """Starts or goes on with a store: the parts that are still to be written.

    Raises:
        DataError: the folder holds another store.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / DESCRIPTION
    if path.exists():
        found = read_description(folder)
        other = [
            field.name for field in dataclasses.fields(found) if vars(found)[field.name] != vars(described)[field.name]
        ]
        if other:
            raise DataError(
                f"{folder} holds other predictions, which differ in {', '.join(other)}. Choose another --output, or "
                "remove the folder."
            )
    else:
        text = json.dumps(dataclasses.asdict(described), indent=2)
        write_atomically(path, lambda file: file.write(text.encode()))
    return (n for n in range(described.parts) if not part_file(folder, n).is_file())


def write_part(
    folder: Path, number: int, described: Description, images: Sequence[StoredImage], values: Mapping[str, Tensor]
) -> None:
    """Writes one part, whole or not at all.

    Args:
        images: N. values: ``logits`` (N, L, Q, K), ``boxes`` (N, L, Q, 4) shares of the image, ``counts`` (N,) long.
    """
    dtype = DTYPES[described.dtype]
    tensors = {"counts": values["counts"], "boxes": values["boxes"].to(dtype)}
    if described.best_classes:
        logits, classes = values["logits"].topk(described.best_classes, dim=-1)
        tensors |= {"logits": logits.to(dtype), "classes": classes.to(torch.int16)}
    else:
        tensors["logits"] = values["logits"].to(dtype)
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    content = safetensors.torch.save(tensors, {"images": json.dumps(images)})
    write_atomically(part_file(folder, number), lambda file: file.write(content))


def _images_of(path: Path, file: safe_open) -> list[StoredImage]:
    try:
        return [StoredImage(*entry) for entry in json.loads((file.metadata() or {})["images"])]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} does not name its images ({error!r}): another version wrote it, or it is damaged. Remove the "
            "folder and make it again with tools/predict.py."
        ) from error


def _open(path: Path) -> safe_open:
    try:
        return safe_open(str(path), "pt")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} is damaged: {error}. Remove it and start tools/predict.py again.") from error
