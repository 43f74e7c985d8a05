"""A user's own modules, named by the key ``PLUGINS``: imported before a configuration is read, so their keys are known.

They are named by whoever starts a run, on the command line or in the run's own file. A configuration from elsewhere,
such as a teacher's, imports nothing.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import yaml
from detectron2.config import CfgNode

from ..errors import ConfigError
from .keys import Key, declare

KEY = "PLUGINS"

declare(
    __name__,
    {
        KEY: Key(
            (),
            "modules of your own whose plug-ins a configuration may name, imported before it is read: "
            '`"package.module"`, or the path of a file, `"my_losses.py"`; counts on the command line and in the file '
            "of the run, never in a teacher's",
        )
    },
)


def named_plugins(config_file: str, overrides: Sequence[str]) -> list[str]:
    """The value of ``PLUGINS`` in a run's file, with its ``_BASE_``, or in its overrides, which win.

    Raises:
        ConfigError: it is no list of names.
    """
    words = list(overrides)
    given = [value for key, value in zip(words[::2], words[1::2], strict=False) if key == KEY]
    if given:
        return _as_names(given[-1])
    try:
        content = CfgNode.load_yaml_with_base(config_file) if config_file else {}
    # What is wrong with the file is said, in words, when it is merged.
    except (AssertionError, KeyError, OSError, TypeError, ValueError, yaml.YAMLError):
        content = {}
    return _as_names(content.get(KEY, ()))


def import_plugins(names: Iterable[str]) -> None:
    """Imports modules; those that are imported already stay as they are.

    Raises:
        ConfigError: one cannot be found, or fails while it is imported.
    """
    for name in names:
        try:
            _import(name)
        except (Exception, SystemExit) as error:  # a user's module may fail in any way
            said = isinstance(error, ConfigError)
            reason = str(error) if said else f"it cannot be imported: {type(error).__name__}: {error}."
            if isinstance(error, ModuleNotFoundError) and error.name is not None and name.startswith(error.name):
                reason += f" Give a module that Python finds (from {Path.cwd()}, too), or the path of a .py file."
            raise ConfigError(f"{KEY} names {name!r}; {reason}") from error


def _import(name: str) -> ModuleType:
    if not name.endswith(".py"):
        # A program that was started from elsewhere does not look into the current folder by itself.
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        return importlib.import_module(name)
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"there is no file {path}. Give its path from {Path.cwd()}, or the name of a module.")
    known = sys.modules.get(path.stem)
    if known is not None and known.__file__ == str(path):
        return known
    if known is not None:
        raise ConfigError(f"another module is already called {path.stem}: give the file another name.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


def _as_names(value: object) -> list[str]:
    r"""``"a"``, ``"(\'a\', \'b\')"`` or a list as names."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            value = [value]
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{KEY} is {value!r}. Give a list of modules or .py files, such as ('my_losses.py',).")
    return list(names)
