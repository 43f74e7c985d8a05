"""Figures from what ``collect`` gathered. Each function returns a figure; ``save`` writes it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.typing import ColorType

from ..checkpoint.writing import write_atomically
from .collect import Objects, Query, Sample
from .draw import COLORS, Label, draw_attention, draw_box, label_box, show_image, spread_labels
from .words import drawable, style

DPI = 110
OTHER = "tab:brown"  # a curve of a model that has no colour of its own
SMALLEST_CELL, LARGEST_CELL = 2.7, 5.0  # inches, width of one image
PAIR_COLORS = matplotlib.color_sequences["tab10"]

Pair = Mapping[str, Query]


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure as PNG, in one step."""
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=DPI))


def predictions(samples: Sequence[Sample], columns: Mapping[str, Sequence[Objects]], threshold: float) -> Figure:
    """One row an image: its ground truth where known, then each model's detections.

    Args:
        columns: model name -> detections of each sample. threshold: lowest score shown, for the title.
    """
    if all(sample.truth is not None for sample in samples):
        columns = {"ground truth": [sample.truth for sample in samples if sample.truth is not None], **columns}
    figure, grid = _grid(samples, len(samples), len(columns))
    figure.suptitle(f"Detections with a score of at least {threshold:g}", fontsize=12)
    labels: list[Label] = []
    for row, sample in enumerate(samples):
        for column, (name, found) in enumerate(columns.items()):
            title = name if row == 0 else ""
            show_image(grid[row, column], sample.image, title, COLORS.get(name, "black"))
            labels += _draw_objects(grid[row, column], found[row], COLORS.get(name, COLORS["detector"]))
    spread_labels(figure, labels)
    return figure


def query_pairs(samples: Sequence[Sample], pairs: Sequence[Sequence[Pair]], teacher: str, student: str) -> Figure:
    """Images with the teacher's boxes and their partners, beside a list of classes and scores.

    Args:
        pairs: of each sample, see ``collect_pairs``. teacher, student: names in the pairs.
    """
    blocks = min(2, len(samples))
    rows = math.ceil(len(samples) / blocks)
    figure, grid = _grid(samples, rows, 2 * blocks, widths=[1.0, 0.8] * blocks)
    figure.suptitle(f"Query pairs of the adaptive matcher, last layer: {teacher} solid, {student} dashed", fontsize=12)
    for axes in grid.flat:
        axes.set_axis_off()
    labels: list[Label] = []
    for place, (sample, found) in enumerate(zip(samples, pairs, strict=True)):
        row, column = place // blocks, 2 * (place % blocks)
        show_image(grid[row, column], sample.image)
        labels += _draw_pairs(grid[row, column], found, teacher, student)
        _list_pairs(grid[row, column + 1], found, teacher, student)
    spread_labels(figure, labels)
    return figure


def attention(samples: Sequence[Sample], pairs: Sequence[Sequence[Pair]], names: Sequence[str]) -> Figure:
    """One row a teacher query: its box, its attention map, and the maps of its partners.

    Args:
        pairs: of each sample, with attention maps. names: models, the teacher first.
    """
    rows = [(sample, pair) for sample, found in zip(samples, pairs, strict=True) for pair in found]
    figure, grid = _grid([sample for sample, _ in rows], max(1, len(rows)), len(names) + 1)
    figure.suptitle(
        "Cross-attention of the last decoder layer, mean over heads; below: the query's class and score", fontsize=12
    )
    for axes in grid.flat:
        axes.set_axis_off()
    if not rows:
        grid[0, 0].text(0, 0.5, "The teacher is sure of nothing in these images.")
    for row, (sample, pair) in enumerate(rows):
        query = pair[names[0]]
        show_image(grid[row, 0], sample.image, f"query of the {names[0]}" if row == 0 else "")
        draw_box(grid[row, 0], query.box_xyxy, COLORS[names[0]])
        for column, name in enumerate(names, start=1):
            _draw_map(grid[row, column], sample, pair.get(name), name, dashed=column > 1)
            if row == 0:
                grid[row, column].set_title(name, color=COLORS.get(name, "black"), fontsize=11)
    return figure


def ap_over_iterations(
    curves: Mapping[str, Sequence[tuple[float, float]]], teacher_ap: float, dataset: str, unit: str = "iterations"
) -> Figure:
    """AP of each model over its training, against the teacher's.

    Args:
        curves: model name -> (iterations done, or what ``unit`` says, AP in 0 to 100). dataset: for the axis.
    """
    figure = Figure(figsize=(8.4, 4.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axhline(teacher_ap, color=COLORS["teacher"], linestyle="--", label=f"teacher: {teacher_ap:.1f}")
    for name, points in curves.items():
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, marker="o", color=COLORS.get(name, OTHER), label=f"{name}: {values[-1]:.1f}")
    axes.set(title="The same training with and without the teacher", xlabel=unit)
    words = f"AP on {drawable(dataset)}"
    axes.set_ylabel(words, **style(words))
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(title="AP at the end", frameon=False, loc="outside right upper")
    return figure


def _grid(
    samples: Sequence[Sample], rows: int, columns: int, widths: Sequence[float] | None = None
) -> tuple[Figure, np.ndarray]:
    """A figure with cells of the images' shape: (figure, (rows, columns) array of axes)."""
    shapes = [sample.image.shape for sample in samples]
    tallest = max((height / width for height, width, _ in shapes), default=1.0)
    cell = min(max(max((width for _, width, _ in shapes), default=0) / DPI, SMALLEST_CELL), LARGEST_CELL)
    widths = widths or [1.0] * columns
    size = (cell * sum(widths), cell * tallest * rows + 0.25 * rows + 0.6)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw={"width_ratios": widths})


def _draw_objects(axes: Axes, objects: Objects, color: str) -> list[Label]:
    labels = []
    for index, (box, name) in enumerate(zip(objects.boxes_xyxy, objects.labels, strict=True)):
        name = drawable(name)
        words = name if objects.scores is None else f"{name} {objects.scores[index]:.2f}"
        draw_box(axes, box, color)
        labels.append(label_box(axes, box, words, color))
    return labels


def _pair_color(index: int) -> ColorType:
    return PAIR_COLORS[index % len(PAIR_COLORS)]


def _draw_pairs(axes: Axes, pairs: Sequence[Pair], teacher: str, student: str) -> list[Label]:
    labels = []
    for index, pair in enumerate(pairs):
        draw_box(axes, pair[teacher].box_xyxy, _pair_color(index))
        if student in pair:
            draw_box(axes, pair[student].box_xyxy, _pair_color(index), dashed=True)
        labels.append(label_box(axes, pair[teacher].box_xyxy, str(index + 1), _pair_color(index)))
    return labels


def _list_pairs(axes: Axes, pairs: Sequence[Pair], teacher: str, student: str) -> None:
    """Classes and scores of the pairs, one line each, under a head line."""
    columns = (0.02, 0.16, 0.6)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    lines: list[tuple[tuple[str, str, str], ColorType]] = [(("", teacher, student), "black")]
    for index, pair in enumerate(pairs):
        partner = _class_and_score(pair[student]) if student in pair else "none"
        words = (str(index + 1), _class_and_score(pair[teacher]), partner)
        lines.append((words, _pair_color(index)))
    step = min(0.11, 1.0 / len(lines))
    for number, (words, color) in enumerate(lines):
        for x, word in zip(columns, words, strict=True):
            weight = "bold" if number == 0 or x == columns[0] else "normal"
            axes.text(x, 0.97 - number * step, word, color=color, va="top", fontsize=9, weight=weight, **style(word))


def _draw_map(axes: Axes, sample: Sample, query: Query | None, name: str, *, dashed: bool) -> None:
    if query is None or query.attention is None:
        axes.text(0.5, 0.5, "no partner", ha="center")
        return
    draw_attention(axes, sample.image, query.attention, query.span)
    draw_box(axes, query.box_xyxy, COLORS.get(name, "white"), dashed=dashed)
    axes.set_axis_on()
    words = _class_and_score(query)
    axes.set_xlabel(words, fontsize=9, color=COLORS.get(name, "black"), labelpad=2, **style(words))


def _class_and_score(query: Query) -> str:
    return f"{drawable(query.label)}   {query.score:.2f}"
