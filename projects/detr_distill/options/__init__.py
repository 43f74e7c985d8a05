"""The options of the programs, without the libraries that these work with: ``--help`` comes at once.

Nothing here imports anything but the standard library and this folder: the program ``detr-distill`` reads the folder
without the package around it.
"""

from .verbs import VERBS, main

__all__ = ["VERBS", "main"]
