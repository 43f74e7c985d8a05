"""Detectors from their files, for programs of one's own."""

from __future__ import annotations

from collections.abc import Mapping

from detectron2.modeling import build_model
from torch import nn

from .checkpoint.strict import load_strict
from .config.files import find_file
from .data import read_configuration


def build_detector(
    config_file: str, weights: str = "", *, device: str = "cpu", overrides: Mapping[str, object] | None = None
) -> nn.Module:
    """The model that a configuration describes, in training mode.

    Args:
        config_file: a path, or one of the project's own such as ``configs/digits/conditional_student.yaml``.
        weights: a checkpoint of which every tensor has to fit; empty: random weights, with those of the backbone where
            the configuration names some.
        overrides: {"MODEL.DETR.NUM_QUERIES": 50}.

    Raises:
        ConfigError: a file is not there, a key is unknown, or a value cannot be. CheckpointError: the weights do not
            fit.
    """
    words = [text for key, value in (overrides or {}).items() for text in (key, str(value))]
    # Says that weights follow, so that a backbone does not load its own first.
    settings = ["MODEL.DEVICE", device, *(["MODEL.WEIGHTS", weights] if weights else []), *words]
    cfg = read_configuration(find_file(config_file, "config_file"), settings, weights=weights)
    model = build_model(cfg)
    if weights:
        load_strict(model, find_file(weights, "weights"), "weights")
    return model.train()
