"""What a process sets up before it trains or evaluates: log, seed, the configuration on disk."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import sys

import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..checkpoint.writing import explain_unwritable, write_atomically
from ..config.without_effect import keys_without_effect
from ..errors import ConfigError
from .folder.moving import CONFIG_FILE

logger = logging.getLogger(__name__)

# What helps where an evaluation cannot write to its folder.
TO_EVALUATE = " To evaluate a run that lies there, name its checkpoint with MODEL.WEIGHTS."
LOGGERS = ("fvcore", "detectron2", "detr_distill")


def set_up_process(cfg: CfgNode, *, training: bool, command: str = "") -> None:
    """Logs to ``OUTPUT_DIR/log.txt`` (``log.txt.rank<n>`` for other ranks) and seeds the random generators.

    It stands for detectron2's ``default_setup``, which asks the compiled operators for their compiler and overwrites a
    training run's configuration when that run is evaluated.

    Args:
        training: write ``config.yaml`` too. command: the command line, for the log.
    """
    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        set_up_logs(cfg.OUTPUT_DIR)
    except OSError as error:
        hint = "" if training else TO_EVALUATE
        raise ConfigError(f"OUTPUT_DIR {explain_unwritable(cfg.OUTPUT_DIR, error)}{hint}") from error
    logger.info("Command: %s", command)
    logger.info("%s; process %d of %d", describe_environment(cfg), comm.get_rank() + 1, comm.get_world_size())
    for words in keys_without_effect(cfg):
        logger.warning("%s", words)
    if training and comm.is_main_process():
        path = os.path.join(cfg.OUTPUT_DIR, CONFIG_FILE)
        write_atomically(path, lambda file: file.write(cfg.dump().encode()))
        logger.info("The whole configuration is in %s", path)
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    if training:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    precision = cfg.get("FLOAT32_PRECISION", "")  # a key of detectron2's main branch
    if precision:
        torch.set_float32_matmul_precision(precision)


def describe_environment(cfg: CfgNode) -> str:
    """Versions and device, in one line."""
    device = cfg.MODEL.DEVICE
    if device.startswith("cuda"):
        device += f" ({torch.cuda.get_device_name()}, CUDA {torch.version.cuda})"
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    return f"Python {platform.python_version()}, {versions}, {device}"


def set_up_logs(folder: str | None = None) -> None:
    """Console on the first rank and, once the folder is known to be ours, a file in it on every rank."""
    # detectron2 adds handlers at each call with new arguments: without this, each line would appear twice.
    if hasattr(setup_logger, "cache_clear"):
        setup_logger.cache_clear()
    logging.raiseExceptions = False  # a console that is gone costs its lines, not a stack trace for each of them
    rank = comm.get_rank()
    file = None if folder is None else LogFile(os.path.join(folder, "log.txt" + (f".rank{rank}" if rank else "")))
    for name in LOGGERS:
        each = logging.getLogger(name)
        for handler in each.handlers:
            if isinstance(handler, LogFile):
                handler.close()
        each.handlers.clear()
        setup_logger(None, distributed_rank=rank, name=name, abbrev_name=name)
        if file is not None:
            each.addHandler(file)


class LogFile(logging.FileHandler):
    """The file of the log. Where it cannot be written any more, one line says so and the run goes on.

    Args:
        path: of the file; lines are added to what it has.
    """

    def __init__(self, path: str):
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%m/%d %H:%M:%S"))
        self._failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """Called by ``logging`` where a line could not be written."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            print(f"{explain_unwritable(self.baseFilename, error)} The run goes on without its log.", file=sys.stderr)

    def close(self) -> None:
        """Lines that found no room are lost."""
        with contextlib.suppress(OSError):
            super().close()
