"""From files and KEY VALUE pairs to a configuration, with errors in words."""

from __future__ import annotations

import logging
import re

from detectron2.config import CfgNode, get_cfg

from ..errors import ConfigError
from .defaults import add_detr_distill_config
from .detectron2_keys import MAY_BE_NONE, check_detectron2_keys
from .files import complete_path
from .keys import check_keys, flatten
from .plugins import import_plugins, named_plugins
from .spelling import unknown_key, wrong_type
from .without_effect import check_no_other_task
from .yaml_files import check_file, reading

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
        ConfigError: a missing file, a key that is unknown or stands twice, a value of the wrong type or one that the
            key does not allow; the message names it.
    """
    config_file = complete_path(config_file)
    if config_file:
        check_file(config_file)
    if plugins:
        import_plugins(named_plugins(config_file, overrides))
    cfg = default_config()
    defaults = flatten(cfg)
    if config_file:
        _merge_file(cfg, config_file, defaults)
    _merge_overrides(cfg, overrides, defaults)
    check_keys(cfg)
    check_detectron2_keys(cfg)
    check_no_other_task(cfg)
    return cfg


def _merge_file(cfg: CfgNode, config_file: str, defaults: dict[str, object]) -> None:
    where = f"--config-file {config_file}"
    try:
        with reading(config_file):
            cfg.merge_from_file(config_file, allow_unsafe=False)
    except (KeyError, AssertionError, ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {_explain(cfg, error, config_file)}") from error
    _check_present(cfg, defaults, where)


def _merge_overrides(cfg: CfgNode, overrides: list[str], defaults: dict[str, object]) -> None:
    if len(overrides) % 2:
        words = [str(word) for word in overrides]
        hint = " Write KEY VALUE, not KEY=VALUE." if any("=" in word for word in words) else ""
        raise ConfigError(f"Overrides are KEY VALUE pairs and {words[-1]!r} has no partner in: {' '.join(words)}{hint}")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        where = f"{key} {value} on the command line"
        if not isinstance(key, str) or key not in defaults:
            raise ConfigError(f"{where}: {_unknown_override(str(key), defaults)}")
        try:
            cfg.merge_from_list([key, _fit_type(defaults[key], value)])
        except (KeyError, AssertionError, ValueError, TypeError, RecursionError, MemoryError) as error:
            raise ConfigError(f"{where}: {wrong_type(value, defaults[key])}") from error
        _check_present(cfg, defaults, where)


def _unknown_override(key: str, defaults: dict[str, object]) -> str:
    inside = [name for name in defaults if name.startswith(f"{key}.")]
    if inside:
        return f"{key} holds keys, such as {inside[0]}. Name one of them."
    return unknown_key(key, defaults)


def _check_present(cfg: CfgNode, defaults: dict[str, object], where: str) -> None:
    """yacs lets None, which an empty YAML value is too, replace a value of any type."""
    values = flatten(cfg)
    for key, default in defaults.items():
        if values[key] is None and default is not None and key not in MAY_BE_NONE:
            remedy = "Give () for none." if isinstance(default, list | tuple) else f"Its default is {default!r}."
            raise ConfigError(f"{where}: {key} is None. {remedy}")


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


def _explain(cfg: CfgNode, error: Exception, config_file: str) -> str:
    """What yacs found wrong with a file, in our own words where it is a key or the type of a value."""
    text = str(error.args[0]) if error.args else repr(error)
    unknown = re.search(r"[Nn]on-existent (?:config )?key: (\S+)", text)
    if unknown is not None:
        return unknown_key(unknown[1], flatten(cfg))
    mismatch = re.search(r"for config key: (\S+)$", text)
    if text.startswith("Cannot inherit"):
        return f"{text} One of the two files has a value where the other has keys."
    if mismatch is None:
        return text
    key = mismatch[1]
    value, default = CfgNode.load_yaml_with_base(config_file), cfg
    for part in key.split("."):
        value, default = value[part], default[part]
    if value is None:
        return f"{key} is empty. Write its keys below it, indented, or remove it."
    return f"{key} is {value!r}; {wrong_type(value, default)}"
