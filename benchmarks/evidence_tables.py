"""The runs of the study on real photos as tables: means over seeds, and gains with their intervals."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from paired import average_precision, interval, match_images, resample
from photo_places import Places
from photo_rows import TEACHER_ROW, Collection, Row, rows_of
from photo_runs import METRICS, run_name
from photo_steps import Steps

RESAMPLES = 500
SAME = 1.05  # a control takes "no longer" within this factor
THRESHOLDS = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}
FIELDS = (
    "set",
    "labels",
    "row",
    "seed",
    "part",
    "iterations",
    "rate",
    *METRICS,
    "device",
    "wall_seconds",
    "cpu_seconds",
)


@dataclass
class Entry:
    """A row of a table with its runs.

    Attributes:
        seconds: a training's, alone on the device. steps: the same in plain steps. resampled: by seed, metric ->
            (1 + N,) on the resampled test sets, the test set itself first.
    """

    row: Row
    runs: list[dict]
    seconds: float
    steps: float
    resampled: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)

    def mean(self, metric: str) -> float:
        """Over seeds."""
        return statistics.mean(run[metric] for run in self.runs)

    def deviation(self, metric: str) -> float:
        """Over seeds; 0 for one."""
        return statistics.stdev(run[metric] for run in self.runs) if len(self.runs) > 1 else 0.0


@dataclass
class Table:
    """All rows of a set with a share of its labels that have runs."""

    collection: Collection
    share: float
    entries: list[Entry]

    def rival(self, entry: Entry) -> Entry | None:
        """The best control that takes no longer, and has no teacher that the row has not."""
        found = [
            other
            for other in self.entries
            if other.row.control
            and other is not entry
            and other.steps <= SAME * entry.steps
            and (not other.row.owns or entry.row.owns)
        ]
        return max(found, key=lambda other: other.mean("AP"), default=None)


@dataclass(frozen=True)
class Gain:
    """A row's mean beyond its rival's, over the seeds that both have: metric -> (difference, low, high)."""

    table: Table
    entry: Entry
    rival: Entry
    by_metric: dict[str, tuple[float, float, float]]
    seeds: int


def read_tables(places: Places, collected: Iterable[Collection], steps: Steps, seeds: Sequence[int]) -> list[Table]:
    """Every table of which there are runs."""
    tables = []
    for collection in (each for each in collected if steps.known(each)):
        for share in collection.shares:
            entries = []
            for row in rows_of(share, collection):
                length = steps.iterations(row, collection)
                names = [run_name(collection, row, share, seed, length, places.part) for seed in seeds]
                files = [places.result(name) for name in names if places.result(name).is_file()]
                if files:
                    seconds = steps.time(row, length, collection)
                    in_steps = steps.steps(row, length, collection)
                    runs = [json.loads(file.read_text()) | {"file": str(file)} for file in files]
                    entries.append(Entry(row, runs, seconds, in_steps))
            if entries:
                tables.append(Table(collection, share, entries))
    return tables


def find_gains(tables: Iterable[Table], part: str) -> list[Gain]:
    """Each distilled row against the best control that takes no longer."""
    gains = []
    for table in tables:
        dataset = json.loads(Path(MetadataCatalog.get(table.collection.tests[part]).json_file).read_text())
        for entry in table.entries:
            rival = None if entry.row.control else table.rival(entry)
            if rival is None:
                continue
            for each in (entry, rival):
                each.resampled = each.resampled or resample_runs(each.runs, dataset)
            seeds = sorted(entry.resampled.keys() & rival.resampled.keys())
            if not seeds:
                continue
            found = {}
            for metric in METRICS:
                of_seeds = [entry.resampled[seed][metric] - rival.resampled[seed][metric] for seed in seeds]
                difference = np.mean(of_seeds, axis=0)
                found[metric] = (float(difference[0]), *interval(difference[1:]))
            gains.append(Gain(table, entry, rival, found, len(seeds)))
    return gains


def resample_runs(runs: Sequence[dict], dataset: dict) -> dict[int, dict[str, np.ndarray]]:
    """By seed, metric -> (1 + N,)."""
    weights = resample(len(dataset["images"]), RESAMPLES)
    found = {}
    for run in runs:
        arrays = np.load(Path(run["file"]).with_suffix(".npz"))
        names = ("image_id", "category_id", "bbox", "score")
        columns = [arrays[name].tolist() for name in names]
        results = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        values = average_precision(match_images(dataset, results), weights)
        found[run["seed"]] = {metric: values[:, chosen].mean(1) for metric, chosen in THRESHOLDS.items()}
    return found


def write_csv(file: Path, tables: Iterable[Table], places: Places) -> None:
    """A line for each run and teacher; ``seconds`` of the training alone on the device, ``steps`` in plain ones."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, [*FIELDS, "seconds", "steps"], extrasaction="ignore")
        writer.writeheader()
        for table in tables:
            figures = places.weights(table.collection, table.share).with_suffix(".json")
            if figures.is_file():
                known = {"set": table.collection.name, "labels": table.share, "row": TEACHER_ROW, "seed": 1}
                writer.writerow({"part": places.part, **known, **json.loads(figures.read_text())})
            for entry in table.entries:
                times = {"seconds": round(entry.seconds, 1), "steps": round(entry.steps)}
                writer.writerows({**run, **times} for run in entry.runs)


def write_gains(file: Path, gains: Iterable[Gain]) -> None:
    """A line for each distilled row."""
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        bounds = [f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")]
        writer.writerow(["set", "labels", "row", "rival", "seeds", *bounds])
        for gain in gains:
            values = [round(value, 2) for metric in METRICS for value in gain.by_metric[metric]]
            name = gain.table.collection.name
            writer.writerow([name, gain.table.share, gain.entry.row.name, gain.rival.row.name, gain.seeds, *values])
