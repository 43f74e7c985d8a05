"""Makes our model known to the ``Auto`` classes of transformers, without importing the library for that."""

from __future__ import annotations

import importlib.util
import logging
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

logger = logging.getLogger(__name__)

# Modules of the library, and those of ours that register themselves there when they are imported.
_AUTO = "transformers.models.auto"
OURS = {
    f"{_AUTO}.configuration_auto": f"{__package__}.own_configuration",
    f"{_AUTO}.modeling_auto": f"{__package__}.own",
}


def register() -> None:
    """Registers with what is imported already, and with the rest as soon as it is; repeating it changes nothing."""
    for theirs, ours in OURS.items():
        if theirs in sys.modules:
            _import_ours(ours)
    if not any(isinstance(finder, _AfterTheirs) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTheirs())


class _AfterTheirs(MetaPathFinder):
    """Has a module of ours imported after one of theirs."""

    def __init__(self) -> None:
        self._waiting = dict(OURS)

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        ours = self._waiting.pop(fullname, None)
        spec = importlib.util.find_spec(fullname) if ours else None
        if spec is not None and spec.loader is not None and ours is not None:
            spec.loader = _Followed(spec.loader, ours)
        return spec


class _Followed(Loader):
    """A loader that imports another module after its own."""

    def __init__(self, loader: Loader, follower: str):
        self._loader, self._follower = loader, follower

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _import_ours(self._follower)


def _import_ours(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError as error:  # their module is not to fail for ours
        logger.warning("transformers does not know detr_distill's own detectors: %s", error)
