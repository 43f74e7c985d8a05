"""Boxes and names drawn into an image at its own size."""

from __future__ import annotations

from functools import cache

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from PIL import Image, ImageDraw, ImageFont

from ...visualization.collect import Objects
from ...visualization.words import drawable, font_file

COLORS = [to_hex(color) for color in matplotlib.color_sequences["tab20"]]
SMALLEST, SHARE = 10, 0.025  # of the letters, in pixels and of the image's short side


def draw(image: np.ndarray, found: Objects, class_names: tuple[str, ...]) -> np.ndarray:
    """An image (height, width, 3) uint8 RGB with its detections, a colour a class; the surest are drawn last."""
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    size = max(SMALLEST, round(SHARE * min(picture.size)))
    line = max(1, size // 6)
    scores = found.scores if found.scores is not None else np.ones(len(found.labels))
    for index in reversed(range(len(found.labels))):
        label = found.labels[index]
        color = COLORS[class_names.index(label) % len(COLORS)]
        left, top, right, bottom = _inside(found.boxes_xyxy[index], picture.size)
        pen.rectangle((left, top, right, bottom), outline=color, width=line)
        words = f"{drawable(label)} {scores[index]:.2f}"
        font = _font(font_file(words), size)
        width, height = pen.textbbox((0, 0), words, font=font)[2:]
        place = (min(left, max(picture.width - width, 0)), top - height if top >= height else top)
        pen.rectangle((*place, place[0] + width, place[1] + height), fill=color)
        pen.text(place, words, fill="white", font=font)
    return np.asarray(picture)


def _inside(box: np.ndarray, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box cut to the image; Pillow refuses one that ends before it begins."""
    left, right = np.clip(box[[0, 2]], 0, size[0] - 1)
    top, bottom = np.clip(box[[1, 3]], 0, size[1] - 1)
    return float(left), float(top), float(max(left, right)), float(max(top, bottom))


@cache
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)
