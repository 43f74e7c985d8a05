"""The program ``detr-distill``, outside of the package: importing that brings in torch, and --help need not wait."""

from __future__ import annotations

import importlib.util
import signal
import sys
from pathlib import Path
from types import ModuleType

OPTIONS = "detr_distill_options"


def main(argv: list[str] | None = None) -> None:
    """Does what the first word says; without one it lists the words."""
    # Ctrl-C while the libraries load ends the program without their stack traces; later the verbs have words for it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _load_options().main(argv)


def _load_options() -> ModuleType:
    """The package's folder of options by its place: its name would import the package first."""
    package = importlib.util.find_spec("detr_distill")
    assert package is not None and package.origin is not None
    folder = Path(package.origin).parent / "options"
    found = importlib.util.spec_from_file_location(
        OPTIONS, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[OPTIONS] = module
    found.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
