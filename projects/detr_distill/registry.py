"""Registries of everything that a configuration key can name."""

from __future__ import annotations

import warnings
from typing import Any

from fvcore.common.registry import Registry

from .errors import ConfigError
from .plugin import Plugin, check_plugin


class PluginRegistry(Registry):
    """Holds the plug-ins of one kind, checks what it is given, and makes their keys known.

    The base class of the kind says that it is the interface::

        @LOSS_REGISTRY.interface
        class DistillLoss(Plugin): ...
    """

    def __init__(self, name: str):
        super().__init__(name)
        self._kind: type[Plugin] | None = None
        self._earlier: dict[str, str] = {}

    def interface(self, kind: type[Plugin]) -> type[Plugin]:
        """Decorates the class from which every plug-in of this registry inherits."""
        self._kind = kind
        return kind

    def register(self, obj: Any = None) -> Any:
        """Decorates a plug-in.

        Raises:
            ConfigError: it does not keep what the interface asks for, or a key of it is declared elsewhere.
        """
        if obj is None:
            return self.register
        assert self._kind is not None
        check_plugin(obj, self._kind)
        if obj.__name__ in self and self.get(obj.__name__) is not obj:
            taken = self.get(obj.__name__)
            raise ConfigError(f"{obj.__name__} is registered already, by {taken.__module__}. Give it another name.")
        obj.declare_keys()
        super().register(obj)
        return obj

    def rename(self, earlier: str, name: str) -> None:
        """Lets a configuration go on naming a plug-in as it was called before."""
        self._earlier[earlier] = name

    def current_name(self, name: str, warn: bool = True) -> str:
        """A plug-in's name, which may be given as it was called before."""
        if name not in self._earlier:
            return name
        if warn:
            warnings.warn(f"{name} is now called {self._earlier[name]}.", FutureWarning, stacklevel=3)
        return self._earlier[name]


NECK_REGISTRY = PluginRegistry("NECK")
ENCODER_REGISTRY = PluginRegistry("ENCODER")
DECODER_REGISTRY = PluginRegistry("DECODER")
QUERIES_REGISTRY = PluginRegistry("QUERIES")
TRAINING_GROUP_REGISTRY = PluginRegistry("TRAINING_GROUP")
TEACHER_REGISTRY = PluginRegistry("TEACHER")
MATCHER_REGISTRY = PluginRegistry("MATCHER")
LOSS_REGISTRY = PluginRegistry("LOSS")


PLUGIN_REGISTRIES = (
    NECK_REGISTRY,
    ENCODER_REGISTRY,
    DECODER_REGISTRY,
    QUERIES_REGISTRY,
    TRAINING_GROUP_REGISTRY,
    TEACHER_REGISTRY,
    MATCHER_REGISTRY,
    LOSS_REGISTRY,
)


def current_names(value: object) -> object:
    """A value of a configuration in which plug-ins, one or a list, are called by their names of today."""
    if isinstance(value, list):
        return [current_names(entry) for entry in value]
    if isinstance(value, str):
        for registry in PLUGIN_REGISTRIES:
            value = registry.current_name(value, warn=False)
    return value


def look_up(registry: Registry, name: str, key: str) -> Any:
    """The class registered under a name.

    Args:
        registry: one of the above, or detectron2's. name: what the configuration says. key: the configuration key.

    Raises:
        ConfigError: the name is unknown; lists those that are known.
    """
    name = registry.current_name(name) if isinstance(registry, PluginRegistry) else name
    if name not in registry:
        known = ", ".join(sorted(known for known, _ in registry))
        raise ConfigError(f"{key} names '{name}', which is not registered. Known: {known}.")
    return registry.get(name)
