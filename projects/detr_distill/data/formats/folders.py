"""Finds a set of one of the formats in a folder, so that nobody need say where in it annotations and images are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from ...errors import DataError, first
from .coco_images import looks_like_coco, place_of_images
from .content import IMAGE_SUFFIXES
from .convert import Format
from .yolo import SPLITS

# The two parts of a set, with what files and folders of them are called.
PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev")}
_VOC_FOLDERS = ("Annotations", "annotations")
_IMAGE_FOLDERS = ("JPEGImages", "images", ".")
_WAYS = (
    "COCO's .json file, YOLO's .yaml file, Pascal VOC's list (ImageSets/Main/train.txt) or folder of .xml files, or a "
    "folder that holds one of these"
)


class Source(NamedTuple):
    """Where a set is, as ``DATASETS.REGISTER`` has it.

    Attributes:
        annotations: file or folder. images: folder or, of YOLO, the name of a part. form: of the annotations.
    """

    annotations: str
    images: str
    form: Format


def find_set(path: str, part: str, key: str, images: str = "") -> Source:
    """The set at a path.

    Args:
        path: of a file of annotations, or of a folder. part: of ``PARTS``, where a folder holds both.
        key: option that names the path, for messages. images: folder of the images, where it is known.

    Raises:
        DataError: nothing is there; the folder holds annotations in none of the formats, in two of them, or several
            files of one; YOLO's labels without the names of their classes; COCO's images are not found.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise DataError(f"{key} {path}: there is nothing there (working folder: {Path.cwd()}). Name {_WAYS}.")
    if place.is_file():
        return _with_images(_of_file(place, part), images, key)
    found = _sets_in(place, part, named=True)
    if not found:
        inner = _part_folder(place, part)
        if inner is not None:
            return find_set(str(inner), part, key, images)
        raise DataError(f"{key} {path}: {_describe(place)} Name {_WAYS}.")
    if len(found) > 1:
        forms = list(dict.fromkeys(source.form.value for source in found))
        what = f"annotations of {' and of '.join(forms)}" if len(forms) > 1 else "several sets"
        raise DataError(
            f"{key} {path} holds {what}: {first(source.annotations for source in found)}. Name the one that is meant "
            "instead of the folder."
        )
    return _with_images(found[0], images, key)


def find_other_part(path: str, part: str, key: str) -> Source | None:
    """The part of a set that stands beside the one which was found at a path; None where there is none for certain."""
    place = Path(path).expanduser()
    if place.is_file():
        source = _of_file(place, part)
        return source if source.form is Format.YOLO and set(PARTS[part]) & set(_content(place)) else None
    found = _sets_in(place, part, named=False)
    if found:
        return _with_images(found[0], "", key) if len(found) == 1 else None
    inner = _part_folder(place, part)
    return find_set(str(inner), part, key) if inner is not None else None


def _sets_in(place: Path, part: str, *, named: bool) -> list[Source]:
    """All that a folder holds for a part; ``named``: also what says nothing of parts."""
    return [source for finder in (_coco_in, _voc_in, _yolo_in) for source in finder(place, part, named)]


def _with_images(source: Source, images: str, key: str) -> Source:
    """The source with the folder of its images, which COCO's file does not tell."""
    if images:
        if not Path(images).expanduser().is_dir():
            raise DataError(f"{key}-images {images}: there is no such folder.")
        return source._replace(images=str(Path(images).expanduser()))
    if source.form is not Format.COCO:
        return source
    return source._replace(images=place_of_images(Path(source.annotations), key))


def _of_file(file: Path, part: str) -> Source:
    suffix = file.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return Source(str(file), _yolo_images(file, part), Format.YOLO)
    if suffix == ".txt":  # a list of Pascal VOC: ImageSets/Main/train.txt
        return Source(str(file), str(_images_beside(file.parent.parent.parent, file.parent)), Format.VOC)
    return Source(str(file), "", Format.COCO)


def _coco_in(place: Path, part: str, named: bool) -> list[Source]:
    files = sorted([*place.glob("*.json"), *place.glob("annotations/*.json")])
    files = [file for file in files if file.name.startswith("instances_")] or files
    files = _of_part([file for file in files if looks_like_coco(file)], part, named)
    return [Source(str(file), "", Format.COCO) for file in files]


def _voc_in(place: Path, part: str, named: bool) -> list[Source]:
    lists = {file.stem: file for file in sorted((place / "ImageSets" / "Main").glob("*.txt"))}
    annotations = next((place / name for name in _VOC_FOLDERS if any((place / name).glob("*.xml"))), None)
    if annotations is None:
        return [Source(str(place), str(place), Format.VOC)] if named and any(place.glob("*.xml")) else []
    images = str(_images_beside(place, annotations))
    names = [*PARTS[part], *(["trainval"] if part == "train" else [])]
    chosen = next((lists[name] for name in names if name in lists), None)
    if chosen is not None:
        return [Source(str(chosen), images, Format.VOC)]
    if lists and named:  # all of the annotations would be those of other parts, too
        raise DataError(
            f"{place} has lists of its parts, {first(file.name for file in lists.values())}, and none called "
            f"{PARTS[part][0]}.txt. Name the list that is meant, such as {next(iter(lists.values()))}."
        )
    return [Source(str(annotations), images, Format.VOC)] if named else []


def _yolo_in(place: Path, part: str, named: bool) -> list[Source]:
    described = [file for file in sorted([*place.glob("*.yaml"), *place.glob("*.yml")]) if "names" in _content(file)]
    told = [file for file in described if set(PARTS[part]) & set(_content(file))]
    if described:
        chosen = told or (described if named else [])
        return [Source(str(file), _yolo_images(file, part), Format.YOLO) for file in chosen]
    images = place / "images" if (place / "images").is_dir() else place
    labels = place / "labels" if (place / "labels").is_dir() else place
    if not named or not _holds_labels(labels, images):
        return []
    for folder in (place.parent, place.parent.parent):
        above = [file for file in sorted(folder.glob("*.yaml")) if "names" in _content(file)]
        if len(above) == 1:
            return [Source(str(above[0]), str(images), Format.YOLO)]
    raise DataError(
        f"{place} holds YOLO's labels, and no .yaml file there or above names their classes. Write {place}/data.yaml "
        "with the line\nnames: [first class, second class, ...]\nand name that file, or the folder."
    )


def _holds_labels(labels: Path, images: Path) -> bool:
    """Whether text files have the names of images, or stand in a folder of their own."""
    texts = {file.stem for file in labels.rglob("*.txt")}
    pictures = {file.stem for file in images.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES}
    return bool(texts & pictures)


def _yolo_images(description: Path, part: str) -> str:
    """The name of a part where YOLO's file has it as it is read, or the folder that is meant."""
    content = _content(description)
    name = next((name for name in PARTS[part] if name in content), part)
    given, root = content.get(name), content.get("path") or ""
    if not isinstance(given, str) or not isinstance(root, str):
        return part
    folder = description.parent / root / given
    # Files of Roboflow name ../train/images for a folder beside them.
    if not folder.is_dir() and given.startswith("../"):
        return str(description.parent / given.removeprefix("../"))
    return name if name in SPLITS else str(folder)


def _content(file: Path) -> dict:
    """Of a YAML file; nothing where it is none: what is wrong with a set's own file its reader says."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _of_part(files: Sequence[Path], part: str, named: bool) -> list[Path]:
    """Those whose names say the part, else those that say none; all where the path was given for the part alone."""
    said = {file: _part_of(file) for file in files}
    mine = [file for file in files if said[file] == part]
    if mine or not named:
        return mine
    return [file for file in files if not said[file]] or list(files)


def _part_of(file: Path) -> str:
    words = re.split(r"[^a-z]+", file.stem.lower())
    return next((part for part, names in PARTS.items() if set(names) & set(words)), "")


def _part_folder(place: Path, part: str) -> Path | None:
    folders = [place / middle / name for middle in ("", "images") for name in PARTS[part]]
    return next((folder for folder in folders if folder.is_dir()), None)


def _images_beside(place: Path, otherwise: Path) -> Path:
    """The folder of Pascal VOC's images."""
    for name in _IMAGE_FOLDERS:
        folder = place / name
        if folder.is_dir() and any(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.iterdir()):
            return folder
    return otherwise


def _describe(place: Path) -> str:
    names = sorted(f"{file.name}/" if file.is_dir() else file.name for file in place.iterdir())
    return f"it holds {first(names)}, and no annotations that are known." if names else "it is empty."
