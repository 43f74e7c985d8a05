"""Registries of everything that a configuration key can name, and one way to build from them."""

from __future__ import annotations

from typing import Any

from fvcore.common.registry import Registry

from .errors import ConfigError

NECK_REGISTRY = Registry("NECK")
ENCODER_REGISTRY = Registry("ENCODER")
DECODER_REGISTRY = Registry("DECODER")
QUERIES_REGISTRY = Registry("QUERIES")
TRAINING_GROUP_REGISTRY = Registry("TRAINING_GROUP")
TEACHER_REGISTRY = Registry("TEACHER")
MATCHER_REGISTRY = Registry("MATCHER")
LOSS_REGISTRY = Registry("LOSS")


def look_up(registry: Registry, name: str, key: str) -> Any:
    """The class registered under a name.

    Args:
        registry: one of the above. name: what the configuration says. key: the configuration key, for the message.

    Raises:
        ConfigError: the name is unknown; lists those that are known.
    """
    if name not in registry:
        known = ", ".join(sorted(known for known, _ in registry))
        raise ConfigError(f"{key} names '{name}', which is not registered. Known: {known}.")
    return registry.get(name)
