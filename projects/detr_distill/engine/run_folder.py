"""One output folder, one run: nothing is mixed up or overwritten by accident."""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import yaml
from detectron2.config import CfgNode

from ..checkpoint.checkpointer import LAST
from ..config.build import default_config, flatten
from ..errors import ConfigError
from ..registry import current_names
from .folder.lock import locked
from .folder.moving import CONFIG_FILE, check_movable, free_name, move_aside, move_back
from .metrics_file import METRICS_FILE

logger = logging.getLogger(__name__)

DIFFERENCES_SHOWN = 6

# Keys that may change when a run is resumed: they alter how long, where or how visibly it runs, not what it learns.
HARMLESS = (
    "DATALOADER.NUM_WORKERS",
    "MODEL.DEVICE",
    "OUTPUT_DIR",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.CHECKPOINT_KEEP",
    "TEST.*",
    "DATASETS.TEST",
    "VIS_PERIOD",
    "CUDNN_BENCHMARK",
    # Read only when a run starts; a resumed one takes everything from its checkpoint.
    "MODEL.WEIGHTS",
    # Where files are; a folder may be moved between two parts of a run.
    "DATASETS.REGISTER",
    "PLUGINS",
    "MODEL.DISTILL.TEACHER.CONFIG_FILE",
    "MODEL.DISTILL.TEACHER.WEIGHTS",
)


def output_folder(path: str | None) -> str:
    """The value of ``OUTPUT_DIR`` with ``~`` for the home folder.

    Raises:
        ConfigError: it is empty, of an unknown user, an address, or no path.
    """
    expanded = os.path.expanduser(path or "")  # a file may say null
    if not expanded.strip() or "://" in expanded or "\0" in expanded or expanded.startswith("~"):
        raise ConfigError(f"OUTPUT_DIR is {path!r}. Name a folder of this machine, such as output/my_run.")
    return expanded


@contextlib.contextmanager
def claim_run_folder(
    cfg: CfgNode, *, resume: bool = False, overwrite: bool = False, config_file: str = ""
) -> Iterator[None]:
    """Keeps ``OUTPUT_DIR`` for a training run as long as the context lasts; see ``prepare_run_folder``.

    A run that ``overwrite`` moved aside comes back where the new one ends before it has anything to keep.

    Raises:
        ConfigError: another process trains in it, too.
    """
    folder = Path(os.path.realpath(cfg.OUTPUT_DIR))
    with contextlib.ExitStack() as locks:
        locks.enter_context(locked(folder))
        moved = prepare_run_folder(cfg, resume=resume, overwrite=overwrite, config_file=config_file)
        if moved is not None:
            locks.enter_context(locked(folder))
            locks.enter_context(_given_back_unused(folder, moved))
        yield


@contextlib.contextmanager
def _given_back_unused(folder: Path, moved: Path) -> Iterator[None]:
    """Puts the run that was moved aside back where the one that takes its place fails before its first step."""
    try:
        yield
    except BaseException:
        if not holds_a_run(folder):
            move_back(moved, folder)
        raise


def prepare_run_folder(
    cfg: CfgNode, *, resume: bool = False, overwrite: bool = False, config_file: str = ""
) -> Path | None:
    """Checks that a training run may use ``OUTPUT_DIR``; to be called before anything is written there.

    Args:
        cfg: of the run. resume: go on with the run in the folder. overwrite: move another run's folder aside.
        config_file: that ``cfg`` was read from, which then stays where it is.

    Returns:
        Where the folder is now, if it was moved aside.

    Raises:
        ConfigError: the folder holds another run, the run to resume had another configuration, or the folder is none
            that can be moved.
    """
    folder = Path(cfg.OUTPUT_DIR)
    # A start that failed before its first step leaves a configuration and a log, and nothing to protect.
    if not holds_a_run(folder):
        return None
    changes = differences(folder, cfg)
    if resume:
        changes = {key: change for key, change in changes.items() if not is_harmless(key, cfg)}
        if changes and has_checkpoints(folder):
            raise ConfigError(
                f"--resume: the run in {folder} was started with another configuration:\n{show_differences(changes)}\n"
                "Give it the values that it had, or train the new ones in another OUTPUT_DIR."
            )
        return None
    changes.pop("OUTPUT_DIR", None)
    if not changes and not has_checkpoints(folder):
        return None
    if overwrite:
        check_movable(folder, cfg, config_file)
        moved = move_aside(folder)
        logger.warning("--overwrite: the run in %s is now in %s", folder, moved)
        return moved
    what = "holds another run" if changes else "holds a run of this configuration, with checkpoints"
    raise ConfigError(
        f"OUTPUT_DIR {folder} {what}.\n{show_differences(changes)}"
        "Use --resume to go on with it, another OUTPUT_DIR to keep both, "
        f"or --overwrite, which renames it to {free_name(folder)}."
    )


def holds_a_run(folder: Path) -> bool:
    """Whether a run left something there that is worth keeping: checkpoints, or metrics of a step."""
    metrics = folder / METRICS_FILE
    return has_checkpoints(folder) or (metrics.is_file() and metrics.stat().st_size > 0)


def has_checkpoints(folder: Path) -> bool:
    """Whether a run stored its state there."""
    return (folder / LAST).is_file() or any(folder.glob("model_*.pth"))


def differences(folder: Path, cfg: CfgNode) -> dict[str, tuple[object, object]]:
    """Keys whose value in a folder's configuration is not that of ``cfg``: key -> (old, new).

    A key that the folder's older configuration lacks had its default then; a plug-in may have had another name.
    """
    path = folder / CONFIG_FILE
    try:
        old = flatten(yaml.safe_load(path.read_text(encoding="utf-8")))
        if "VERSION" not in old:  # among the last keys of every configuration
            raise ValueError("it is cut short")
    except (OSError, ValueError, yaml.YAMLError, AttributeError) as error:  # AttributeError: it is no KEY: VALUE
        logger.warning("%s cannot be read, so its settings are not compared with this run's: %s", path, error)
        return {}
    new = _flat(cfg)
    defaults = _flat(default_config())
    pairs = {key: (old.get(key, defaults.get(key)), value) for key, value in new.items()}
    return {key: pair for key, pair in pairs.items() if current_names(pair[0]) != current_names(pair[1])}


def _flat(cfg: CfgNode) -> dict[str, object]:
    # Through YAML, so that tuples and lists compare as they will when read back.
    return flatten(yaml.safe_load(cfg.dump()))


def is_harmless(key: str, cfg: CfgNode) -> bool:
    """Whether a run may be gone on with though the value of a key has changed."""
    # A multi-step schedule does not depend on where the run ends; a cosine one would jump.
    if key == "SOLVER.MAX_ITER" and cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        return True
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in HARMLESS)


def show_differences(changes: dict[str, tuple[object, object]]) -> str:
    """Lines for a message, of the first few keys: what they had, and what they have now."""
    lines = [f"  {key}: {old!r} there, {new!r} now\n" for key, (old, new) in list(changes.items())[:DIFFERENCES_SHOWN]]
    if len(changes) > DIFFERENCES_SHOWN:
        lines.append(f"  and {len(changes) - DIFFERENCES_SHOWN} more keys\n")
    return "".join(lines)
