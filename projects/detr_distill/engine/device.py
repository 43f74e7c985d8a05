"""The device of a run, as the configuration and the command line ask for it."""

from __future__ import annotations

import argparse
import os

import torch
from detectron2.config import CfgNode

from ..config.build import logger
from ..errors import ConfigError


def choose_device(cfg: CfgNode, arguments: argparse.Namespace) -> None:
    """Makes ``MODEL.DEVICE`` and ``--num-gpus`` agree with the machine, in place.

    Raises:
        ConfigError: more GPUs than the machine has, or several machines without GPUs.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if arguments.num_gpus > available > 0:
        raise ConfigError(
            f"--num-gpus {arguments.num_gpus}: this machine has {available}. Use --num-gpus {available} or fewer."
        )
    if available and arguments.num_gpus > 0:
        return
    if arguments.num_machines > 1:
        raise ConfigError(f"--num-machines {arguments.num_machines} needs GPUs on every machine; this one offers none.")
    if arguments.num_gpus > 0 and cfg.MODEL.DEVICE != "cpu":
        logger.warning("No CUDA device: --num-gpus %d becomes one process on the CPU.", arguments.num_gpus)
    arguments.num_gpus = 0
    cfg.MODEL.DEVICE = "cpu"
    # More loader processes than cores only slow a CPU run down; the batches do not depend on their number.
    cfg.DATALOADER.NUM_WORKERS = min(cfg.DATALOADER.NUM_WORKERS, _usable_cores())


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
