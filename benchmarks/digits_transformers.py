"""The table "Detectors of transformers as students" of docs/benchmarks.md.

    python benchmarks/digits_transformers.py --json benchmarks/results/digits_transformers.json

A small RT-DETRv2 and a small D-FINE of transformers on digits: plain, taught by the shipped Conditional DETR at equal
iterations, and plain for the time that this takes, by the ratio of their steps measured in turn in this process. Runs
already in the JSON are not repeated.
"""

from __future__ import annotations

from digits_distillation import PLAIN, equal_time
from rows import make_table
from study import Run, Study

DETECTORS = {"rtdetr_v2": "RT-DETRv2", "dfine": "D-FINE"}
TAUGHT = "conditional_to_{}"


def wanted_runs(study: Study, seeds: list[int]) -> dict[tuple[str, str, int], Run]:
    """Every run, by detector, row and seed."""
    runs = {}
    for seed in seeds:
        for detector, title in DETECTORS.items():
            plain, taught = (f"configs/digits/{file.format(detector)}.yaml" for file in (PLAIN, TAUGHT))
            runs[title, "plain", seed] = Run(plain, [], seed)
            runs[title, "taught by the Conditional DETR", seed] = Run(taught, [], seed)
            longer = equal_time(study, detector, TAUGHT)
            runs[title, "control: plain for its time", seed] = Run(plain, longer, seed)
    return runs


if __name__ == "__main__":
    make_table(__doc__, wanted_runs)
