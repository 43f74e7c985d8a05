"""Reads the NumPy pickles of detectron2's model zoo without running anything that they contain."""

from __future__ import annotations

import collections
import importlib
import pickle
from typing import IO, Any

import numpy as np

# NumPy 2 renamed numpy.core.
_CORE = "numpy._core" if np.lib.NumpyVersion(np.__version__) >= "2.0.0.dev0" else "numpy.core"
multiarray, numeric = (importlib.import_module(f"{_CORE}.{name}") for name in ("multiarray", "numeric"))


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """``_codecs.encode`` for the one encoding in which pickle writes bytes as text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {encoding} is not admitted")
    return text.encode("latin1")


_NUMPY_FUNCTIONS = {
    "multiarray": {"_reconstruct": multiarray._reconstruct, "scalar": multiarray.scalar},
    # How arrays arrive in pickle protocol 5.
    "numeric": {"_frombuffer": numeric._frombuffer},
}

ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}
# Files of either name are read by either NumPy.
for _package in ("numpy.core", "numpy._core"):
    for _module, _functions in _NUMPY_FUNCTIONS.items():
        ADMITTED.update({(f"{_package}.{_module}", name): function for name, function in _functions.items()})
# The module of the builtins in Python 2 and 3.
for _module in ("__builtin__", "builtins"):
    for _type in (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, set, str, tuple):
        ADMITTED[_module, _type.__name__] = _type


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that admits NumPy arrays and Python's own containers, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not an array or a container") from None


def load_arrays(file: IO[bytes]) -> Any:
    """Content of a pickle of arrays, written by Python 2 or 3.

    Raises:
        pickle.UnpicklingError: the file asks for anything but arrays and containers.
    """
    return ArrayUnpickler(file, encoding="latin1").load()
