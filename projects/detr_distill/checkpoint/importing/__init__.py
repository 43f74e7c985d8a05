"""Weights that were trained elsewhere: their names in ours, and the configuration that they fit."""

from .importer import SOURCES, Imported, import_checkpoint

__all__ = ["SOURCES", "Imported", "import_checkpoint"]
