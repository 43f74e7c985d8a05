"""The model that a configuration names, with errors in words."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from torch import nn

from ..config.keys import flatten
from ..config.spelling import suggest
from ..errors import ConfigError

logger = logging.getLogger(__name__)


def build_named_model(cfg: CfgNode) -> nn.Module:
    """``MODEL.META_ARCHITECTURE``, built; its kind and size go to the log.

    Raises:
        ConfigError: a name that is not registered, a feature map that the backbone does not give, or values that do
            not go together.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        known = [registered for registered, _ in META_ARCH_REGISTRY]
        raise ConfigError(
            f'MODEL.META_ARCHITECTURE "{name}" is not registered.{suggest(name, known)} There are: '
            + ", ".join(sorted(known))
        )
    try:
        model = build_model(cfg)
    except KeyError as error:
        # Any part of a model is chosen by name; detectron2's registries raise this for a name that they lack.
        if "No object named" in str(error):
            raise ConfigError(f"The model cannot be built: {error.args[0]}") from error
        keys = keys_of_map(cfg, error.args[0])
        if not keys:
            raise
        raise ConfigError(
            f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} does not give the map '{error.args[0]}' that "
            f"{' and '.join(keys)} ask for. Set a backbone that does, or the names of its maps."
        ) from error
    # Values that are allowed one by one may not go together, which detectron2 and torch notice while they build.
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f'MODEL.META_ARCHITECTURE "{name}" cannot be built: {error or "an assertion failed"} '
            f"({type(error).__name__}). Values under MODEL do not go together; look at those that you set."
        ) from error
    logger.info("%s", describe_model(model))
    return model


def keys_of_map(cfg: CfgNode, name: object) -> list[str]:
    """Keys that name a feature map."""
    lists = ((key, value) for key, value in flatten(cfg).items() if key.endswith("IN_FEATURES"))
    return [key for key, value in lists if isinstance(value, (list, tuple)) and name in value]


def describe_model(model: nn.Module) -> str:
    """Name and size in one line; the module tree of a detector fills pages."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    total, trainable = sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
    return f"{type(model).__name__}: {total / 1e6:.2f} M parameters, {trainable / 1e6:.2f} M of them trainable"
