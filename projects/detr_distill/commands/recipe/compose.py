"""The configuration of a run: a detector by its name, its data, its length and, where it distils, its teacher."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from ...config.build import build_config
from ...config.defaults import CLASS_NODES, detector_name
from ...config.keys import read_key
from ...data import register_configured
from ...engine.starting.epochs import in_iterations
from ...errors import ConfigError
from .detectors import Found, find_detector
from .methods import choose_method, given_by, given_by_teacher
from .schedule import checkpoint_period, epochs_keys
from .sets import choose_sets
from .students import find_student

FILE = "recipe.yaml"  # in the folder of the run


@dataclass(frozen=True)
class Recipe:
    """What a run is.

    Attributes:
        yaml: its configuration file. says: what was found and chosen, a line each.
    """

    yaml: str
    says: tuple[str, ...]


def compose(arguments: Namespace, name: str, key: str, command: str) -> Recipe:
    """The recipe of a command line.

    Args:
        arguments: of the verbs distil and train; without ``teacher`` nothing is distilled. name: of the detector.
        key: option that names it. command: for the file's first line.

    Raises:
        DetrDistillError: a detector, teacher, set or key that cannot be used.
    """
    if not arguments.output:
        raise ConfigError("--output is missing. Name the folder of the run, such as output/my_student.")
    if "OUTPUT_DIR" in arguments.opts[::2]:
        raise ConfigError("OUTPUT_DIR is what --output names. Give it there alone.")
    student = find_student(name, key)
    words = [word for pair in student.keys.items() for word in pair]
    base = build_config(student.base, [*words, *arguments.opts], plugins=True)
    if base.MODEL.META_ARCHITECTURE == "DistillDetector":
        raise ConfigError(
            f"{key} {name} distils by itself: run it with detr-distill train --config-file {name}, or name the "
            "configuration of a plain detector."
        )
    own = {given: read_key(base, given) for given in arguments.opts[::2]}
    says = [f"{key.removeprefix('--')}: {student.says}"]
    sets = choose_sets(arguments, base)
    keys: dict[str, Any] = {**student.keys, **_class_count(base), **sets.keys}
    keys |= epochs_keys(base, arguments.epochs, own)
    keys["OUTPUT_DIR"] = arguments.output
    teacher = vars(arguments).get("teacher")
    found = find_detector(teacher, "--teacher", arguments.teacher_config or "") if teacher else None
    if found is not None:
        distilling, method = _distilling(found, base)
        keys |= distilling
        says = [f"teacher: {found.says}", *says, method]
        if sets.are_mixed:
            keys["MODEL.DISTILL.PSEUDO_LABELS.IMAGES"] = "unlabeled"
            says.append("on images without labels the teacher's confident boxes are the objects, too")
    if base.INPUT.MAPPER != "detr" and ((found is not None and found.teacher == "PredictionsFile") or sets.are_mixed):
        keys["INPUT.MAPPER"] = "detr"  # which says where it moves an image, and has strong augmentation
    keys |= own
    keys |= _fit_to_length(_read(_write(student.base, keys, command)), base) | own
    return Recipe(_write(student.base, keys, command), (*says, *sets.says))


def _fit_to_length(cfg: CfgNode, base: CfgNode) -> dict[str, Any]:
    """Keys that follow from how many iterations a run has."""
    register_configured(cfg)
    solver = in_iterations(cfg).SOLVER
    keys: dict[str, Any] = {
        "SOLVER.CHECKPOINT_PERIOD": checkpoint_period(solver.MAX_ITER, base.SOLVER.CHECKPOINT_PERIOD)
    }
    if solver.STEPS and max(solver.STEPS) >= solver.MAX_ITER:  # too short for a drop of the rate
        keys |= {"SOLVER.STEPS": [], "SOLVER.EPOCH_STEPS": []}
    return keys


def _class_count(base: CfgNode) -> dict[str, int]:
    """As many classes as the training set has."""
    return {f"MODEL.{CLASS_NODES.get(detector_name(base), 'ROI_HEADS')}.NUM_CLASSES": 0}


def _distilling(found: Found, base: CfgNode) -> tuple[dict[str, Any], str]:
    """The keys of a distilling run, and what is said of the method."""
    method = choose_method(given_by_teacher(found), given_by(base))
    teacher: dict[str, Any] = {"NAME": found.teacher, "WEIGHTS": found.weights}
    if found.config_file:
        teacher |= {"CONFIG_FILE": found.config_file, "OPTS": list(found.opts)}
    keys = {
        "MODEL.META_ARCHITECTURE": "DistillDetector",
        "MODEL.DISTILL.STUDENT_ARCHITECTURE": detector_name(base),
        **{f"MODEL.DISTILL.TEACHER.{name}": value for name, value in teacher.items()},
        "MODEL.DISTILL.MATCHERS": list(method.matchers),
        "MODEL.DISTILL.LOSSES": list(method.losses),
        **method.keys,
    }
    return keys, f"method: {' + '.join((*method.matchers, *method.losses))}: {method.why}"


def _write(base: str, keys: Mapping[str, Any], command: str) -> str:
    """A configuration file as text."""
    nested: dict[str, Any] = {"_BASE_": base}
    for key, value in keys.items():
        *path, last = key.split(".")
        node = nested
        for part in path:
            node = node.setdefault(part, {})
        node[last] = list(value) if isinstance(value, tuple) else value
    body = yaml.safe_dump(nested, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    return f"# {command}\n# The same run: python train_net.py --config-file THIS_FILE --num-gpus N\n{body}"


def _read(text: str) -> CfgNode:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, FILE)
        file.write_text(text, encoding="utf-8")
        return build_config(str(file), [], plugins=True)
