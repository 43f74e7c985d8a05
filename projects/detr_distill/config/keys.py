"""Keys of the configuration: each is declared once, beside what reads it.

A class declares its settings as attributes (see plugin.py); what belongs to no class is declared by :func:`declare`.
Defaults, checks and docs/configs.md are made from these declarations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any

from detectron2.config import CfgNode, get_cfg

from ..errors import ConfigError
from .ranges import Allowed


@dataclass(frozen=True)
class Key:
    """A setting.

    Attributes:
        default: of a list, a tuple. meaning: one line for docs/configs.md.
        allowed: of the value, or of every entry of a list; None: anything of the default's type.
        path: full name, for a key that several classes read, or whose name is not the attribute's.
        earlier: former name of the constructor's argument, which still works and warns.
    """

    default: Any
    meaning: str
    allowed: Allowed | None = None
    path: str = ""
    earlier: str = ""

    def check(self, name: str, value: Any) -> None:
        """Raises ConfigError where ``value``, the setting of the key ``name``, is not allowed."""
        if self.allowed is None:
            return
        if not isinstance(self.default, tuple):
            self.allowed.check(name, value)
            return
        for entry in value:
            self.allowed.check(f"An entry of {name}", entry)


def key(default: object, meaning: str, allowed: Allowed | None = None, *, path: str = "", earlier: str = "") -> Any:
    """A :class:`Key` as the value of an annotated class attribute, whose type is that of the setting."""
    return Key(default, meaning, allowed, path, earlier)


@dataclass(frozen=True)
class Declaration:
    """A key under its full name, and what declares it."""

    key: Key
    owner: str


PACKAGE = "detr_distill."  # what is not declared by this package may change no default of detectron2's
_DECLARED: dict[str, Declaration] = {}


def declare(owner: str, keys: Mapping[str, Key]) -> None:
    """Makes keys known, under their full names.

    Raises:
        ConfigError: a default outside of its own range, or a name that something else has declared.
    """
    new: dict[str, Declaration] = {}
    for name, declared in keys.items():
        _check_name(owner, name, {**_DECLARED, **new})
        known = _DECLARED.get(name)
        if known is not None and known.key is not declared and known.owner != owner:
            raise ConfigError(
                f"{name} is declared twice, by {known.owner} and by {owner}. Give one of them another name, or let "
                "both refer to one declaration."
            )
        try:
            declared.check(name, declared.default)
        except ConfigError as error:
            raise ConfigError(f"{owner} declares a default that it does not allow: {error}") from error
        if known is None or known.owner == owner:
            new[name] = Declaration(declared, owner)
    _DECLARED.update(new)


def _check_name(owner: str, name: str, known: Iterable[str]) -> None:
    """Raises ConfigError where a key would hide another one."""
    inside = next((other for other in known if other.startswith(f"{name}.") or name.startswith(f"{other}.")), None)
    if inside is not None:
        raise ConfigError(
            f"{owner} declares {name} beside {inside}, and a key cannot hold another. Give it another name."
        )
    *parents, _ = name.split(".")
    for depth in range(1, len(parents) + 1):
        entry = reduce(_entry, parents[:depth], detectron2_defaults())
        if entry is not None and not isinstance(entry, CfgNode):
            raise ConfigError(
                f"{owner} declares {name}, but detectron2's key {'.'.join(parents[:depth])} holds no others. Give it "
                "another name."
            )
    if not owner.startswith(PACKAGE) and reduce(_entry, name.split("."), detectron2_defaults()) is not None:
        raise ConfigError(f"{owner} declares {name}, which is detectron2's own key. Give it another name.")


def _entry(node: Any, part: str) -> Any:
    return node.get(part) if isinstance(node, CfgNode) else None


@cache
def detectron2_defaults() -> CfgNode:
    """detectron2's own keys, without any of this package."""
    return get_cfg()


def declared_keys(owner: str = "") -> Iterator[tuple[str, Key]]:
    """All keys that are known by now, by their full names.

    Args:
        owner: start of the name of what declares them, such as a package; empty: anything.
    """
    return ((name, found.key) for name, found in _DECLARED.items() if found.owner.startswith(owner))


def add_keys(cfg: CfgNode) -> None:
    """Adds every declared key with its default, in place."""
    for name, declared in declared_keys():
        *parents, last = name.split(".")
        node = cfg
        for parent in parents:
            node = node.setdefault(parent, CfgNode())
        node[last] = list(declared.default) if isinstance(declared.default, tuple) else declared.default


def read_key(cfg: CfgNode, name: str) -> Any:
    """The value of a key by its full name; a list as a tuple."""
    value = reduce(lambda node, part: node[part], name.split("."), cfg)
    return tuple(value) if isinstance(value, list) else value


def check_keys(cfg: CfgNode, section: str = "") -> None:
    """Raises ConfigError where a key of a section, such as ``MODEL.DETR``, has a value that is not allowed.

    All are checked, whether or not the chosen parts read them. No section: every declared key.
    """
    for name, declared in declared_keys():
        if not section or name.startswith(f"{section}."):
            declared.check(name, read_key(cfg, name))


def flatten(node: dict, prefix: str = "") -> dict[str, object]:
    """``{"A": {"B": 1}}`` as ``{"A.B": 1}``."""
    flat: dict[str, object] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
