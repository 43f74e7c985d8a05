"""Plug-ins that a test registers, and their keys, are unknown again after it."""

from __future__ import annotations

import copy

from detr_distill.config import keys

from detectron2.utils.registry import Registry


def forget_afterwards(monkeypatch, *registries: Registry) -> None:
    """Lets copies stand in for all that the registries hold, and for the declared keys.

    Neither has a function that removes what was added: in a program nothing is.
    """
    for registry in registries:
        for name, held in list(vars(registry).items()):
            monkeypatch.setattr(registry, name, copy.copy(held))
    monkeypatch.setattr(keys, "_DECLARED", dict(keys._DECLARED))
