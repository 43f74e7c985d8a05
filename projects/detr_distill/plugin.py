"""What everything that a configuration names has in common: settings that are keys, declared beside the class.

::

    @LOSS_REGISTRY.register()
    class HintLoss(DistillLoss):
        margin: float = key(0.5, "distance that costs nothing", NOT_NEGATIVE)

is the key ``MODEL.DISTILL.HINT_LOSS.MARGIN`` with its default, its range and its line in docs/configs.md; the argument
``margin`` of the constructor; and the attribute ``margin`` of the object.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from abc import ABCMeta
from collections.abc import Iterable
from types import FunctionType
from typing import Any, ClassVar

from detectron2.config import CfgNode, configurable
from torch import nn

from .config.keys import Key, declare, read_key
from .errors import ConfigError

METHODS = (FunctionType, property, classmethod, staticmethod)


class Plugin(nn.Module, metaclass=ABCMeta):
    """A module whose settings are keys of the configuration.

    ``Name(setting=value, ...)`` builds it from Python, ``Name(cfg, ...)`` from a configuration. A subclass with parts
    beside its settings takes them in its constructor, hands the settings on, and adds the parts in ``from_config``::

        @configurable
        def __init__(self, *, classes, **settings):
            super().__init__(**settings)

        @classmethod
        def from_config(cls, cfg, student, teacher):
            return {**cls.read_keys(cfg), "classes": teacher.classes}

    Attributes:
        section: node that holds the plug-ins' own nodes. node: of this class; by default its name, ``HintLoss`` being
            ``HINT_LOSS``; ``class Name(Base, node="MODEL.OTHER")`` names another.
        keys: the settings by attribute, inherited ones first.
        declares: class attributes that every subclass has to set. hint: what helps a class that does not keep the
            interface.
    """

    section: ClassVar[str] = ""
    node: ClassVar[str] = ""
    keys: ClassVar[dict[str, Key]] = {}
    declares: ClassVar[tuple[str, ...]] = ()
    hint: ClassVar[str] = ""

    def __init_subclass__(cls, node: str = "", **more: Any) -> None:
        super().__init_subclass__(**more)
        inherited = {name: found for base in reversed(cls.__mro__[1:]) for name, found in _keys_of(base).items()}
        own = {name: value for name, value in vars(cls).items() if isinstance(value, Key)}
        # ``weight = 2.0`` in a subclass is another default of the setting.
        for name in inherited.keys() & vars(cls).keys() - own.keys():
            own[name] = dataclasses.replace(inherited[name], default=vars(cls)[name])
        _check_settings(cls, own.keys() - inherited.keys())
        cls.keys = inherited | own
        cls.node = node or f"{cls.section}.{node_name(cls.__name__)}".lstrip(".")
        for name, declared in own.items():
            setattr(cls, name, declared.default)
        if node:
            cls.declare_keys()

    @configurable
    def __init__(self, **settings: Any):
        super().__init__()
        for name, declared in self.keys.items():
            if declared.earlier in settings:
                warnings.warn(
                    f"{type(self).__name__}({declared.earlier}=...) is now {name}=...", FutureWarning, stacklevel=3
                )
                settings[name] = settings.pop(declared.earlier)
            value = settings.pop(name, declared.default)
            value = tuple(value) if isinstance(declared.default, tuple) else value
            declared.check(self.key_name(name), value)
            setattr(self, name, value)
        if settings:
            known = ", ".join(self.keys) or "none"
            raise TypeError(f"{type(self).__name__} has no setting {', '.join(map(repr, settings))}. Known: {known}.")

    @classmethod
    def from_config(cls, cfg: CfgNode, *context: Any) -> dict[str, Any]:
        """Arguments of the constructor; ``context`` is what the plug-in's kind is built beside, such as the student."""
        return cls.read_keys(cfg)

    @classmethod
    def read_keys(cls, cfg: CfgNode) -> dict[str, Any]:
        """The settings in a configuration, by attribute."""
        return {name: read_key(cfg, cls.key_name(name)) for name in cls.keys}

    @classmethod
    def key_name(cls, setting: str) -> str:
        """Full name of a setting's key."""
        return cls.keys[setting].path or f"{cls.node}.{setting.upper()}"

    @classmethod
    def declare_keys(cls) -> None:
        """Makes the class's keys known; see :func:`declare`."""
        owner = f"{cls.__module__}.{cls.__qualname__}"
        paths = [cls.key_name(name) for name in cls.keys]
        twice = next((path for path in paths if paths.count(path) > 1), None)
        if twice is not None:
            raise ConfigError(f"{owner} declares {twice} twice. Give each setting a key of its own.")
        declare(owner, dict(zip(paths, cls.keys.values(), strict=True)))


def node_name(name: str) -> str:
    """``PredictionLoss`` to ``PREDICTION_LOSS``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper()


def check_plugin(plugin: type, interface: type[Plugin]) -> None:
    """Raises ConfigError where a class does not keep what its interface asks for."""
    where = f"{interface.__module__}.{interface.__name__}"
    if not isinstance(plugin, type):
        raise ConfigError(f"{plugin!r} is no class. Let a class inherit from {where}.")
    if not issubclass(plugin, interface):
        raise ConfigError(f"{plugin.__name__} is no {interface.__name__}. Let it inherit from {where}.")
    undefined = ", ".join(f"{name}()" for name in sorted(plugin.__abstractmethods__))
    if undefined:
        raise ConfigError(f"{plugin.__name__} does not define {undefined}; see {where}.{interface.hint}")
    defined = {name for base in plugin.__mro__ for name in vars(base)}
    unset = [name for name in plugin.declares if name not in defined]
    if unset:
        raise ConfigError(f"{plugin.__name__} does not set {', '.join(unset)}; see {where}.")


def _check_settings(plugin: type, names: Iterable[str]) -> None:
    """Raises ConfigError where a setting has the name of something that every module has."""
    methods = {name for base in plugin.__mro__ for name, value in vars(base).items() if isinstance(value, METHODS)}
    # What an interface says of the class is no setting of an object.
    of_class = {
        name
        for base in plugin.__mro__
        for name, kind in vars(base).get("__annotations__", {}).items()
        if str(kind).startswith("ClassVar")
    }
    taken = methods | of_class | vars(nn.Module()).keys()
    clash = next((name for name in sorted(names) if name in taken), None)
    if clash is not None:
        raise ConfigError(f"{plugin.__name__} has a setting called {clash}, which modules have already. Rename it.")


def _keys_of(base: type) -> dict[str, Key]:
    return vars(base)["keys"] if issubclass(base, Plugin) else {}
