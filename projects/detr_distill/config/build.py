"""From files and KEY VALUE pairs to a configuration, with errors in words."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
from collections.abc import Iterable, Iterator

import yaml
from detectron2.config import CfgNode, get_cfg

from ..errors import ConfigError
from .defaults import add_detr_distill_config
from .files import complete_path
from .plugins import import_plugins, named_plugins

logger = logging.getLogger(__name__)


def default_config() -> CfgNode:
    """detectron2's defaults and ours."""
    cfg = get_cfg()
    add_detr_distill_config(cfg)
    return cfg


def build_config(config_file: str, overrides: list[str], *, plugins: bool = False) -> CfgNode:
    """Defaults, then a file, then KEY VALUE overrides; not frozen.

    Args:
        config_file: from the current folder or, like ``configs/...``, of the project; empty for the defaults.
        overrides: keys and values in turn.
        plugins: it is the configuration of a run, whose ``PLUGINS`` are imported first. Of any other it runs no code.

    Raises:
        ConfigError: a missing file, an unknown key or a value of the wrong type; the message names it.
    """
    config_file = complete_path(config_file)
    if plugins:
        _check_file(config_file)
        import_plugins(named_plugins(config_file, overrides))
    cfg = default_config()
    lists = [key for key, default in flatten(cfg).items() if isinstance(default, (list, tuple))]
    if config_file:
        _merge_file(cfg, config_file)
    _merge_overrides(cfg, overrides)
    _check_lists(cfg, lists)
    return cfg


def flatten(node: dict, prefix: str = "") -> dict[str, object]:
    """``{"A": {"B": 1}}`` as ``{"A.B": 1}``."""
    flat: dict[str, object] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _check_file(config_file: str) -> None:
    """Raises ConfigError where a file is named that is no configuration."""
    if not config_file:
        return
    if not os.path.isfile(config_file):
        raise ConfigError(f"--config-file {config_file}: there is no such file (working folder: {os.getcwd()}).")
    with _reading(config_file), open(config_file, encoding="utf-8") as file:
        # A configuration holds values; it has no business in running code while it is read.
        if not isinstance(yaml.safe_load(file), dict):
            raise ConfigError(f"--config-file {config_file} holds no KEY: VALUE pairs. Name a configuration.")


def _merge_file(cfg: CfgNode, config_file: str) -> None:
    _check_file(config_file)
    try:
        with _reading(config_file):
            cfg.merge_from_file(config_file, allow_unsafe=False)
    except (KeyError, AssertionError, ValueError, TypeError, OSError) as error:
        raise ConfigError(f"--config-file {config_file}: {_explain(cfg, error)}") from error


@contextlib.contextmanager
def _reading(config_file: str) -> Iterator[None]:
    """Within, a file that is no text or no YAML is a ConfigError."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"--config-file {config_file} or its _BASE_ is not a YAML text file: byte {error.start} is not "
            f"{error.encoding}. Name a configuration (*.yaml), or save the file as UTF-8."
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config-file {config_file} is not valid YAML: {error}") from error


def _merge_overrides(cfg: CfgNode, overrides: list[str]) -> None:
    if len(overrides) % 2:
        raise ConfigError(
            f"Overrides are KEY VALUE pairs and {overrides[-1]!r} has no partner in: {' '.join(overrides)}"
        )
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        try:
            cfg.merge_from_list([key, _fit_type(flatten(cfg).get(key), value)])
        except (KeyError, AssertionError, ValueError, TypeError) as error:
            raise ConfigError(f"{key} {value} on the command line: {_explain(cfg, error)}") from error


def _check_lists(cfg: CfgNode, keys: list[str]) -> None:
    """fvcore lets None replace a value of any type; a list of none is an empty one."""
    values = flatten(cfg)
    for key in keys:
        if values[key] is None:
            raise ConfigError(f"{key} is None. Give () for none.")


def _fit_type(default: object, value: object) -> object:
    """A whole number (nan, inf) for a decimal key, a bare name or path for a list of them: what a user would type."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str):  # of a list in a file
        return value
    if isinstance(default, float) and re.fullmatch(r"[+-]?(\d+|nan|inf)", value):
        return float(value)
    if isinstance(default, (list, tuple)) and re.fullmatch(r"[A-Za-z_~/.][\w~/.-]*", value) and value != "None":
        return type(default)([value])
    return value


def _explain(cfg: CfgNode, error: Exception) -> str:
    text = str(error.args[0]) if error.args else repr(error)
    unknown = re.search(r"[Nn]on-existent (?:config )?key: (\S+)", text)
    if unknown is None:
        return text
    return f"unknown key {unknown[1]}.{suggest(unknown[1], flatten(cfg))}"


def suggest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean ...?``, or nothing when no known name is close."""
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    last = name.rsplit(".", 1)[-1]
    matches += [key for key in known if key.rsplit(".", 1)[-1] == last and key not in matches]
    return f" Did you mean {' or '.join(matches[:3])}?" if matches else ""
