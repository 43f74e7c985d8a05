"""docs/evidence.md, docs/when-to-distil.md and their pictures, from the CSV files of benchmarks/photos.py alone.

python benchmarks/evidence.py --csv benchmarks/results --docs docs
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from advice import advice_page, describe_gain
from photo_rows import ALL_LABELS, FEW, OWNED, PLAIN, SELF, TEACHER_ROW

RUNS_FILE, GAINS_FILE = "photos.csv", "photos_gains.csv"
METRICS = ("AP", "AP50", "AP75")
TITLES = {
    "bccd": "Blood cells (BCCD)",
    "cards": "Playing cards",
    "digits": "Digits",
    "digits_short": "Digits, short training",
}
CONTROLS = {row.name for row in ALL_LABELS if row.control}
COLOURS = plt.get_cmap("tab20")
CURVE = (PLAIN, SELF, FEW, OWNED)
Rows = dict[str, list[dict]]


def write_pages(results: Path, docs: Path) -> None:
    """Both pages and the pictures, from the CSV files in ``results``."""
    tables = read_runs(results / RUNS_FILE)
    gains = list(csv.DictReader((results / GAINS_FILE).open()))
    (docs / "evidence.md").write_text(evidence_page(tables, gains))
    (docs / "when-to-distil.md").write_text(advice_page([(gain, where(gain)) for gain in gains]))
    plot_time(tables, docs / "images" / "evidence_time.png")
    plot_labels(tables, docs / "images" / "evidence_labels.png")


def read_runs(file: Path) -> dict[tuple[str, float], Rows]:
    """(set, share of the labels) -> row -> its runs, in the order of the file."""
    tables: dict[tuple[str, float], Rows] = {}
    for line in csv.DictReader(file.open()):
        rows = tables.setdefault((line["set"], float(line["labels"])), {})
        rows.setdefault(line["row"], []).append(line)
    return tables


def title(name: str, share: float) -> str:
    """Of a table."""
    return f"{TITLES[name]}, " + ("all labels" if share == 1 else f"{100 * share:g} % of the labels")


def numbers(runs: Iterable[dict], metric: str) -> list[float]:
    return [float(run[metric]) for run in runs]


def shown(runs: list[dict], metric: str) -> str:
    """Mean and deviation over seeds."""
    values = numbers(runs, metric)
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def evidence_page(tables: dict[tuple[str, float], Rows], gains: list[dict]) -> str:
    """docs/evidence.md."""
    found = [INTRODUCTION.strip(), ""]
    for (name, share), rows in tables.items():
        found += [f"## {title(name, share)}", ""]
        found += ["| row | AP | AP50 | AP75 | plain steps | seconds | seeds | gain over the best control in its time |"]
        found += ["|---|---|---|---|---|---|---|---|"]
        for row, runs in rows.items():
            scores = " | ".join(shown(runs, metric) for metric in METRICS)
            gain = next((g for g in gains if (g["set"], float(g["labels"]), g["row"]) == (name, share, row)), None)
            times = f"{runs[0]['steps']} | {runs[0]['seconds']}"
            seeds = "" if row == TEACHER_ROW else len(runs)
            found.append(f"| {row} | {scores} | {times} | {seeds} | {describe_gain(gain) if gain else ''} |")
        found.append("")
    found += ["![AP over the time of the training](images/evidence_time.png)", ""]
    if any(share < 1 for _, share in tables):
        found += ["![AP over the share of the labels](images/evidence_labels.png)", ""]
    return "\n".join(found)


def where(gain: dict) -> str:
    """The title of a gain's table."""
    return title(gain["set"], float(gain["labels"]))


def plot_time(tables: dict[tuple[str, float], Rows], file: Path) -> None:
    """A panel for each set with all labels: AP of each row over its time in plain steps; controls are hollow."""
    full = {name: rows for (name, share), rows in tables.items() if share == 1}
    for panel, (name, rows) in zip(make_panels(len(full)), full.items(), strict=True):
        names = [row for row in rows if row != TEACHER_ROW]
        for number, row in enumerate(names):
            runs, colour = rows[row], COLOURS(number % COLOURS.N)
            point = float(runs[0]["steps"]), statistics.mean(numbers(runs, "AP"))
            panel.plot(*point, "o", label=row, color=colour, fillstyle="none" if row in CONTROLS else "full")
        label(panel, TITLES[name], "time in plain steps")
    save(file)


def plot_labels(tables: dict[tuple[str, float], Rows], file: Path) -> None:
    """A panel for each set that has fewer labels: AP over their share."""
    sets = list(dict.fromkeys(name for name, share in tables if share < 1))
    for panel, name in zip(make_panels(len(sets)), sets, strict=True):
        for row in CURVE:
            known = [(share, rows[row]) for (which, share), rows in tables.items() if which == name and row in rows]
            points = sorted((100 * share, statistics.mean(numbers(runs, "AP"))) for share, runs in known)
            panel.plot(*zip(*points, strict=True), "o-", label=row)
        panel.set_xscale("log")
        label(panel, TITLES[name], "% of the labels")
    save(file)


def make_panels(count: int) -> list:
    """Axes in one row, with room for a legend beside each."""
    size = (9 * max(count, 1), 4)
    _, panels = plt.subplots(1, max(count, 1), figsize=size, squeeze=False, constrained_layout=True)
    return list(panels[0])[:count]


def label(panel: Any, title: str, axis: str) -> None:
    """Title, axes and a legend beside the panel."""
    panel.set(title=title, xlabel=axis, ylabel="AP")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))


def save(file: Path) -> None:
    """Writes the current figure."""
    file.parent.mkdir(parents=True, exist_ok=True)
    plt.savefig(file, dpi=110)
    plt.close()


INTRODUCTION = """
# Evidence

Is a distilled student better than one that trained longer? Written by `benchmarks/photos.py` from
`benchmarks/results/photos.csv` (each run) and `photos_gains.csv` (each gain), on test images that chose no setting.

- **Students**: a DINO with a small backbone from scratch on images of 144 pixels on the short side, small enough for
  one CPU core (`configs/photos/`), the learning rate the best of those tried for the plain student on validation
  images; on digits the small Conditional DETR. **Teachers**: the same on EfficientNet-Lite2 with ImageNet weights,
  trained on 192 pixels, which is also what it saw for the file of predictions; in the step it sees the student's
  images. On digits the shipped FCOS.
- **From the file**: the teacher has predicted once (`tools/predict.py`) and is not run in the step. D3ETR's part that a
  file can give is its adaptive matching and prediction loss, which is the row "from the file"; DETRDistill's is its
  logits. On **unlabelled images** the file's confident boxes are the objects of the detection loss
  (`MODEL.DISTILL.PSEUDO_LABELS`); the row with hard boxes is the same idea without this package: a JSON of these boxes
  that a plain student trains on. It is a use of the teacher, and no control there.
- **Gain**: over the best control of the table that takes no longer than the row itself (5 % more at most) and has no
  better teacher: plain, plain for longer, an auxiliary group, a start from the teacher, the teacher's hard boxes as
  labels. The interval is that of a paired bootstrap over the test images, 95 %, of the mean over the seeds that both
  have: where it holds 0, nothing is shown.
- **Time**: plain steps are iterations times the cost of a step beside a plain student's, both measured in turn, and the
  teacher's look at the images where its predictions are used. Seconds are those of the whole training alone on one
  device, `device` in the CSV: the processor's seconds of one CPU thread, or a GPU's.
- A start from the teacher copies encoder, decoder, queries and heads; the backbones differ.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/results"), help="folder of the CSV files")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    write_pages(arguments.csv, arguments.docs)


if __name__ == "__main__":
    main()
