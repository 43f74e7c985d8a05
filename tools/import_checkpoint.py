"""Brings a detector trained elsewhere under this project's names: ``python tools/import_checkpoint.py --help``."""

from detr_distill.commands.import_checkpoint import main

if __name__ == "__main__":
    main()
