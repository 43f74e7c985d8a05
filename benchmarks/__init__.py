"""Measurements that write JSON: ``python -m benchmarks.NAME``, or ``python benchmarks/NAME.py``."""

import sys
from pathlib import Path

# Run in either way, they import each other by their own names.
sys.path.insert(0, str(Path(__file__).resolve().parent))
