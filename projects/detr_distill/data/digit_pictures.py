"""Draws one picture of handwritten digits on a textured background, every number from a given generator.

Pictures are (CANVAS, CANVAS, 3) uint8 arrays in OpenCV's channel order; boxes are (x, y, width, height) in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

CANVAS = 96
MAX_DIGITS = 6
MIN_SIDE, MAX_SIDE = 12, 48  # longer side of a digit, pixels

_MAX_IOU = 0.1
_MAX_COVER = 0.25  # share of the smaller of two boxes that the other may cover, so that no digit hides another
_PLACEMENTS = 12  # attempts before a digit is left out
_INK = 0.3  # opacity from which a pixel belongs to a digit
_LARGE = 64  # side in pixels at which a digit is rotated and sheared, before it is brought to its size

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Digit:
    """A digit in a picture: index of the handwriting sample, and the box of its ink."""

    sample: int
    box: Box


def draw_picture(rng: np.random.Generator, samples: np.ndarray) -> tuple[np.ndarray, list[Digit]]:
    """Draws one picture of one to six digits.

    Args:
        rng: every random number comes from here.
        samples: (N, 8, 8) uint8, handwritten digits with ink up to 255.

    Returns:
        The picture, (CANVAS, CANVAS, 3) uint8, and its digits; their samples index the first axis of ``samples``.
    """
    picture = _background(rng)
    _draw_strokes(rng, picture)
    digits: list[Digit] = []
    # Large digits first: small ones find a place between them.
    sides = np.exp(rng.uniform(np.log(MIN_SIDE), np.log(MAX_SIDE), rng.integers(1, MAX_DIGITS + 1)))
    for side in sorted(sides.tolist(), reverse=True):
        sample = int(rng.integers(len(samples)))
        opacity = _shape(rng, samples[sample], round(side))
        box = _place(rng, opacity.shape, [digit.box for digit in digits])
        if box is not None:
            _paint(rng, picture, opacity, box)
            digits.append(Digit(sample, box))
    noise = rng.integers(0, 1 + rng.integers(1, 16), picture.shape, dtype=np.uint8)
    return cv2.add(picture, noise), digits


def _background(rng: np.random.Generator) -> np.ndarray:
    """A (CANVAS, CANVAS, 3) uint8 texture: a base colour, and a gradient, clouds and stripes each now and then."""
    texture = np.empty((CANVAS, CANVAS, 3), np.float32)
    texture[:] = rng.uniform(20, 100) + rng.uniform(-20, 20, 3)
    down, right = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32) / CANVAS - 0.5
    kinds = rng.random(3) < (0.6, 0.6, 0.35)
    if kinds[0]:
        angle = rng.uniform(0, 2 * np.pi)
        ramp = np.cos(angle) * right + np.sin(angle) * down
        texture += ramp[..., None] * (rng.uniform(-50, 50) + rng.uniform(-20, 20, 3)).astype(np.float32)
    if kinds[1]:
        cells = int(rng.integers(3, 13))
        clouds = rng.uniform(-1, 1, (cells, cells, 3)).astype(np.float32)
        texture += cv2.resize(clouds, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC) * np.float32(rng.uniform(5, 25))
    if kinds[2]:
        angle = rng.uniform(0, np.pi)
        phase = (np.cos(angle) * right + np.sin(angle) * down) * np.float32(rng.uniform(20, 120)) + rng.uniform(0, 6)
        texture += np.sin(phase, dtype=np.float32)[..., None] * (rng.uniform(5, 20) + rng.uniform(-8, 8, 3)).astype(
            np.float32
        )
    return np.clip(texture, 0, 255).astype(np.uint8)


def _draw_strokes(rng: np.random.Generator, picture: np.ndarray) -> None:
    """Clutter: up to three lines or arcs, less bright than digits and under them."""
    for _ in range(int(rng.integers(0, 4))):
        colour = (rng.uniform(20, 130) + rng.uniform(-20, 20, 3)).tolist()
        x, y, to_x, to_y = rng.integers(0, CANVAS, 4).tolist()
        width = int(rng.integers(1, 4))
        if rng.random() < 0.5:
            cv2.line(picture, (x, y), (to_x, to_y), colour, width, cv2.LINE_AA)
        else:
            axes = (to_x // 4 + 3, to_y // 4 + 3)
            start, turn = rng.uniform(0, 360), rng.uniform(0, 180)
            cv2.ellipse(picture, (x, y), axes, turn, start, start + rng.uniform(60, 200), colour, width, cv2.LINE_AA)


def _shape(rng: np.random.Generator, sample: np.ndarray, side: int) -> np.ndarray:
    """The digit's opacity, (height, width) float32 in [0, 1], cut to its ink; the longer side is about ``side``."""
    angle, shear, stretch = rng.uniform((-0.2, -0.2, -0.15), (0.2, 0.2, 0.15))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation @ np.array([[1 + stretch, shear], [0, 1]]) * (_LARGE / 12)
    centre = np.full(2, 3.5)
    shift = (_LARGE - 1) / 2 - matrix @ centre
    affine = np.column_stack([matrix, shift])
    large = cv2.warpAffine(sample.astype(np.float32), affine, (_LARGE, _LARGE), flags=cv2.INTER_CUBIC) / 255
    large = _cut_to_ink(large)
    height, width = large.shape
    scale = side / max(height, width)
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    opacity = _cut_to_ink(cv2.resize(large, size, interpolation=cv2.INTER_AREA))
    # A steeper edge than the 8 x 8 original's: ink is opaque, and what is fainter than ink nearly vanishes.
    return np.clip((opacity - _INK / 2) / (0.75 - _INK / 2), 0, 1)


def _cut_to_ink(opacity: np.ndarray) -> np.ndarray:
    x, y, width, height = cv2.boundingRect((opacity >= _INK).view(np.uint8))
    return opacity[y : y + height, x : x + width]


def _place(rng: np.random.Generator, shape: tuple[int, ...], others: list[Box]) -> Box | None:
    """A box of the given (height, width) inside the canvas that hardly overlaps the others; None when none is found."""
    height, width = shape
    for _ in range(_PLACEMENTS):
        x = int(rng.integers(0, CANVAS - width + 1))
        y = int(rng.integers(0, CANVAS - height + 1))
        box = (x, y, width, height)
        if not any(_overlaps(box, other) for other in others):
            return box
    return None


def _overlaps(first: Box, second: Box) -> bool:
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    common = max(width, 0) * max(height, 0)
    areas = (first[2] * first[3], second[2] * second[3])
    return common > _MAX_IOU * (sum(areas) - common) or common > _MAX_COVER * min(areas)


def _paint(rng: np.random.Generator, picture: np.ndarray, opacity: np.ndarray, box: Box) -> None:
    """Paints a digit in a light colour that stands out from what lies under it."""
    x, y, width, height = box
    patch = picture[y : y + height, x : x + width]
    mean, deviation = cv2.meanStdDev(patch)
    brightest = min(float(mean.max()) + 2 * float(deviation.max()), 200.0)
    colour = np.clip(rng.uniform(brightest + 40, 255) + rng.uniform(-30, 30, 3), 0, 255)
    alpha = opacity[..., None]
    patch[:] = patch + alpha * (colour.astype(np.float32) - patch)
