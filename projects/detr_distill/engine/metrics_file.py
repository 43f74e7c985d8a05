"""The scalars of a run on disk: ``metrics.json``, a line of JSON for each iteration, and TensorBoard's files."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.utils.events import EventWriter, TensorboardXWriter, get_event_storage

from ..checkpoint.writing import explain_unwritable, write_atomically
from .results import without_nan

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
WINDOW = 20  # iterations whose median is written of what is smoothed


class MetricsWriter(EventWriter):
    """detectron2's ``JSONWriter``, whose file is JSON line by line whatever happens to the run or the disk.

    A scalar that is no finite number is null. Where a line finds no room, it is left out whole and the run goes on.

    Args:
        path: of the file; lines are added to what it has, without those that a killed run left incomplete.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)
        self._written: dict[str, int] = {}  # the last iteration of each scalar in the file
        drop_damaged_lines(self._path)

    def write(self) -> None:
        lines: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(WINDOW).items():
            if iteration > self._written.get(name, -1):
                lines[iteration][name] = value
                self._written[name] = iteration
        texts = [json.dumps(without_nan({**lines[n], "iteration": n}), sort_keys=True) + "\n" for n in sorted(lines)]
        if texts:
            self._append("".join(texts).encode())

    def _append(self, content: bytes) -> None:
        size = None
        try:
            with self._path.open("ab") as file:
                size = file.tell()
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            logger.warning("%s The run goes on without these lines.", explain_unwritable(self._path, error))
            if size is not None:
                with contextlib.suppress(OSError):
                    os.truncate(self._path, size)


class TensorBoardWriter(TensorboardXWriter):
    """detectron2's writer; without room for TensorBoard's files, one line says so and the run goes on without them."""

    _failed = False

    def write(self) -> None:
        self._unless_failed(super().write)

    def close(self) -> None:
        self._unless_failed(super().close)

    def _unless_failed(self, act: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            act()
        except OSError as error:
            self._failed = True
            logger.warning("%s The run goes on without them.", explain_unwritable("TensorBoard's files", error))


def drop_damaged_lines(path: Path) -> None:
    """Takes out of a file what is no line of JSON, and says how much it was."""
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    sound = [line for line in lines if line.endswith(b"\n") and _entry(line)]
    if len(sound) < len(lines):
        logger.warning("%s: %d lines are no JSON and are left out.", path, len(lines) - len(sound))
        write_atomically(path, lambda file: file.write(b"".join(sound)))


def was_evaluated(path: str | os.PathLike[str], iteration: int) -> bool:
    """Whether ``metrics.json`` has the metrics of an evaluation after an iteration, which are written last of it."""
    if not os.path.isfile(path):
        return False
    entries = map(_entry, Path(path).read_bytes().splitlines())
    return any(entry.get("iteration") == iteration and any("/" in name for name in entry) for entry in entries)


def _entry(line: bytes) -> dict[str, Any]:
    """What a line holds; nothing where it is damaged."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
