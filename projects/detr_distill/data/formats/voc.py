"""Pascal VOC: one XML file for each image.

Corners are whole pixels counted from 1 in VOC's own sets, both included: a box of one pixel has xmin = xmax. In COCO's
continuous coordinates that is x = xmin - 1, width = xmax - xmin + 1. Many programs count from 0 instead.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from ...errors import DataError
from ..image_files import upright_size
from .content import IMAGE_SUFFIXES, Content, Labelled

logger = logging.getLogger(__name__)

_NAMED = 3
_FLAGS = {"0": False, "false": False, "1": True, "true": True}


@dataclass(frozen=True)
class VocRules:
    """What the format leaves open.

    Attributes:
        first_pixel: 1 or 0, the number of an image's first pixel. difficult: objects that are marked so are kept
            ("keep"), dropped ("drop"), or neither learned nor counted ("ignore").
        names: the classes, in order; empty: those of the files, sorted.
    """

    first_pixel: int = 1
    difficult: str = "ignore"
    names: tuple[str, ...] = ()


def read_voc(annotations: str, image_folder: str, rules: VocRules) -> dict:
    """A VOC set as the content of a COCO instances file.

    Args:
        annotations: a folder of XML files, or a list of their names without suffix (``ImageSets/Main/train.txt``),
            whose XML files lie in ``Annotations`` two folders up, or beside the images.
        image_folder: where the images are; each has the name of its XML file.

    Raises:
        DataError: with file and line: not XML, none of VOC's, an object without class or corners, corners that are no
            numbers or in the wrong order, a class that ``rules.names`` lacks, a size that is not the image's, no such
            image.
    """
    files = [_parse(path) for path in _xml_files(Path(annotations), Path(image_folder))]
    objects = [list(_read_objects(file, rules)) for file in files]
    found = {item.name for entry in objects for item in entry}
    content = Content("DATASETS.CLASS_NAMES" if rules.names else annotations, rules.names or tuple(sorted(found)))
    for item in (item for entry in objects for item in entry):
        if item.name not in content.names:
            raise DataError(
                f"{item.place}: the class {item.name!r} is not in DATASETS.CLASS_NAMES {list(content.names)}. "
                "Add it there, or correct the file."
            )
    images = _images_by_stem(Path(image_folder))
    without_size = []
    for file, entry in zip(files, objects, strict=True):
        image = _image_of(file.path, images, Path(image_folder))
        size = upright_size(Path(image_folder) / image)
        if not _has_size(file, size, image):
            without_size.append(file.path.name)
        content.add(image, size, entry)
    if without_size:
        shown = ", ".join(without_size[:_NAMED])
        logger.warning(
            "%s: %d XML files name no size (%s); the images' own is taken.", annotations, len(without_size), shown
        )
    return content.as_coco()


def _xml_files(annotations: Path, image_folder: Path) -> Iterator[Path]:
    if annotations.is_dir():
        yield from sorted(annotations.glob("*.xml"))
        return
    folders = [annotations.parent.parent.parent / "Annotations", annotations.parent / "Annotations", image_folder]
    for number, line in enumerate(_read_text(annotations).splitlines(), 1):
        words = line.split()  # a list of one class has 1 or -1 behind the name
        if not words:
            continue
        file = next((f / f"{words[0]}.xml" for f in folders if (f / f"{words[0]}.xml").is_file()), None)
        if file is None:
            raise DataError(
                f"{annotations}, line {number}: there is no {words[0]}.xml in {', '.join(map(str, folders))}. "
                "Put it there, or take the line out."
            )
        yield file


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Correct the path, or save the file as UTF-8.") from error


@dataclass(frozen=True)
class _File:
    """An XML file; ``lines`` are those on which its objects begin, which the parser does not tell."""

    path: Path
    root: ElementTree.Element
    lines: list[int]


def _parse(path: Path) -> _File:
    text = _read_text(path)
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(
            f"{path}, line {error.position[0]}: not XML ({error}). Restore it, or export it again."
        ) from error
    if root.tag != "annotation":
        raise DataError(
            f"{path} is no annotation of Pascal VOC: it is a <{root.tag}>. Take it out of the folder, or "
            "export it again."
        )
    return _File(path, root, _lines_of_objects(text))


def _lines_of_objects(text: str) -> list[int]:
    lines: list[int] = []
    parser = expat.ParserCreate(namespace_separator="}")

    def note(name: str, _: dict[str, str]) -> None:
        if name == "object":
            lines.append(parser.CurrentLineNumber)

    parser.StartElementHandler = note
    parser.Parse(text, True)
    return lines


def _read_objects(file: _File, rules: VocRules) -> Iterator[Labelled]:
    for line, item in zip(file.lines, file.root.iter("object"), strict=True):
        place = f"{file.path}, line {line}"
        name = (item.findtext("name") or "").strip()
        if not name:
            raise DataError(f"{place}: the object has no <name>. Give it one, or remove the object.")
        difficult = _is_difficult(item, place)
        if not (difficult and rules.difficult == "drop"):
            yield Labelled(place, name, _box(item, place, rules), difficult and rules.difficult == "ignore")


def _is_difficult(item: ElementTree.Element, place: str) -> bool:
    text = (item.findtext("difficult") or "0").strip().lower()
    if text not in _FLAGS:
        raise DataError(f"{place}: <difficult> is {text!r}; expected 0 or 1. Correct the object.")
    return _FLAGS[text]


def _box(item: ElementTree.Element, place: str, rules: VocRules) -> tuple[float, float, float, float]:
    texts = [item.findtext(f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")]
    try:
        left, top, right, bottom = (float(text or "") for text in texts)
    except ValueError as error:
        raise DataError(
            f"{place}: <bndbox> has xmin, ymin, xmax, ymax {texts}; expected four numbers. Correct the object."
        ) from error
    if not all(math.isfinite(value) for value in (left, top, right, bottom)) or right < left or bottom < top:
        raise DataError(f"{place}: <bndbox> {texts} ends before it begins. Correct the object, or remove it.")
    if min(left, top) < rules.first_pixel:
        raise DataError(
            f"{place}: <bndbox> {texts} begins before pixel {rules.first_pixel}. Set DATASETS.VOC_FIRST_PIXEL 0 if the "
            "files count pixels from 0, or correct the object."
        )
    # Both corners are pixels of the object where counting begins at 1; programs that count from 0 write edges.
    first = rules.first_pixel
    return left - first, top - first, right - left + first, bottom - top + first


def _images_by_stem(folder: Path) -> dict[str, list[str]]:
    if not folder.is_dir():
        raise DataError(f"There is no image folder {folder}. Correct the path in DATASETS.REGISTER.")
    images: dict[str, list[str]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.suffix.lower() in IMAGE_SUFFIXES:
            images.setdefault(entry.stem, []).append(entry.name)
    return images


def _image_of(file: Path, images: dict[str, list[str]], folder: Path) -> str:
    """The image of an XML file's own name: what it holds as <filename> is often that of another machine."""
    found: Sequence[str] = images.get(file.stem, ())
    if len(found) != 1:
        kind = f"several images ({', '.join(found)})" if found else "no image"
        raise DataError(
            f"{file}: the folder {folder} has {kind} of the name {file.stem}. There must be one: correct the image "
            "folder in DATASETS.REGISTER, or the folder."
        )
    return found[0]


def _has_size(file: _File, size: tuple[int, int], image: str) -> bool:
    """False where the XML file names no size; raises DataError where it names another than the image's."""
    texts = [(file.root.findtext(f"size/{side}") or "0").strip() for side in ("width", "height")]
    if texts == ["0", "0"]:
        return False
    if texts != [str(side) for side in size]:
        raise DataError(
            f"{file.path}: <size> is {' x '.join(texts)}, but the image {image} is {size[0]} x {size[1]} pixels: the "
            "boxes may be of another image. Correct the file, or restore the image."
        )
    return True
