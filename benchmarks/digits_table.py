"""The digits table of docs/benchmarks.md: every row over several seeds, from the same command that a user types.

    python benchmarks/digits_table.py --json benchmarks/results/digits.json

First the plain student at several learning rates; the rate with the best mean AP is used by every other row. Then, at
equal iterations: D3ETR and its two halves, and the auxiliary group without a teacher; and the plain student for the
time that a D3ETR run takes, by the ratio of their steps measured in turn in this process. Runs already in the JSON are
not repeated.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table
from study import METRICS, TEACHER_FREE_GROUP, Run, Study, step_ratio, summary

PLAIN, D3ETR = "configs/digits/conditional_student.yaml", "configs/digits/d3etr_conditional.yaml"
ROWS = {
    "D3ETR (adaptive + fixed)": (D3ETR, []),
    "adaptive only": (D3ETR, ["MODEL.DISTILL.MATCHERS", '("AdaptiveMatcher",)']),
    "fixed only": (D3ETR, ["MODEL.DISTILL.MATCHERS", '("FixedMatcher",)']),
    "D3ETR, predictions only": (D3ETR, ["MODEL.DISTILL.LOSSES", '("PredictionLoss",)']),
    "D3ETR, plain soft cross-entropy over all pairs": (
        D3ETR,
        [
            *("MODEL.DISTILL.PREDICTION_LOSS.DIVERGENCE", "bce"),
            *("MODEL.DISTILL.PREDICTION_LOSS.NORMALIZER", "pairs"),
            *("MODEL.DISTILL.PREDICTION_LOSS.BOX_SCORE_THRESHOLD", "0.0"),
        ],
    ),
    "control: auxiliary group without a teacher": (
        PLAIN,
        TEACHER_FREE_GROUP,
    ),
}


def row(study: Study, seeds: list[int], name: str, config: str, overrides: list[str]) -> list[dict]:
    """The runs of a row, one for each seed."""
    return study.complete({f"{name} | seed {seed}": Run(config, overrides, seed) for seed in seeds})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result; runs found in it are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.001, 0.002, 0.003, 0.004])
    parser.add_argument("--iterations", type=int, default=800)
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time, one thread each")
    arguments = parser.parse_args()

    study = Study(arguments.json, arguments.parallel)
    train_row = partial(row, study, arguments.seeds)
    if study.remember("iterations", lambda: arguments.iterations) != arguments.iterations:
        sys.exit(f"{arguments.json} holds runs of another length; give --json another file.")
    length = ["SOLVER.MAX_ITER", str(arguments.iterations)]
    sweep = {
        rate: train_row(f"plain, rate {rate}", PLAIN, [*length, "SOLVER.BASE_LR", str(rate)])
        for rate in arguments.rates
    }
    best = max(sweep, key=lambda rate: summary(sweep[rate])["AP"][0])
    rate = ["SOLVER.BASE_LR", str(best)]
    rows = {f"plain (rate {value})": runs for value, runs in sweep.items()}
    for name, (config, overrides) in ROWS.items():
        rows[name] = train_row(name, config, [*length, *rate, *overrides])
    ratio = study.remember("step_ratio", lambda: step_ratio(D3ETR, PLAIN))
    longer = round(arguments.iterations * ratio)
    name = "control: plain for D3ETR's time"
    rows[name] = train_row(name, PLAIN, ["SOLVER.MAX_ITER", str(longer), *rate])

    table = Table("row", "AP", "AP50", "AP75", "gain", title=f"digits_val, rate {best}, step ratio {ratio:.2f}")
    plain = summary(sweep[best])["AP"][0]
    for name, runs in rows.items():
        found = summary(runs)
        scores = [f"{found[key][0]:.1f} ± {found[key][1]:.1f}" for key in METRICS]
        gain = f"{found['AP'][0] - plain:+.1f}"
        table.add_row(name, *scores, gain)
    Console(width=120).print(table)
    result = {
        "rate": best,
        "iterations": arguments.iterations,
        "iterations_equal_time": longer,
        "step_ratio": ratio,
        "rows": {name: summary(runs) for name, runs in rows.items()},
    }
    study.save(result)


if __name__ == "__main__":
    main()
