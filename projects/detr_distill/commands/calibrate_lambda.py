"""Finds the weight of the distillation loss that gives it a wanted share of the total loss.

Each trial trains the run's first iterations from the same start, in one process and without leaving anything behind.
The last line is the key to put into the configuration.
"""

from __future__ import annotations

import argparse
import sys

import rich.progress
from detectron2.config import CfgNode
from rich.console import Console

from ..config.ranges import COUNT, Range
from ..data import read_configuration
from ..engine.calibration import KEY, calibrate, measure_share
from ..engine.device import choose_device
from ..engine.report import report_user_errors
from ..engine.starting.check import prepare_datasets
from ..errors import ConfigError
from ..options.tools import calibrate_parser
from ..options.words import flags_first


def main(argv: list[str] | None = None) -> None:
    """The command; a user's error ends it with status 1."""
    parser = calibrate_parser()
    arguments = parser.parse_args(flags_first(parser, sys.argv[1:] if argv is None else argv))
    with report_user_errors():
        weight = run(arguments, Console(stderr=True))
        node, name = KEY.removeprefix("MODEL.DISTILL.").split(".")
        # The key is a float, which a whole number in a file would not be.
        print(f"MODEL: {{DISTILL: {{{node}: {{{name}: {float(f'{weight:.4g}')}}}}}}}")


def run(arguments: argparse.Namespace, console: Console) -> float:
    """The weight that was found; the console shows the trials.

    Raises:
        ConfigError: a configuration whose weight cannot be looked for, or options out of range.
    """
    cfg = read_configuration(arguments.config_file, arguments.opts, plugins=True)
    choose_device(cfg, arguments)
    check(cfg, arguments)
    prepare_datasets(cfg)

    def measure(weight: float) -> float:
        cfg.merge_from_list([KEY, weight])
        with rich.progress.Progress(console=console, transient=True) as progress:
            task = progress.add_task(f"weight {weight:.3g}", total=arguments.iterations)
            share = measure_share(cfg, arguments.iterations, lambda _: progress.advance(task))
        console.print(f"weight {weight:8.3f}   share {share:.3f}")
        return share

    weight, probes = calibrate(
        measure, arguments.target_share, arguments.low, arguments.high, arguments.tolerance, arguments.probes
    )
    missed = min(abs(probe.share - arguments.target_share) for probe in probes)
    if missed > arguments.tolerance:
        console.print(
            f"The nearest share is {missed:.3f} off, more than --tolerance {arguments.tolerance}: allow more "
            f"--probes, or widen the range from --low {arguments.low} to --high {arguments.high}."
        )
    return weight


def check(cfg: CfgNode, arguments: argparse.Namespace) -> None:
    """Raises ConfigError for a configuration without a weight to look for, or options out of range."""
    node = cfg.MODEL.DISTILL
    if cfg.MODEL.META_ARCHITECTURE != "DistillDetector" or "FeatureLoss" not in node.LOSSES:
        raise ConfigError(f"--config-file {arguments.config_file} does not distil with FeatureLoss.")
    if node.BALANCE.TARGET_SHARE:
        raise ConfigError(
            f"MODEL.DISTILL.BALANCE.TARGET_SHARE is {node.BALANCE.TARGET_SHARE}: the run steers the share by itself. "
            "Set it to 0.0 to look for a weight."
        )
    if cfg.SEED < 0:
        raise ConfigError("SEED is negative, so no two trials would start alike. Give a seed: SEED 1")
    COUNT.check("--probes", arguments.probes)
    Range(1, most=cfg.SOLVER.MAX_ITER).check("--iterations, the first of SOLVER.MAX_ITER,", arguments.iterations)


if __name__ == "__main__":
    main()
