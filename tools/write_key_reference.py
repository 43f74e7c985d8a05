"""Writes docs/configs.md from the declarations of the keys."""

from __future__ import annotations

from pathlib import Path

import detr_distill  # noqa: F401  (declares the keys)
from detr_distill.config.reference import write_reference

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configs.md"

if __name__ == "__main__":
    PAGE.write_text(write_reference())
    print(PAGE)
