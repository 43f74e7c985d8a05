"""The options of training and evaluation by a configuration: of ``train_net.py`` and of the verb ``train``."""

from __future__ import annotations

import argparse
import os

from .words import add_overrides

# Users of one machine should not meet at one port.
PORT = 2**15 + 2**14 + hash(os.getuid()) % 2**14


def training_parser() -> argparse.ArgumentParser:
    """Of ``train_net.py``: detectron2's flags and ours."""
    parser = argparse.ArgumentParser(
        description="Trains, or evaluates, what a configuration describes.",
        epilog="On several machines: the same command on each, with --num-machines, --machine-rank and --dist-url.",
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="path to the configuration")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    parser.add_argument("--num-gpus", type=int, default=1, help="of each machine (default 1); 0: on the CPU")
    add_machines(parser)
    add_overwrite(parser)
    add_overrides(parser)
    return parser


def add_machines(parser: argparse.ArgumentParser) -> None:
    """Options of a run on several machines."""
    parser.add_argument("--num-machines", type=int, default=1, help="of the run (default 1)")
    parser.add_argument("--machine-rank", type=int, default=0, help="which of them this is, from 0")
    parser.add_argument(
        "--dist-url", default=f"tcp://127.0.0.1:{PORT}", help="address of the first, for several (default %(default)s)"
    )


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """What happens to another run in the output folder."""
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start although the output folder holds another run; that is kept as FOLDER.old-<n>",
    )
