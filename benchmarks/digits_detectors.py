"""The table "Other detectors on digits" of docs/benchmarks.md: every small detector once, as its configuration says.

    python benchmarks/digits_detectors.py --json benchmarks/results/digits_detectors.json

Every ``configs/digits/*_student.yaml`` of a plain detector is trained with seed 1 by the command that a user types.
Runs already in the JSON are not repeated, unless their configuration file, or one that it builds on, has changed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detr_distill.engine import build_config

from common import ROOT
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from rich.console import Console
from rich.table import Table
from study import METRICS, TEST_SET, Run, Study, settings_key


def detectors() -> dict[str, CfgNode]:
    """Configurations of the small plain detectors, by their paths from the repository's root."""
    files = sorted((ROOT / "configs" / "digits").glob("*_student.yaml"))
    found = {str(file.relative_to(ROOT)): build_config(str(file), ["MODEL.DEVICE", "cpu"]) for file in files}
    return {file: cfg for file, cfg in found.items() if cfg.MODEL.META_ARCHITECTURE != "DistillDetector"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result; runs found in it are kept")
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time, one thread each")
    arguments = parser.parse_args()

    study, found = Study(arguments.json, arguments.parallel), detectors()
    runs = study.complete({f"{file} | settings {settings_key(file)} | seed 1": Run(file, [], seed=1) for file in found})
    rows = {}
    for (file, cfg), run in zip(found.items(), runs, strict=True):
        parameters = sum(p.numel() for p in build_model(cfg).parameters())
        rows[file] = {"iterations": cfg.SOLVER.MAX_ITER, "parameters": parameters, **run}
    study.save({"threads": 1, "rows": rows})

    table = Table("configuration", "iterations", "parameters", *METRICS, "CPU seconds", title=f"{TEST_SET}, seed 1")
    for file, row in rows.items():
        scores = [f"{row[key]:.1f}" for key in METRICS]
        table.add_row(
            file, f"{row['iterations']:,}", f"{row['parameters'] / 1e6:.2f} M", *scores, f"{row['cpu_seconds']:.0f}"
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
