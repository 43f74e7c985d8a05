"""The verbs of ``detr-distill``."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

from .recipes import distil_parser, evaluate_parser, train_parser
from .simple import doctor_parser, predict_parser, report_parser
from .tools import calibrate_parser, export_parser, import_parser, visualize_parser
from .words import flags_first

PACKAGE = "detr_distill"


@dataclass(frozen=True)
class Verb:
    """One of the programs.

    Attributes:
        says: what it does. module: below ``detr_distill.commands``, whose ``main`` takes the rest of the command line.
        parser: its options.
        anywhere: its flags may stand among the KEY VALUE pairs.
    """

    says: str
    module: str
    parser: Callable[[], argparse.ArgumentParser]
    anywhere: bool = True


VERBS = {
    "distil": Verb("train a small detector with the help of a large one", "distil", distil_parser),
    "train": Verb("train a detector without a teacher, or by a configuration", "train", train_parser),
    "evaluate": Verb("measure the AP of a trained detector", "evaluate", evaluate_parser),
    "predict": Verb("detect in images and videos, or write a teacher's predictions", "predict", predict_parser, False),
    "import": Verb("take over a checkpoint that was trained elsewhere", "import_checkpoint", import_parser, False),
    "export": Verb("take the student out of a run, as weights or as a program", "export_student", export_parser, False),
    "visualize": Verb("draw detections, query pairs and attention maps", "visualize", visualize_parser, False),
    "calibrate": Verb("find the weight that gives a loss its share", "calibrate_lambda", calibrate_parser),
    "report": Verb("compare runs by their folders", "report", report_parser),
    "doctor": Verb("say which versions, devices and kernels are there, and what is missing", "doctor", doctor_parser),
}


def main(argv: list[str] | None = None) -> None:
    """The program: the first word is the verb."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return
    if words[0] == "--version":
        print(metadata.version(PACKAGE))
        return
    if words[0] not in VERBS:
        near = difflib.get_close_matches(words[0], VERBS, n=1, cutoff=0.5)
        guess = f" Did you mean {near[0]}?" if near else ""
        print(f"detr-distill {words[0]}: there is no such verb.{guess}\n\n{overview()}", file=sys.stderr)
        raise SystemExit(2)
    verb, rest = VERBS[words[0]], words[1:]
    parser = verb.parser()
    parser.prog = f"detr-distill {words[0]}"
    # --help and typing errors end here, before anything is loaded.
    parser.parse_args(flags_first(parser, rest) if verb.anywhere else rest)
    importlib.import_module(f"{PACKAGE}.commands.{verb.module}").main(rest)


def overview() -> str:
    """All verbs, a line each."""
    lines = [f"  {name:<10} {verb.says}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: detr-distill VERB [options] [KEY VALUE ...]",
            "",
            *lines,
            "",
            "detr-distill VERB --help has the options of each.",
        ]
    )
