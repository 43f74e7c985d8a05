"""Starts a recipe, goes on with it, or says that it is done."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import torch
from detectron2.config import CfgNode

from ...checkpoint import last_checkpoint
from ...checkpoint.writing import write_atomically
from ...data import read_configuration
from ...engine import launch
from ...engine.processes.torchrun import Place
from ...engine.report import report_user_errors
from ...engine.results import RESULTS_FILE
from ...engine.run_folder import differences, holds_a_run, is_harmless, output_folder, show_differences
from ...engine.starting.epochs import in_iterations
from ...errors import ConfigError
from .compose import FILE, Recipe
from .detectors import FINAL


def run_recipe(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Trains, or goes on where the same command was stopped; a user's error ends it with status 1.

    Args:
        arguments: of the verbs distil and train.
    """
    print("\n".join(recipe.says), end=f"\n\n{recipe.yaml}\n" if arguments.dry_run else "\n", flush=True)
    if arguments.dry_run:
        return
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, FILE)
        file.write_text(recipe.yaml, encoding="utf-8")
        with report_user_errors():
            check_one_process()
            gpus = count_gpus(arguments.num_gpus)
            folder = Path(output_folder(arguments.output))
            if not arguments.overwrite and is_finished(folder, file):
                print(f"The run in {folder} is finished{_result(folder)}. --overwrite starts it anew.")
                return
        words = ["--config-file", str(file), "--num-gpus", str(gpus)]
        if arguments.overwrite:
            words.append("--overwrite")
        elif holds_a_run(folder):
            words.append("--resume")
        for option in ("num_machines", "machine_rank", "dist_url"):
            if option in vars(arguments):
                words += [f"--{option.replace('_', '-')}", str(vars(arguments)[option])]
        training = launch.argument_parser().parse_args(words)
        training.goes_on = "The same command"
        launch.start(training, lambda cfg: _keep(recipe, cfg))


def _keep(recipe: Recipe, cfg: CfgNode) -> None:
    write_atomically(os.path.join(cfg.OUTPUT_DIR, FILE), lambda file: file.write(recipe.yaml.encode()))


def check_one_process() -> None:
    """Raises ConfigError where torchrun has started several processes, of which each would compose a recipe."""
    if Place.from_environment() is not None:
        raise ConfigError(
            "torchrun starts train_net.py: write the configuration with --dry-run, save it, and give it with "
            "--config-file."
        )


def is_finished(folder: Path, file: Path) -> bool:
    """Whether a folder holds the run of a configuration, and its last iteration.

    Raises:
        ConfigError: it holds another run.
    """
    if not holds_a_run(folder):
        return False
    cfg = in_iterations(read_configuration(str(file), [], plugins=True))
    changes = {key: pair for key, pair in differences(folder, cfg).items() if not is_harmless(key, cfg)}
    if changes:
        raise ConfigError(
            f"--output {folder} holds another run:\n{show_differences(changes)}"
            "Give it the options that it had to go on with it, name another folder, or keep it as "
            f"{folder}.old-<n> with --overwrite."
        )
    last = last_checkpoint(str(folder))
    return last is not None and Path(last).name == FINAL


def _result(folder: Path) -> str:
    try:
        found = json.loads((folder / RESULTS_FILE).read_text())["datasets"]
        return ": " + ", ".join(f"AP {value['bbox']['AP']:.1f} on {name}" for name, value in found.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""


def count_gpus(asked: int | None) -> int:
    """How many GPUs a run has: those asked for, or all that are there.

    Raises:
        ConfigError: there are fewer.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked is None:
        return there
    if asked > there:
        raise ConfigError(
            f"--num-gpus {asked}: torch sees {there or 'no GPU'} here (detr-distill doctor says more). Use --num-gpus "
            f"{there}" + ("." if there else ", the CPU, or leave the option out.")
        )
    return asked
