"""One output folder, one run: nothing is mixed up or overwritten by accident."""

from __future__ import annotations

import fnmatch
import logging
import os
from pathlib import Path

import yaml
from detectron2.config import CfgNode

from ..config.build import default_config, flatten
from ..errors import ConfigError
from ..registry import current_names

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.json"
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


def prepare_run_folder(cfg: CfgNode, *, resume: bool = False, overwrite: bool = False) -> None:
    """Checks that a training run may use ``OUTPUT_DIR``; to be called before anything is written there.

    Args:
        cfg: of the run. resume: go on with the run in the folder. overwrite: move another run's folder aside.

    Raises:
        ConfigError: the folder holds another run, or the run to resume had another configuration.
    """
    folder = Path(cfg.OUTPUT_DIR)
    # A start that failed before its first step leaves a configuration and a log, and nothing to protect.
    if not has_checkpoints(folder) and not (folder / METRICS_FILE).is_file():
        return
    changes = differences(folder, cfg)
    if resume:
        changes = {key: change for key, change in changes.items() if not _is_harmless(key, cfg)}
        if changes and has_checkpoints(folder):
            raise ConfigError(
                f"--resume: the run in {folder} was started with another configuration:\n{_show(changes)}\n"
                "Give it the values that it had, or train the new ones in another OUTPUT_DIR."
            )
        return
    changes.pop("OUTPUT_DIR", None)
    if not changes and not has_checkpoints(folder):
        return
    if overwrite:
        logger.warning("--overwrite: the run in %s is now in %s", folder, move_aside(folder))
        return
    what = "holds another run" if changes else "holds a run of this configuration, with checkpoints"
    raise ConfigError(
        f"OUTPUT_DIR {folder} {what}.\n{_show(changes)}"
        "Use --resume to go on with it, another OUTPUT_DIR to keep both, "
        f"or --overwrite, which renames it to {_free_name(folder)}."
    )


def has_checkpoints(folder: Path) -> bool:
    """Whether a run stored its state there."""
    return (folder / "last_checkpoint").is_file() or any(folder.glob("model_*.pth"))


def differences(folder: Path, cfg: CfgNode) -> dict[str, tuple[object, object]]:
    """Keys whose value in a folder's configuration is not that of ``cfg``: key -> (old, new).

    A key that the folder's older configuration lacks had its default then; a plug-in may have had another name.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        return {}
    try:
        old = flatten(yaml.safe_load(path.read_text()) or {})
    except (yaml.YAMLError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): use another OUTPUT_DIR.") from error
    new = _flat(cfg)
    defaults = _flat(default_config())
    pairs = {key: (old.get(key, defaults.get(key)), value) for key, value in new.items()}
    return {key: pair for key, pair in pairs.items() if current_names(pair[0]) != current_names(pair[1])}


def move_aside(folder: Path) -> Path:
    """Renames a folder to the first free ``NAME.old-<n>``."""
    target = _free_name(folder)
    os.rename(folder, target)
    return target


def _free_name(folder: Path) -> Path:
    number = 1
    while (target := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    return target


def _flat(cfg: CfgNode) -> dict[str, object]:
    # Through YAML, so that tuples and lists compare as they will when read back.
    return flatten(yaml.safe_load(cfg.dump()))


def _is_harmless(key: str, cfg: CfgNode) -> bool:
    # A multi-step schedule does not depend on where the run ends; a cosine one would jump.
    if key == "SOLVER.MAX_ITER" and cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        return True
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in HARMLESS)


def _show(changes: dict[str, tuple[object, object]]) -> str:
    lines = [f"  {key}: {old!r} there, {new!r} now\n" for key, (old, new) in list(changes.items())[:DIFFERENCES_SHOWN]]
    if len(changes) > DIFFERENCES_SHOWN:
        lines.append(f"  and {len(changes) - DIFFERENCES_SHOWN} more keys\n")
    return "".join(lines)
