"""Gives the project random bad inputs and counts how they end: taken rightly, refused in words, taken wrongly, crashed.

    python benchmarks/fuzz.py --minutes 10 --seed 0 --json benchmarks/results/fuzz.json

Every module of ``fuzzing/`` makes inputs of one kind; they take turns. The same seed makes the same inputs. Keys of the
JSON, for each kind: inputs, taken, refused (by an error of the project's own), silent_drops (an ``AssertionError`` of
the check) and stack_traces (any other error), with the first few of these two; and of all together.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from detr_distill.errors import DetrDistillError

import fuzzing
import numpy as np
from common import write_result

Input = tuple[str, Callable[[], None]]

_KEPT = 20  # examples of each fault


class Tally:
    """How the inputs of one kind ended."""

    def __init__(self) -> None:
        self.taken = self.refused = 0
        self.silent_drops: list[dict] = []
        self.stack_traces: list[dict] = []

    def run(self, number: int, description: str, call: Callable[[], None]) -> None:
        """Gives one input, the ``number``-th of its kind."""
        try:
            call()
        except DetrDistillError:
            self.refused += 1
        except AssertionError as error:
            self.silent_drops.append({"number": number, "input": description, "error": str(error)})
        except Exception:
            trace = traceback.format_exc().splitlines()[-8:]
            self.stack_traces.append({"number": number, "input": description, "error": trace})
        else:
            self.taken += 1

    def result(self) -> dict:
        faults = {"silent_drops": self.silent_drops, "stack_traces": self.stack_traces}
        return {
            "inputs": self.taken + self.refused + sum(map(len, faults.values())),
            "taken": self.taken,
            "refused": self.refused,
            **{name: len(found) for name, found in faults.items()},
            "examples": {name: found[:_KEPT] for name, found in faults.items()},
        }


def kinds() -> list[str]:
    """The modules of ``fuzzing``."""
    return sorted(module.name for module in pkgutil.iter_modules(fuzzing.__path__))


def fuzz(names: list[str], seed: int, seconds: float, most: int | None = None) -> dict:
    """Runs the kinds in turn until the time is over, or each has had ``most`` inputs."""
    streams: dict[str, Iterator[Input]] = {}
    for name in names:
        streams[name] = importlib.import_module(f"fuzzing.{name}").inputs(np.random.default_rng(seed))
    tallies = {name: Tally() for name in names}
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end and (most is None or number < most):
        for name, stream in streams.items():
            tallies[name].run(number, *next(stream))
        number += 1
    results = {name: tally.result() for name, tally in tallies.items()}
    counts = ("inputs", "taken", "refused", "silent_drops", "stack_traces")
    return {**{key: sum(result[key] for result in results.values()) for key in counts}, "kinds": results}


def argument_parser() -> argparse.ArgumentParser:
    """The program's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, help="inputs of each kind at most; default: as many as the time allows")
    parser.add_argument("--kinds", nargs="+", choices=kinds(), default=kinds())
    parser.add_argument("--json", type=Path, help="file for the result")
    return parser


def main() -> None:
    arguments = argument_parser().parse_args()
    result = {
        **fuzz(arguments.kinds, arguments.seed, 60 * arguments.minutes, arguments.inputs),
        "seed": arguments.seed,
        "minutes": arguments.minutes,
    }
    if arguments.json:
        write_result(arguments.json, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
