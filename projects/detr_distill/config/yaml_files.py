"""Configuration files as YAML: each key once, bases that exist and end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import yaml
from fvcore.common.config import BASE_KEY

from ..errors import ConfigError


class _CheckedLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in one block, of which YAML would keep the last, and keys that are no text."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            place = f"{key.start_mark.name}: line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith((":str", ":merge")):
                found = key.value if isinstance(key, yaml.ScalarNode) else "[...]"
                raise ConfigError(
                    f"{place} has the key {found!r}, which is no name. Write it in quotes, or correct it."
                )
            if key.value in lines:
                raise ConfigError(
                    f"{place} has the key {key.value} a second time, after line {lines[key.value]}: only one of the "
                    "two would count. Join them."
                )
            lines[key.value] = key.start_mark.line + 1
        return node


def check_file(file: str, above: tuple[str, ...] = ()) -> list[str]:
    """Checks a configuration file and all of its bases, and lists them.

    Args:
        file: path of it. above: the files that lead to it by their ``_BASE_``, for messages.

    Returns:
        Paths of the file and its bases, in the order in which they were read; addresses are left out.

    Raises:
        ConfigError: it does not exist, is no YAML, holds no KEY: VALUE pairs or a key twice; a base is missing or leads
            back to a file above it.
    """
    if not os.path.isfile(file):
        if above:
            raise ConfigError(
                f"--config-file {above[0]}: {above[-1]} has the {BASE_KEY} {file}, which does not exist. A base is "
                "looked for from the folder of the file that names it."
            )
        raise ConfigError(f"--config-file {file}: there is no such file (working folder: {os.getcwd()}).")
    content = load_file(file)
    if not isinstance(content, dict):
        raise ConfigError(f"--config-file {file} holds no KEY: VALUE pairs. Name a configuration.")
    bases = content.get(BASE_KEY, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) and base for base in bases):
        raise ConfigError(
            f"--config-file {file}: {BASE_KEY} is {bases!r}. Give the path of a file, or a list of paths."
        )
    trail, found = (*above, file), [file]
    for base in bases:
        if "://" in base:  # detectron2 fetches it
            continue
        path = os.path.join(os.path.dirname(file), os.path.expanduser(base))
        if any(os.path.realpath(path) == os.path.realpath(other) for other in trail):
            raise ConfigError(
                f"--config-file {trail[0]}: {BASE_KEY} goes in a circle: {' -> '.join([*trail, path])}. Remove one of "
                "them."
            )
        found += check_file(path, trail)
    return found


def load_file(file: str) -> Any:
    """Content of one YAML file, without its bases; runs no code of it.

    Raises:
        ConfigError: it cannot be read, is no YAML, or has a key twice.
    """
    with reading(file), open(file, encoding="utf-8") as opened:
        return yaml.load(opened, _CheckedLoader)  # a SafeLoader


@contextlib.contextmanager
def reading(file: str) -> Iterator[None]:
    """Within, a file that cannot be read, is no text or no YAML is a ConfigError."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"--config-file {file} or its {BASE_KEY} is not a YAML text file: byte {error.start} is not "
            f"{error.encoding}. Name a configuration (*.yaml), or save the file as UTF-8."
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config-file {file} is not valid YAML: {error}") from error
    except OSError as error:
        raise ConfigError(f"--config-file {file} cannot be read: {error.strerror or error}. Name another.") from error
    except RecursionError as error:
        raise ConfigError(
            f"--config-file {file} holds itself, by an anchor (&) and its alias (*). Remove it."
        ) from error
