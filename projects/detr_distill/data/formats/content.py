"""What every format is turned into: the content of a COCO instances file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ...checkpoint.class_names import names_twice
from ...errors import DataError, first
from ..bad_boxes import PLACE
from ..image_files import upright_size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Labelled:
    """An object as a file of labels has it.

    Attributes:
        place: file and line, for messages. name: of its class.
        box: x, y, width, height, pixels. ignored: neither learned nor counted, as a crowd of COCO's.
    """

    place: str
    name: str
    box: tuple[float, float, float, float]
    ignored: bool = False


@dataclass
class Content:
    """Images and objects on their way into COCO's instances; ids are numbers from 1 in the order of adding.

    Attributes:
        source: file of the set, for messages. names: of the classes, in order.

    Raises:
        DataError: a class or, when it is added, an image stands twice.
    """

    source: str
    names: tuple[str, ...]
    images: list[dict] = field(default_factory=list)
    annotations: list[dict] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        twice = names_twice(self.names)
        if twice:
            raise DataError(f"{self.source} names the class {first(map(repr, twice))} more than once. Name each once.")

    def add(self, file_name: str, size: tuple[int, int], objects: Iterable[Labelled]) -> None:
        """An image and its objects, whose classes are in ``names``.

        Args:
            file_name: of the image, below its folder. size: (width, height) in pixels.
        """
        if file_name in self._known:
            raise DataError(f"{self.source} names the image {file_name} more than once. Name each once.")
        self._known.add(file_name)
        image = {"id": len(self.images) + 1, "file_name": file_name, "width": size[0], "height": size[1]}
        self.images.append(image)
        for item in objects:
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": image["id"],
                    "category_id": self.names.index(item.name) + 1,
                    "bbox": list(item.box),
                    "area": item.box[2] * item.box[3],
                    "iscrowd": int(item.ignored),
                    PLACE: os.path.basename(item.place),
                }
            )

    def as_coco(self) -> dict:
        categories = [{"id": number, "name": name} for number, name in enumerate(self.names, 1)]
        return {"images": self.images, "annotations": self.annotations, "categories": categories}


def list_images(folder: Path, source: str, key: str = "DATASETS.REGISTER") -> list[str]:
    """Names of the images below a folder, its subfolders included, sorted; relative to it. ``key`` names it.

    Raises:
        DataError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DataError(f"{source}: there is no image folder {folder}. Correct the path in {key}.")
    found = [
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(IMAGE_SUFFIXES)
    ]
    if not found:
        raise DataError(f"{source}: the image folder {folder} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
    return sorted(found)


def image_records(*paths: str, key: str = "DATASETS.REGISTER") -> list[dict]:
    """Images, those below folders included, in detectron2's dataset format, without annotations; ids count from 1.

    Args:
        paths: of files and folders. key: that names them, for messages.

    Raises:
        DataError: nothing is at a path, no image in a folder, or something that is no image.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        files += [path] if path.is_file() else [path / name for name in list_images(path, key, key)]
    records = []
    for number, file in enumerate(files, 1):
        width, height = upright_size(file)
        records.append({"file_name": str(file), "width": width, "height": height, "image_id": number})
    return records
