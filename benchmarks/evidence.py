"""docs/evidence.md, docs/when-to-distil.md and their pictures, from the CSV files of benchmarks/photos.py alone.

python benchmarks/evidence.py --csv benchmarks/results --docs docs
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from evidence_tables import TEACHER_ROW
from photo_rows import FEW, OWNED, PLAIN, SELF

RUNS_FILE, GAINS_FILE = "photos.csv", "photos_gains.csv"
METRICS = ("AP", "AP50", "AP75")
TITLES = {"bccd": "Blood cells (BCCD)", "cards": "Playing cards", "digits": "Digits"}
CURVE = (PLAIN, SELF, FEW, OWNED)
Rows = dict[str, list[dict]]


def write_pages(results: Path, docs: Path) -> None:
    """Both pages and the pictures, from the CSV files in ``results``."""
    tables = read_runs(results / RUNS_FILE)
    gains = list(csv.DictReader((results / GAINS_FILE).open()))
    (docs / "evidence.md").write_text(evidence_page(tables, gains))
    (docs / "when-to-distil.md").write_text(advice_page(gains))
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


def describe_gain(gain: dict) -> str:
    """Difference in AP with its interval, and the rival."""
    return (
        f"{float(gain['AP']):+.1f} [{float(gain['AP_low']):+.1f}, {float(gain['AP_high']):+.1f}] over {gain['rival']}"
    )


def advice_page(gains: list[dict]) -> str:
    """docs/when-to-distil.md: what each gain says, gains first, then what could not be told apart, then losses."""
    groups: dict[str, list[str]] = {"It paid": [], "Not told apart": [], "It cost": []}
    for gain in sorted(gains, key=lambda found: -float(found["AP"])):
        low, high = float(gain["AP_low"]), float(gain["AP_high"])
        where = title(gain["set"], float(gain["labels"]))
        kind = "It paid" if low > 0 else "It cost" if high < 0 else "Not told apart"
        groups[kind].append(f"- {where}: **{gain['row']}**, {describe_gain(gain)}.")
    found = [ADVICE.strip(), ""]
    for kind, sentences in groups.items():
        found += [f"## {kind}", "", *(sentences or ["- Nothing."]), ""]
    return "\n".join(found)


def plot_time(tables: dict[tuple[str, float], Rows], file: Path) -> None:
    """A panel for each set with all labels: AP of each row over its time in plain steps."""
    full = {name: rows for (name, share), rows in tables.items() if share == 1}
    panels = make_panels(len(full))
    for panel, (name, rows) in zip(panels, full.items(), strict=True):
        for row, runs in rows.items():
            if row != TEACHER_ROW:
                panel.plot(float(runs[0]["steps"]), statistics.mean(numbers(runs, "AP")), "o", label=row)
        panel.set(title=TITLES[name], xlabel="time in plain steps", ylabel="AP")
        panel.legend(fontsize=6)
    save(file)


def plot_labels(tables: dict[tuple[str, float], Rows], file: Path) -> None:
    """A panel for each set that has fewer labels: AP over their share."""
    sets = list(dict.fromkeys(name for name, share in tables if share < 1))
    for panel, name in zip(make_panels(len(sets)), sets, strict=True):
        for row in CURVE:
            points = sorted(
                (share, runs)
                for (which, share), rows in tables.items()
                if which == name
                for runs in [rows.get(row)]
                if runs
            )
            panel.plot(
                [100 * share for share, _ in points],
                [statistics.mean(numbers(r, "AP")) for _, r in points],
                "o-",
                label=row,
            )
        panel.set(title=TITLES[name], xlabel="% of the labels", ylabel="AP", xscale="log")
        panel.legend(fontsize=6)
    save(file)


def make_panels(count: int) -> list:
    _, panels = plt.subplots(1, max(count, 1), figsize=(5 * max(count, 1), 4), squeeze=False, constrained_layout=True)
    for panel in panels[0]:
        panel.grid(alpha=0.3)
    return list(panels[0])[:count]


def save(file: Path) -> None:
    """Writes the current figure."""
    file.parent.mkdir(parents=True, exist_ok=True)
    plt.savefig(file, dpi=110)
    plt.close()


INTRODUCTION = """
# Evidence

Is a distilled student better than one that trained longer? Written by `benchmarks/photos.py` from
`benchmarks/results/photos.csv` (each run) and `photos_gains.csv` (each gain), on test images that chose no setting.

- **Students**: a two-stage Deformable DETR with a small backbone from scratch, images of 192 pixels on the short side
  (`configs/photos/`); on digits the small Conditional DETR. **Teachers**: the same on EfficientNet-Lite2 with ImageNet
  weights; on digits the shipped one.
- **From the file**: the teacher has predicted once (`tools/predict.py`) and is not run in the step. D3ETR's part that a
  file can give is its adaptive matching and prediction loss, which is the row "from the file"; DETRDistill's is its
  logits.
- **Gain**: over the best control of the table that takes no longer than the row itself (5 % more at most) and has no
  better teacher: plain, plain for longer, an auxiliary group, a start from the teacher, the teacher's hard boxes as
  labels. The interval is that of a paired bootstrap over the test images, 95 %, seeds pooled: where it holds 0, nothing
  is shown.
- **Time**: plain steps are iterations times the cost of a step beside a plain student's, measured in turn with nothing
  else running; seconds are those of the whole training alone on one device, `device` in the CSV: one thread of a CPU,
  or a GPU. Runs beside each other give no seconds.
- A start from the teacher copies encoder, decoder, queries and heads; the backbones differ.
"""

ADVICE = """
# When to distil

Each sentence is a row of [evidence.md](evidence.md): the gain in AP over the best control that takes no longer, with
its 95 % interval. A control may use the teacher too, by its hard boxes or its parts, where the row does. Written by
`benchmarks/photos.py` from `benchmarks/results/photos_gains.csv`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/results"), help="folder of the CSV files")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    write_pages(arguments.csv, arguments.docs)


if __name__ == "__main__":
    main()
