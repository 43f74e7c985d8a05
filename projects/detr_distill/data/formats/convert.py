"""Recognises a set's format, and keeps the sets of other formats as COCO files in the user's cache."""

from __future__ import annotations

import enum
import hashlib
import json
from functools import cache
from pathlib import Path

from ...checkpoint.writing import write_atomically
from ...errors import DataError
from ..check_cache import cache_folder
from .voc import VocRules, read_voc
from .yolo import read_yolo


class Format(enum.Enum):
    """How a set's annotations are written."""

    COCO = "COCO"
    VOC = "Pascal VOC"
    YOLO = "YOLO"


def recognise(annotations: str) -> Format:
    """The format that a set's annotations have, by the name of their file or by what their folder holds.

    Raises:
        DataError: the name says none of the three, or the folder holds files of none or of two of them.
    """
    path = Path(annotations)
    if path.is_dir():
        found = [form for suffix, form in (("xml", Format.VOC), ("txt", Format.YOLO)) if any(path.glob(f"*.{suffix}"))]
        if found == [Format.VOC]:
            return Format.VOC
        raise DataError(
            f"DATASETS.REGISTER: the folder {path} holds "
            + {0: "no annotations.", 1: "YOLO's labels.", 2: "both .xml and .txt files."}[len(found)]
            + " Name a folder of Pascal VOC's .xml files, COCO's .json file, or YOLO's .yaml file."
        )
    by_suffix = {".json": Format.COCO, ".yaml": Format.YOLO, ".yml": Format.YOLO, ".txt": Format.VOC}
    # Whatever else a file is called, its content decides: reading it as COCO's says what is wrong.
    return by_suffix.get(path.suffix.lower(), Format.COCO)


@cache
def as_coco_file(annotations: str, image_folder: str, rules: VocRules | None = None) -> tuple[str, str]:
    """The COCO annotation file and the image folder of a set in any of the formats.

    A set of another format is read once in a process, which takes a tenth of a second for 1,000 images, and written to
    the cache under its content's hash where it is not there yet.

    Args:
        annotations, image_folder: of an entry of ``DATASETS.REGISTER``. rules: for Pascal VOC.

    Raises:
        DataError: see :func:`recognise`, :func:`read_voc`, :func:`read_yolo`.
    """
    form = recognise(annotations)
    if form is Format.COCO:
        return annotations, image_folder
    if form is Format.VOC:
        return keep(read_voc(annotations, image_folder, rules or VocRules())), image_folder
    return keep(read_yolo(annotations, image_folder)), image_folder


def keep(content: dict) -> str:
    """Path of a COCO file of this content in the user's cache, where it is written if it is not there yet."""
    text = json.dumps(content).encode()
    path = cache_folder("sets") / f"{hashlib.sha256(text).hexdigest()[:32]}.json"
    if not path.is_file():
        try:
            write_atomically(path, lambda file: file.write(text))
        except OSError as error:
            raise DataError(
                f"The cache {path.parent} cannot be made: {error}. Set XDG_CACHE_HOME to a folder of yours."
            ) from error
    return str(path)
