"""Recognises what stands at a path: a detector of transformers or of this package, or what one has predicted."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from detectron2.config import CfgNode

from ...checkpoint.transformers_folder import open_folder, read_config
from ...config.build import build_config
from ...config.defaults import CLASS_NODES, detector_name
from ...config.files import complete_path
from ...data.formats.coco_images import looks_like_coco
from ...data.predictions.description import DESCRIPTION
from ...errors import CheckpointError, first

CONFIG_FILE, FINAL = "config.yaml", "model_final.pth"
CHECKPOINTS = (".pth", ".safetensors", ".pkl", ".pt", ".bin")
PROGRAMS = (".onnx", ".pt2")
_TRANSFORMERS = "a folder of transformers (config.json), "
_WAYS = "a run's folder (config.yaml and model_final.pth), a checkpoint with its config.yaml beside it"
_PREDICTIONS = ", or what detr-distill predict has written (a folder, or a .json file)"


@dataclass(frozen=True)
class Found:
    """What a path holds.

    Attributes:
        teacher: class of the teacher that reads it: TransformersDetector, FrozenDetector or PredictionsFile.
        weights: full path. says: what it is, in words.
        config_file: of a detector of this package. opts: KEY VALUE pairs that make it the plain detector's.
        cfg: both together. settings: content of ``config.json``, of transformers.
    """

    teacher: str
    weights: str
    says: str
    config_file: str = ""
    opts: tuple[str, ...] = ()
    cfg: CfgNode | None = None
    settings: dict = field(default_factory=dict)


def find_detector(
    path: str, key: str, config_file: str = "", *, predictions: bool = True, folders: bool = True
) -> Found:
    """What stands at a path.

    Args:
        key: option that names it, for messages. config_file: of a checkpoint that has none beside it.
        predictions, folders: whether what a detector has predicted, and a folder of transformers, will do.

    Raises:
        CheckpointError: nothing is there, something else, a run that has not ended, or a checkpoint without a
            configuration. ConfigError: that cannot be read.
    """
    place = Path(complete_path(path))
    ways = f"Name {_TRANSFORMERS if folders else ''}{_WAYS}{_PREDICTIONS if predictions else ''}."
    if place.is_dir():
        of_transformers = (place / "config.json").is_file()
        if (place / CONFIG_FILE).is_file() and (any(place.glob("model_*.pth")) or not of_transformers):
            return _of_run(place, path, key)
        if predictions and (place / DESCRIPTION).is_file():
            return Found("PredictionsFile", _full(place), f"predictions of every layer in {path}")
        if folders and of_transformers:
            return _of_transformers(place, path, key)
        names = sorted(file.name for file in place.iterdir())
        raise CheckpointError(f"{key} {path} holds {first(names) if names else 'nothing'}. {ways}")
    if not place.exists():
        if place.suffix in (*CHECKPOINTS, *PROGRAMS, ".json"):
            raise CheckpointError(f"{key} {path}: there is no such file (working folder: {Path.cwd()}). {ways}")
        open_folder(path, key)  # says how to fetch a name of the hub
    if place.suffix in CHECKPOINTS:
        return _of_checkpoint(place, path, key, config_file)
    if predictions and place.suffix == ".json" and _begins_with_list(place):
        return Found("PredictionsFile", _full(place), f"detections in {path}")
    what = "an exported program" if place.suffix in PROGRAMS else "no detector that is known"
    if place.suffix == ".json":
        what = "an annotation file" if looks_like_coco(place) else "JSON, and no list of detections"
    raise CheckpointError(f"{key} {path} is {what}. {ways}")


def _of_transformers(folder: Path, path: str, key: str) -> Found:
    settings = read_config(folder, key)
    kind = str(settings.get("model_type"))
    return Found("TransformersDetector", _full(folder), f"{kind} of transformers in {path}", settings=settings)


def _of_run(folder: Path, path: str, key: str) -> Found:
    weights = folder / FINAL
    if not weights.is_file():
        others = sorted(file.name for file in folder.glob("model_*.pth"))
        advice = f"Name one of its checkpoints, {first(others)}, or go on with it." if others else "Go on with it."
        raise CheckpointError(f"{key} {path} is a run that has not ended: there is no {FINAL}. {advice}")
    return _of_configuration(weights, folder / CONFIG_FILE, f"the run in {path}")


def _of_checkpoint(file: Path, path: str, key: str, config_file: str) -> Found:
    beside = Path(complete_path(config_file)) if config_file else file.parent / CONFIG_FILE
    if not config_file and not beside.is_file():
        if (file.parent / "config.json").is_file():
            raise CheckpointError(f"{key} {path} is of a folder of transformers. Name the folder, {file.parent}.")
        raise CheckpointError(
            f"{key} {path} is a checkpoint without a {CONFIG_FILE} beside it, which says of what detector it is. Name "
            "that with --teacher-config or --config-file; weights of other programs are taken over by detr-distill "
            "import --source ... --config FILE."
        )
    return _of_configuration(file, beside, f"the checkpoint {path}")


def _of_configuration(weights: Path, config_file: Path, says: str) -> Found:
    cfg = build_config(str(config_file), [])
    distilled, name = cfg.MODEL.META_ARCHITECTURE == "DistillDetector", detector_name(cfg)
    cfg.MODEL.META_ARCHITECTURE = name
    if name not in CLASS_NODES:
        raise CheckpointError(f"{says} is of a {name}. Known are {', '.join(CLASS_NODES)}; a plug-in's is set by keys.")
    opts = ("MODEL.META_ARCHITECTURE", name) if distilled else ()
    return Found("FrozenDetector", _full(weights), f"{name} of {says}", _full(config_file), opts, cfg)


def _begins_with_list(file: Path) -> bool:
    try:
        with open(file, encoding="utf-8-sig") as opened:
            if not opened.read(100).lstrip().startswith("["):
                return False
            opened.seek(0)
            found = json.load(opened)
    except (OSError, ValueError):
        return False
    return all(isinstance(entry, dict) and "score" in entry for entry in found[:1])


def _full(path: Path) -> str:
    return os.path.abspath(path)
