"""The table "Self-distillation from labels" of docs/benchmarks.md and its picture.

    python benchmarks/digits_labels.py --json benchmarks/results/digits_labels.json --plot docs/label_share.png

RetinaNet and Faster R-CNN with small backbones, at equal iterations and settings: plain, and with every label encoder.
The picture shows how much of the total loss is the distillation's, over the run. Runs already in the JSON are not
repeated.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rows import complete_rows, print_rows
from study import Run, Study

DETECTORS = {"retinanet": "RetinaNet", "faster_rcnn": "Faster R-CNN"}
ROWS = {
    "plain": ("{}_student", []),
    "LGD, as published": ("lgd_{}_published", []),
    "LGD": ("lgd_{}", []),
    "LGD, light encoder": ("lgd_{}_light", []),
    "SSSD": ("sssd_{}", ["MODEL.DISTILL.SCHEDULE.STEPS", "[]", "MODEL.DISTILL.SCHEDULE.FACTORS", "[]"]),
    "SSSD, stepwise": ("sssd_{}", []),
}


def plot(shares: dict[str, dict[str, list]], file: Path) -> None:
    """A panel a detector: the mean over seeds of the distillation's share of the loss, by iteration."""
    figure, panels = plt.subplots(1, len(shares), figsize=(5 * len(shares), 3.4), sharey=True, constrained_layout=True)
    for panel, (detector, rows) in zip(panels, shares.items(), strict=True):
        for name, runs in rows.items():
            iterations = [iteration for iteration, _ in runs[0]]
            values = zip(*([share for _, share in run] for run in runs), strict=True)
            panel.plot(iterations, [statistics.mean(found) for found in values], label=name)
        panel.set(title=detector, xlabel="iteration", ylim=(0, 1))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("distillation loss / total loss")
    panels[-1].legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result; runs found in it are kept")
    parser.add_argument("--plot", type=Path, required=True, help="file for the picture")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time, one thread each")
    arguments = parser.parse_args()

    study = Study(arguments.json, arguments.parallel)
    wanted = {
        (title, name, seed): Run(f"configs/digits/{file.format(detector)}.yaml", overrides, seed)
        for seed in arguments.seeds
        for detector, title in DETECTORS.items()
        for name, (file, overrides) in ROWS.items()
    }
    rows = complete_rows(study, wanted)
    print_rows(rows)
    taught = {
        title: {name: [run["shares"] for run in runs] for name, runs in found.items() if "shares" in runs[0]}
        for title, found in rows.items()
    }
    plot(taught, arguments.plot)


if __name__ == "__main__":
    main()
