"""What tests register is forgotten again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from detr_distill import registry
from detr_distill.config import keys
from detr_distill.distill.students import base as students
from detr_distill.registry import PluginRegistry

from detectron2.modeling import META_ARCH_REGISTRY


@contextlib.contextmanager
def forgotten_afterwards() -> Iterator[None]:
    """Within, detectors, students and plug-ins may be registered; behind, they and their keys are unknown."""
    registries = [found for found in vars(registry).values() if isinstance(found, PluginRegistry)]
    tables = [held for found in (META_ARCH_REGISTRY, *registries) for held in vars(found).values()]
    # Of these two modules no function removes anything either: a program only ever adds.
    tables = [held for held in tables if isinstance(held, dict)] + [keys._DECLARED, students._STUDENTS]
    before = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, content in zip(tables, before, strict=True):
            table.clear()
            table.update(content)
