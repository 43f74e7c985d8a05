"""What a folder of predictions says of itself: which detector, which images, which settings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import DataError, first
from ..image_files import THREADS, content_hash, file_bytes

DESCRIPTION = "predictions.json"


class StoredImage(NamedTuple):
    """An image as its data set describes it, and what its file holds: by this images of equal ids are told apart.

    Attributes:
        bytes: length of the file. content: its SHA-256; empty where a store of an earlier version has neither, or the
            file lies behind an address.
    """

    id: int | str
    file_name: str
    width: int
    height: int
    bytes: int = 0
    content: str = ""

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> StoredImage:
        """The image of a record in detectron2's dataset format, unread; its file's name without the folder."""
        name = os.path.basename(record["file_name"])
        return cls(record["image_id"], name, record["width"], record["height"])

    @property
    def described(self) -> tuple[int | str, str, int, int]:
        """Id, file name, width and height."""
        return self[:4]


def shared_id(images: Iterable[tuple[int | str, str]]) -> tuple[int | str, str, str] | None:
    """An id that two files have, and these; None where ids tell all images apart.

    Args:
        images: id and file of each.
    """
    files: dict[int | str, str] = {}
    for image_id, file in images:
        known = files.setdefault(image_id, file)
        if known != file:
            return image_id, known, file
    return None


def read_images(records: Sequence[Mapping[str, Any]]) -> list[StoredImage]:
    """The images of records with what their files hold.

    Raises:
        DataError: a file cannot be read.
    """

    def read(record: Mapping[str, Any]) -> StoredImage:
        file = record["file_name"]
        if "://" in file:
            return StoredImage.of(record)
        return StoredImage.of(record)._replace(bytes=file_bytes(file), content=content_hash(file))

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(read, records))


def hash_images(images: Iterable[StoredImage]) -> str:
    """SHA-256 of a data set: of its images' ids, names, sizes and content, in order."""
    return hashlib.sha256(json.dumps(list(images)).encode()).hexdigest()


@dataclass(frozen=True)
class Description:
    """What the parts of a store have in common.

    Attributes:
        class_names: of the logits, in order. activation: "sigmoid" or "softmax" (then a last column is "no object").
        layers: L. queries: Q, of the image with the most. best_classes: k; 0: all are kept. dtype: of the numbers.
        images: of all parts. part_images: of each part but the last.
        data: names of the data sets, or folders. teacher: SHA-256 of the detector's weights.
        maps: name -> channels of the maps that are kept; a store of an earlier version has none.
        dataset: :func:`hash_images` of the images. settings: key -> value of what decides, beside the weights, what the
            detector says of an image. Both are empty in a store of an earlier version.
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
    dataset: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    maps: Mapping[str, int] = field(default_factory=dict)

    @property
    def parts(self) -> int:
        return -(-self.images // self.part_images)

    @property
    def digest(self) -> str:
        """Stands in each part, so that none of another store is taken for one of this."""
        content = dataclasses.asdict(self)
        if not self.maps:  # as before there were any
            del content["maps"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def differences(self, other: Description) -> list[str]:
        """In what two descriptions differ, in words; the names of the sets do not count, nor a key that one lacks."""
        names = [entry.name for entry in dataclasses.fields(self) if entry.name not in ("data", "settings")]
        found = [name for name in names if vars(self)[name] != vars(other)[name]]
        shared = sorted(self.settings.keys() & other.settings.keys())
        pairs = ((key, self.settings[key], other.settings[key]) for key in shared)
        return [*found, *(f"{key} ({mine} there, {its} now)" for key, mine, its in pairs if mine != its)]


def read_description(folder: Path) -> Description:
    """The description of a store.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = folder / DESCRIPTION
    try:
        content = json.loads(path.read_text())
        described = Description(**content)
        dict(described.settings), dict(described.maps)
        return dataclasses.replace(described, class_names=tuple(described.class_names), data=tuple(described.data))
    except FileNotFoundError as error:
        raise DataError(f"{folder} holds no {DESCRIPTION}. Name a folder that tools/predict.py wrote.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged, or of a later version: {error}. Make the folder again with tools/predict.py."
        ) from error


def check_goes_on(folder: Path, found: Description, described: Description) -> None:
    """Raises DataError where a call would add predictions to a folder that holds others."""
    other = found.differences(described)
    if not found.dataset:
        raise DataError(
            f"{folder} holds predictions of an earlier version, which did not keep the settings and the content of the "
            "images that they were made with, so that none can be added. A finished folder still teaches; otherwise "
            "choose another --output, or remove the folder."
        )
    if other:
        raise DataError(
            f"{folder} holds other predictions, which differ in {first(other)}. Choose another --output, or remove the "
            "folder."
        )
