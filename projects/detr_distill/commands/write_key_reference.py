"""Writes docs/configs.md from the declarations of the keys."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..checkpoint.writing import write_atomically
from ..config.reference import write_reference
from ..engine.report import report_user_errors


def main(argv: list[str] | None = None) -> None:
    """The program ``tools/write_key_reference.py``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/configs.md"), help="the page (default %(default)s)")
    page = parser.parse_args(argv).output
    with report_user_errors():
        write_atomically(page, lambda file: file.write(write_reference().encode()))
        print(page)
