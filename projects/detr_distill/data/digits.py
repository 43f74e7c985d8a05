"""``digits_train``, ``digits_val``, ``digits_test``: detection of handwritten digits, made on first use, no download.

The handwriting is scikit-learn's ``load_digits`` (1,797 samples of 8 x 8 pixels; UCI Optical Recognition of
Handwritten Digits). The three sets use disjoint samples, split by class: settings are chosen on validation pictures,
and the test pictures show what was chosen once. Pictures, boxes and order follow from fixed seeds alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from iopath.common.file_io import file_lock
from tqdm import tqdm

from ..errors import DataError
from .annotations.file import read_annotation_file
from .coco import load_coco
from .digit_pictures import CANVAS, Digit, draw_picture

FOLDER = "digits_v2"  # raise the version whenever a pixel or a box changes
SPLITS = {"train": 6000, "val": 500, "test": 500}
CLASS_NAMES = tuple(str(digit) for digit in range(10))

_SEED = 20240607
_HELD_SHARE = 0.2  # of the handwriting, for validation and test pictures in equal parts
# Decodes four times faster than PNG, and every training step waits for that; colours stay at full resolution.
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]


def digits_root() -> Path:
    """Folder that holds the set: ``DETECTRON2_DATASETS`` (default ``datasets``) / ``digits_v2``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser() / FOLDER


@cache
def split_samples(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Handwriting samples of a split.

    Args:
        split: "train", "val" or "test".

    Returns:
        (N, 8, 8) uint8 pictures with ink up to 255; (N,) digits 0 to 9; (N,) their row in ``load_digits``.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise DataError(
            f"The datasets digits_train, digits_val and digits_test are drawn from scikit-learn's handwritten digits, "
            f"and scikit-learn cannot be imported ({error}). Run: pip install scikit-learn"
        ) from error
    source = load_digits()
    rows = np.arange(len(source.target))
    train, held = train_test_split(rows, test_size=_HELD_SHARE, random_state=_SEED, stratify=source.target)
    val, test = train_test_split(held, test_size=0.5, random_state=_SEED, stratify=source.target[held])
    chosen = np.sort({"train": train, "val": val, "test": test}[split])
    return (source.images[chosen] * (255 / 16)).astype(np.uint8), source.target[chosen], chosen


def draw_digits(split: str, index: int) -> tuple[np.ndarray, list[Digit]]:
    """Picture number ``index`` of a split and its digits; depends on nothing else."""
    rng = np.random.default_rng([_SEED, list(SPLITS).index(split), index])
    return draw_picture(rng, split_samples(split)[0])


def build_digits(root: str | os.PathLike | None = None, split: str = "train", images: int | None = None) -> Path:
    """Makes a split unless it is there already. Safe to interrupt and to call from several processes at once.

    Args:
        root: folder of the set; default ``digits_root()``.
        split: "train", "val" or "test".
        images: number of pictures; default 6,000 for train, 500 for val and test. Another number gets its own folder.

    Returns:
        The folder: ``images/*.jpg`` and ``annotations/instances.json`` in COCO format.

    Raises:
        DataError: an unknown split; scikit-learn is missing; the folder cannot be written.
    """
    if split not in SPLITS:
        raise DataError(f"The digits have no split {split!r}; choose one of: {', '.join(SPLITS)}.")
    count = SPLITS[split] if images is None else images
    name = split if count == SPLITS[split] else f"{split}_{count}"
    folder = Path(digits_root() if root is None else root) / name
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(folder)):
            if not folder.exists():  # another process may have made it while this one waited
                _build(folder, split, count)
    except OSError as error:
        raise DataError(
            f"The digits dataset cannot be written to {folder}: {error}. "
            "Point the environment variable DETECTRON2_DATASETS at a folder with space that you may write to."
        ) from error
    return folder


def _build(folder: Path, split: str, count: int) -> None:
    """Fills a temporary sibling and renames it, so that the folder's existence means that it is complete."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what an interrupted build left behind
    try:
        (partial / "images").mkdir(parents=True)
        (partial / "annotations").mkdir()
        contents = _write_pictures(partial / "images", split, count)
        _annotation_path(partial).write_text(json.dumps(contents))
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_pictures(folder: Path, split: str, count: int) -> dict:
    """Writes the pictures; returns the contents of the COCO annotation file."""
    _, labels, rows = split_samples(split)
    images: list[dict] = []
    annotations: list[dict] = []
    for index in tqdm(range(count), desc=f"making {FOLDER}/{split}", unit="image", disable=None):
        picture, digits = draw_digits(split, index)
        name = f"{index:06d}.jpg"
        (folder / name).write_bytes(cv2.imencode(".jpg", picture, _JPEG)[1].tobytes())
        images.append({"id": index + 1, "file_name": name, "width": CANVAS, "height": CANVAS})
        for digit in digits:
            annotation = {
                "id": len(annotations) + 1,
                "image_id": index + 1,
                "category_id": int(labels[digit.sample]) + 1,
                "bbox": list(digit.box),
                "area": digit.box[2] * digit.box[3],
                "iscrowd": 0,
                "sample": int(rows[digit.sample]),  # row in load_digits: shows that the splits are disjoint
            }
            annotations.append(annotation)
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(CLASS_NAMES)]
    info = {"description": f"{FOLDER} {split}: scikit-learn's handwritten digits on textured backgrounds", "version": 1}
    return {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def prepare(name: str) -> Path | None:
    """Makes a digits dataset's files if need be and points its metadata at them.

    ``COCOEvaluator`` reads the annotation file when it is built, which may be before the dataset is first loaded.

    Args:
        name: a dataset's name; any but those of the digits is left alone.

    Returns:
        The dataset's folder; None for another name.

    Raises:
        DataError: the files cannot be made, or the annotation file is damaged.
    """
    folder = _made(name)
    if folder is not None:
        with _remedy(folder):
            read_annotation_file(_annotation_path(folder))
    return folder


def _made(name: str) -> Path | None:
    split = name.removeprefix("digits_")
    if split == name or split not in SPLITS:
        return None
    folder = build_digits(split=split)
    _describe(name, folder)
    return folder


@contextmanager
def _remedy(folder: Path) -> Iterator[None]:
    """The set is ours: whatever is wrong with its files, making it again helps."""
    try:
        yield
    except DataError as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"The digits' annotation file {_annotation_path(folder)} is damaged: {reason} "
            f"Delete {folder}; it is made again."
        ) from error


def _annotation_path(folder: Path) -> Path:
    return folder / "annotations" / "instances.json"


def _describe(name: str, folder: Path) -> None:
    # Metadata refuses a second, different value; DETECTRON2_DATASETS may have been changed since the import.
    vars(MetadataCatalog.get(name)).update(json_file=str(_annotation_path(folder)), image_root=str(folder / "images"))


def _load(name: str) -> list[dict]:
    folder = _made(name)
    assert folder is not None, name
    with _remedy(folder):
        return load_coco(_annotation_path(folder), folder / "images", name)


def register_digits() -> None:
    """Registers the three sets; nothing is made before one of them is first loaded."""
    for split in SPLITS:
        name = f"digits_{split}"
        if name in DatasetCatalog:
            continue
        DatasetCatalog.register(name, lambda name=name: _load(name))
        MetadataCatalog.get(name).set(
            evaluator_type="coco",
            thing_classes=list(CLASS_NAMES),
            thing_dataset_id_to_contiguous_id={index + 1: index for index in range(len(CLASS_NAMES))},
        )
        _describe(name, digits_root() / split)
