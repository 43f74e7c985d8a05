"""Images, folders of them and videos: read, and written again with what was found in them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import track

from ...checkpoint.writing import check_place, explain_unwritable, write_atomically
from ...data import read_image
from ...data.formats.content import list_images
from ...errors import ConfigError, DataError, OutputError
from ...visualization.collect import Objects
from .detect import Detect
from .marks import draw

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
RESULTS = "detections.json"
RATE = 25.0  # frames a second where a video does not tell


@dataclass(frozen=True)
class Medium:
    """An image or video.

    Attributes:
        file: to read. place: to write, below the output folder.
    """

    file: Path
    place: Path

    @property
    def is_video(self) -> bool:
        """By the suffix of its name."""
        return self.file.suffix.lower() in VIDEOS

    @property
    def frames(self) -> int:
        """How many, as far as a video tells; 1 for an image."""
        return max(1, int(cv2.VideoCapture(str(self.file)).get(cv2.CAP_PROP_FRAME_COUNT))) if self.is_video else 1


def draw_media(paths: Sequence[str], folder: Path, detect: Detect, class_names: tuple[str, ...]) -> str:
    """Writes every image and video with its detections, and ``detections.json``; returns a line that says so.

    The latter is in COCO's results format, with ids that count images and frames from 1, classes from 1, and beside
    them the names of file and class, and a video's frame.

    Raises:
        DataError: nothing is at a path, or it cannot be read. ConfigError: two would have one name.
        OutputError: the folder cannot be written to.
    """
    media = list(find_media(paths))
    check_place("--draw", folder / RESULTS)
    results: list[dict[str, Any]] = []
    images = 0
    drawn = (found for medium in media for found in _draw(medium, folder, detect, class_names))
    for place, found in track(drawn, "Images and frames", total=sum(medium.frames for medium in media)):
        images += 1
        results += [{"image_id": images, **place, **entry} for entry in as_coco(found, class_names)]
    write_atomically(folder / RESULTS, lambda file: file.write(json.dumps(results).encode()))
    return f"{folder}: {len(results)} detections in {images} images and frames of {len(media)} files"


def _draw(
    medium: Medium, folder: Path, detect: Detect, class_names: tuple[str, ...]
) -> Iterator[tuple[dict[str, Any], Objects]]:
    """What tells an image or frame, and what was found in it."""
    target, name = folder / medium.place, str(medium.place)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--draw {explain_unwritable(folder, error)}") from error
    if medium.is_video:
        for frame, found in _draw_video(medium, target, detect, class_names):
            yield {"file_name": name, "frame": frame}, found
    else:
        yield {"file_name": name}, _draw_image(medium, target, detect, class_names)


def find_media(paths: Sequence[str]) -> Iterator[Medium]:
    """The files at some paths, those below folders included.

    Raises:
        DataError: nothing is there, or no image in a folder. ConfigError: two would be written under one name.
    """
    taken: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            videos = [file.relative_to(path) for file in path.rglob("*") if file.suffix.lower() in VIDEOS]
            places = sorted([*videos, *_images_in(path, needed=not videos)])
        elif path.is_file():
            places = [Path(path.name)]
        else:
            raise DataError(f"--images {path}: there is no such file or folder (working folder: {Path.cwd()}).")
        for place in places:
            file = path / place if path.is_dir() else path
            target = place.with_suffix(".mp4") if file.suffix.lower() in VIDEOS else _writable(place)
            if target in taken:
                raise ConfigError(
                    f"--images: {taken[target]} and {file} would both be written as {target}. Draw them apart."
                )
            taken[target] = file
            yield Medium(file, target)


def as_coco(found: Objects, class_names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Detections of an image in COCO's results format, without the image."""
    assert found.scores is not None
    for (left, top, right, bottom), label, score in zip(
        found.boxes_xyxy.tolist(), found.labels, found.scores.tolist(), strict=True
    ):
        yield {
            "category_id": class_names.index(label) + 1,
            "category": label,
            "bbox": [left, top, right - left, bottom - top],
            "score": score,
        }


def _images_in(folder: Path, needed: bool) -> list[Path]:
    """Relative to the folder; none at all is an error where an image is needed."""
    try:
        return [Path(name) for name in list_images(folder, "--images", "--images")]
    except DataError:
        if needed:
            raise
        return []


def _writable(place: Path) -> Path:
    """The same name where OpenCV and viewers write it without questions, else as PNG."""
    return place if place.suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp", ".webp") else place.with_suffix(".png")


def _draw_image(medium: Medium, target: Path, detect: Detect, class_names: tuple[str, ...]) -> Objects:
    image = read_image(str(medium.file), "RGB")
    found = detect(image)
    drawn = cv2.cvtColor(draw(image, found, class_names), cv2.COLOR_RGB2BGR)
    content = cv2.imencode(target.suffix.lower(), drawn)[1].tobytes()
    write_atomically(target, lambda file: file.write(content))
    return found


def _draw_video(
    medium: Medium, target: Path, detect: Detect, class_names: tuple[str, ...]
) -> Iterator[tuple[int, Objects]]:
    """Frame by frame, numbered from 0; sound is lost."""
    reader = cv2.VideoCapture(str(medium.file))
    rate = reader.get(cv2.CAP_PROP_FPS) or RATE
    writer: cv2.VideoWriter | None = None
    number = 0
    try:
        while (read := reader.read())[0]:
            image = cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)
            found = detect(image)
            drawn = draw(image, found, class_names)
            writer = writer or _open_writer(target, rate, drawn)
            writer.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
            yield number, found
            number += 1
    finally:
        reader.release()
        if writer is not None:
            writer.release()
    if writer is None:
        raise DataError(
            f"--images {medium.file}: OpenCV reads no frame of it. Convert it, for example to .mp4 (H.264)."
        )


def _open_writer(target: Path, rate: float, frame: np.ndarray) -> cv2.VideoWriter:
    height, width = frame.shape[:2]
    writer = cv2.VideoWriter(str(target), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
    if not writer.isOpened():
        raise OutputError(f"--draw {target}: OpenCV cannot write this video. Name another folder, or give images.")
    return writer
