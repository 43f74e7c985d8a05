"""detectron2 0.6 without compiled operators, on today's Pillow, NumPy and torch.

Every repair is made only where something is missing: compiled operators are used where they are, and the main branch,
which guards its own imports of them, gets no stand-in. Import this module before anything of detectron2 but its
top-level package.
"""

import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import PIL.Image

_OPERATORS = "detectron2._C"


class _MissingOperators(types.ModuleType):
    """Stands in for ``detectron2._C``: imports succeed, the first call says what is missing."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_args: Any, **_kwargs: Any) -> NoReturn:
            raise RuntimeError(
                f"detectron2._C.{name} is a compiled operator and this detectron2 was installed without them. "
                "Install detectron2 from its repository with a compiler to use it."
            )

        return missing


def _provide_operators() -> None:
    import detectron2

    if _OPERATORS in sys.modules:
        return
    if importlib.util.find_spec(_OPERATORS) is not None:
        importlib.import_module(_OPERATORS)
        return
    if importlib.util.find_spec("detectron2.utils.develop") is not None:
        return  # The main branch explains missing operators itself; a stand-in would hide them from it.
    module = _MissingOperators(_OPERATORS)
    sys.modules[_OPERATORS] = module
    detectron2._C = module


def _provide_names() -> None:
    """Names removed by Pillow 10 and NumPy 1.24 that detectron2 0.6 still uses."""
    if not hasattr(PIL.Image, "LINEAR"):
        PIL.Image.LINEAR = PIL.Image.Resampling.BILINEAR  # type: ignore[attr-defined]
    for name, builtin in (("int", int), ("float", float), ("bool", bool), ("object", object), ("str", str)):
        if name not in np.__dict__:
            setattr(np, name, builtin)


def apply() -> None:
    """Makes ``import detectron2.modeling`` work; repeating it changes nothing."""
    _provide_operators()
    _provide_names()


apply()
