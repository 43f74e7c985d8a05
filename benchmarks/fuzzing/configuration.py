"""Odd values for random keys: each is taken, or refused by an error of the project."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detr_distill.config.build import build_config, default_config, flatten
from detr_distill.data import DetrDatasetMapper
from detr_distill.engine.model import build_named_model
from detr_distill.engine.precision import GradientClipper
from detr_distill.engine.solver import build_optimizer
from detr_distill.engine.trainer import DistillTrainer

import numpy as np
import yaml
from detectron2.config import CfgNode

ROOT = Path(__file__).resolve().parents[2]
# Small detectors of every kind, and a distilled one that needs no file.
CONFIGS = (
    "conditional_student",
    "deformable_student",
    "dino_student",
    "fcos_student",
    "faster_rcnn_student",
    "ema_conditional",
)
NUMBERS = (-1, 0, 1, 2, 3, 7, 64, -0.5, 0.5, 1.5, 1e-9, -1e9, float("nan"), float("inf"), 2**31, 2**63, 10**30)
TEXTS = (
    "",
    " ",
    "true",
    "None",
    "none",
    "0",
    "1e5",
    "0,5",
    "nan",
    "x",
    "ResNet",
    "../x",
    "名",
    "()",
    "[",
    "{'a': 1}",
    "a\nb",
    "'",
)
# Larger models would be built in full before anything is wrong with them.
LARGEST_BUILT = 64


def inputs(generator: np.random.Generator) -> Iterator[tuple[str, Callable[[], None]]]:
    """Endless (description, call): the call configures, builds a small detector and what trains it.

    Args:
        generator: decides the whole sequence.
    """
    defaults = flatten(default_config())
    keys = sorted(defaults)
    while True:
        config = str(generator.choice(CONFIGS))
        chosen = [str(key) for key in generator.choice(keys, size=int(generator.integers(1, 3)), replace=False)]
        values = {_misspelled(key, generator): _odd_value(defaults[key], generator) for key in chosen}
        in_file = bool(generator.integers(2))
        described = f"{config}{' (file)' if in_file else ''}: {', '.join(f'{k} {v!r}' for k, v in values.items())}"
        yield described, partial(_try, config, values, in_file)


def _odd_value(default: object, generator: np.random.Generator) -> object:
    """A number, a text, a truth value, none, a list of these, or nearly the default."""
    kind = generator.integers(12)
    if kind == 0:
        return None
    if kind == 1:
        return bool(generator.integers(2))
    if kind == 2:
        return NUMBERS[generator.integers(len(NUMBERS))]
    if kind == 3:
        return TEXTS[generator.integers(len(TEXTS))]
    if kind == 4:
        return [_odd_value(0, generator) for _ in range(generator.integers(4))]
    return _changed(default, generator)


def _changed(default: object, generator: np.random.Generator) -> object:
    """A value of the default's type."""
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        number = NUMBERS[generator.integers(len(NUMBERS))]
        return int(number) if isinstance(default, int) and np.isfinite(float(number)) else float(number)
    if isinstance(default, str):
        return TEXTS[generator.integers(len(TEXTS))]
    if isinstance(default, list | tuple) and default:
        entries: list[Any] = copy.deepcopy(list(default))
        place = int(generator.integers(len(entries)))
        entries[place] = _changed(entries[place], generator)
        return entries if generator.integers(2) else entries[:place]
    return []


def _misspelled(key: str, generator: np.random.Generator) -> str:
    """Most keys as they are; some in other capitals or a letter short."""
    kind = generator.integers(20)
    return key.lower() if kind == 0 else key[:-1] if kind == 1 else key


def _try(config: str, values: dict[str, object], in_file: bool) -> None:
    file = str(ROOT / "configs" / "digits" / f"{config}.yaml")
    with tempfile.TemporaryDirectory() as folder:
        words: list[str] = ["MODEL.DEVICE", "cpu"]
        if in_file:
            content: dict[str, Any] = {"_BASE_": file}
            for key, value in values.items():
                _put(content, key.split("."), value)
            file = f"{folder}/run.yaml"
            Path(file).write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        else:
            words = [word for key, value in values.items() for word in (key, _typed(value))] + words
        cfg = build_config(file, words)
    if all(_is_small(value) for value in values.values()):
        _build(cfg)


def _build(cfg: CfgNode) -> None:
    """What a run would build before it looks at data."""
    DetrDatasetMapper(cfg, is_train=True)
    GradientClipper.from_config(cfg)
    model = build_named_model(cfg)
    DistillTrainer.build_lr_scheduler(cfg, build_optimizer(cfg, model))


def _put(content: dict[str, Any], path: Sequence[str], value: object) -> None:
    for part in path[:-1]:
        inner = content.setdefault(part, {})
        content = inner if isinstance(inner, dict) else {}
    content[path[-1]] = value


def _typed(value: object) -> str:
    """As somebody types it: a list as Python's or JSON's."""
    return json.dumps(value) if isinstance(value, list) and len(value) % 2 else str(value)


def _is_small(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_small, value))
    return not isinstance(value, int | float) or not value > LARGEST_BUILT
