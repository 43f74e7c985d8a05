"""Tables whose rows are detectors and methods, each trained with several seeds."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from study import METRICS, TEST_SET, Run, Study, settings_key, summary

Rows = dict[str, dict[str, list[dict]]]


def complete_rows(study: Study, wanted: dict[tuple[str, str, int], Run]) -> Rows:
    """The results of runs by (detector, row, seed) as detector, row, then one for each seed; trains what is missing.

    They are trained in the order given. A changed configuration file makes its runs new ones; the first row of a
    detector is the one that the others are compared with.
    """
    keys = [
        f"{detector}, {name} | settings {settings_key(run.config)} | seed {seed}"
        for (detector, name, seed), run in wanted.items()
    ]
    done = study.complete(dict(zip(keys, wanted.values(), strict=True)))
    rows: Rows = {}
    for (detector, name, _), run in zip(wanted, done, strict=True):
        rows.setdefault(detector, {}).setdefault(name, []).append(run)
    study.save({detector: {name: summary(runs) for name, runs in found.items()} for detector, found in rows.items()})
    return rows


def print_rows(rows: Rows) -> None:
    """Mean and standard deviation over seeds, the gain in AP over the detector's first row, and the median CPU time."""
    table = Table("detector", "row", *METRICS, "gain", "CPU seconds", title=TEST_SET)
    for detector, found in rows.items():
        first = summary(next(iter(found.values())))["AP"][0]
        for name, runs in found.items():
            scores = [f"{mean:.1f} ± {spread:.1f}" for mean, spread in summary(runs).values()]
            seconds = statistics.median(run["cpu_seconds"] for run in runs)
            table.add_row(detector, name, *scores, f"{summary(runs)['AP'][0] - first:+.1f}", f"{seconds:.0f}")
    Console(width=140).print(table)


def make_table(
    documentation: str | None, wanted: Callable[[Study, list[int]], dict[tuple[str, str, int], Run]]
) -> None:
    """The program of such a table; ``wanted`` gives every run of some seeds."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result; runs found in it are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time, one thread each")
    arguments = parser.parse_args()

    study = Study(arguments.json, arguments.parallel)
    print_rows(complete_rows(study, wanted(study, arguments.seeds)))
