"""The table "Detectors of transformers as students" of docs/benchmarks.md.

    python benchmarks/digits_transformers.py --json benchmarks/results/digits_transformers.json

A small RT-DETRv2 and a small D-FINE of transformers on digits: plain, taught by the shipped Conditional DETR at equal
iterations, and plain for the time that this takes, by the ratio of their steps measured in turn in this process. Runs
already in the JSON are not repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from digits_distillation import PLAIN, equal_time
from rows import complete_rows, print_rows
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result; runs found in it are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time, one thread each")
    arguments = parser.parse_args()

    study = Study(arguments.json, arguments.parallel)
    print_rows(complete_rows(study, wanted_runs(study, arguments.seeds)))


if __name__ == "__main__":
    main()
