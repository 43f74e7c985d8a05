"""The options of verbs that have few."""

from __future__ import annotations

import argparse


def doctor_parser() -> argparse.ArgumentParser:
    """Of ``detr-distill doctor``."""
    return argparse.ArgumentParser(
        prog="detr-distill doctor",
        description="Says which versions, devices and kernels are there, what is missing, and what helps.",
    )
