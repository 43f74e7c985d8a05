"""Drawing on one axes: an image, boxes with labels, an attention map. Coordinates are pixels of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from matplotlib.typing import ColorType

from .words import style

# One colour a model, in every picture; distinguishable with the usual colour blindnesses (Okabe and Ito).
COLORS = {
    "ground truth": "#009e73",
    "teacher": "#0072b2",
    "student": "#e69f00",
    "distilled": "#d55e00",
    "detector": "#d55e00",
}
LABEL_SIZE = 7  # points
LABEL_PADDING = 2  # display pixels around a label
HEAT = "magma"

# Where a label may stand: x, y, and which of its sides are there.
Place = tuple[float, float, Literal["left", "right"], Literal["top", "bottom"]]


@dataclass
class Label:
    """A text beside a box, and where it may stand, best place first."""

    axes: Axes
    text: Text
    places: list[Place]


def show_image(axes: Axes, image: np.ndarray, title: str = "", color: str = "black") -> None:
    """Shows (height, width, 3) uint8 RGB so that pixel (0, 0) covers the square from 0 to 1."""
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0), interpolation="nearest")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if title:
        axes.set_title(title, color=color, fontsize=11, **style(title))


def draw_box(axes: Axes, box_xyxy: np.ndarray, color: ColorType, *, dashed: bool = False, width: float = 1.6) -> None:
    """Outlines a box; a thin dark edge keeps a solid one visible on any background."""
    left, top, right, bottom = box_xyxy
    # A dark edge under dashes would fill their gaps.
    lines = [(color, width)] if dashed else [("#00000080", width + 1.0), (color, width)]
    for line_color, line_width in lines:
        box = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=line_color, linewidth=line_width)
        box.set_linestyle((0, (4, 3)) if dashed else "solid")
        axes.add_patch(box)


def label_box(axes: Axes, box_xyxy: np.ndarray, words: str, color: ColorType) -> Label:
    """Writes above a box; ``spread_labels`` moves it when another label is in the way."""
    left, top, right, bottom = box_xyxy
    places: list[Place] = [
        (left, top, "left", "bottom"),
        (left, bottom, "left", "top"),
        (right, top, "right", "bottom"),
        (right, bottom, "right", "top"),
        (right, top, "left", "top"),
        (left, top, "right", "top"),
        (right, bottom, "left", "bottom"),
        (left, bottom, "right", "bottom"),
        (left, top, "left", "top"),
        (right, bottom, "right", "bottom"),
    ]
    text = axes.text(
        left,
        top,
        words,
        fontsize=LABEL_SIZE,
        color="white",
        ha="left",
        va="bottom",
        bbox={"facecolor": color, "edgecolor": "none", "pad": 0.8, "alpha": 0.9},
        **style(words),
    )
    text.set_in_layout(False)  # a label must not push the images apart
    return Label(axes, text, places)


def spread_labels(figure: Figure, labels: list[Label]) -> None:
    """Moves each label to the first of its places that is inside its axes and free, or to the least bad one."""
    figure.draw_without_rendering()  # positions are known only after the layout
    taken: list[Bbox] = []
    for label in labels:
        inside = label.axes.get_window_extent()
        size = label.text.get_window_extent().padded(LABEL_PADDING)
        areas = [_area(label.axes, place, size.width, size.height) for place in label.places]
        # Rounded, so that a hair's breadth does not outweigh the order of preference.
        costs = [round(_size(a) - _overlap(a, inside) + sum(_overlap(a, other) for other in taken)) for a in areas]
        best = costs.index(min(costs))
        _put(label.text, label.places[best])
        taken.append(areas[best])


def draw_attention(axes: Axes, image: np.ndarray, attention: np.ndarray, span: tuple[float, float]) -> None:
    """Shows an image in grey under an attention map, brightest where it is strongest.

    Args:
        attention: (h, w). span: (width, height) in image pixels that the map covers, from the upper left corner.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    show_image(axes, np.repeat(grey[..., None] // 2 + 110, 3, axis=2).astype(np.uint8))
    strength = attention / max(float(attention.max()), 1e-12)
    alpha = 0.1 + 0.75 * np.sqrt(strength)
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(
        strength, extent=(0, span[0], span[1], 0), cmap=HEAT, vmin=0, vmax=1, alpha=alpha, interpolation="nearest"
    )
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])


def _put(text: Text, place: Place) -> None:
    text.set_position(place[:2])
    text.set_horizontalalignment(place[2])
    text.set_verticalalignment(place[3])


def _area(axes: Axes, place: Place, width: float, height: float) -> Bbox:
    """What a text of a size in display pixels would cover."""
    x, y = axes.transData.transform(place[:2])
    left = x if place[2] == "left" else x - width
    bottom = y if place[3] == "bottom" else y - height
    return Bbox.from_bounds(left, bottom, width, height)


def _size(area: Bbox) -> float:
    return float(area.width * area.height)


def _overlap(first: Bbox, second: Bbox) -> float:
    shared = Bbox.intersection(first, second)
    return 0.0 if shared is None else _size(shared)
