"""Compares runs by their folders: what each trained, and the AP of each at its end and at its best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from ..checkpoint.checkpointer import BEST
from ..engine.folder.moving import CONFIG_FILE
from ..engine.report import report_user_errors
from ..engine.results import RESULTS_FILE
from ..errors import DataError
from ..options.simple import report_parser

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def main(argv: list[str] | None = None) -> None:
    """The verb ``report``; a user's error ends it with status 1."""
    arguments = report_parser().parse_args(argv)
    with report_user_errors():
        print(report([Path(run) for run in arguments.runs]))


def report(runs: list[Path]) -> str:
    """A table of what the runs trained, and one of what they reached on each of their test sets.

    Raises:
        DataError: a folder holds no run, or one that was never evaluated.
    """
    kinds = [[str(run), *_describe(run)] for run in runs]
    rows: list[list[object]] = []
    first: dict[str, float] = {}
    for run in runs:
        results = _read_json(run, RESULTS_FILE)
        best = _best(run)
        for name, metrics in results["datasets"].items():
            values = metrics.get("bbox", {})
            found = [values.get(metric) for metric in METRICS]
            gain = None
            if found[0] is not None:
                gain = found[0] - first[name] if name in first else None
                first.setdefault(name, found[0])
            rows.append([str(run), name, (results.get("iteration") or 0) + 1, *found, gain, best])
    heads = ["run", "set", "iterations", *METRICS, "to the first", "best"]
    what = tabulate(kinds, ["run", "detector", "teacher", "matchers", "losses"])
    return f"{what}\n\n{tabulate(rows, heads, floatfmt='.2f')}"


def _describe(run: Path) -> list[str]:
    """Detector, teacher, matchers and losses of a run."""
    try:
        model = yaml.safe_load((run / CONFIG_FILE).read_text(encoding="utf-8"))["MODEL"]
        if model["META_ARCHITECTURE"] != "DistillDetector":
            return [model["META_ARCHITECTURE"], "none", "", ""]
        node = model["DISTILL"]
        teacher = f"{node['TEACHER']['NAME']} {node['TEACHER']['WEIGHTS']}".strip()
        return [node["STUDENT_ARCHITECTURE"], teacher, *(" ".join(node[key]) for key in ("MATCHERS", "LOSSES"))]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise DataError(
            f"{run}: there is no {CONFIG_FILE} of a run that can be read ({error}). Name its folder."
        ) from error


def _read_json(run: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((run / name).read_text(encoding="utf-8"))
        assert isinstance(content["datasets"], dict)
        return content
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise DataError(
            f"{run}: there is no {name} that can be read ({error}): the run was not evaluated yet. Wait for its first "
            "evaluation, or name another run."
        ) from error


def _best(run: Path) -> str:
    """The best value of the run, with its iteration; empty where none was kept."""
    try:
        best = json.loads((run / f"{BEST}.json").read_text(encoding="utf-8"))
        return f"{best['value']:.2f} at {best['iteration'] + 1}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


if __name__ == "__main__":
    main()
