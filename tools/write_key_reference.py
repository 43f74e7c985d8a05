"""Writes docs/configs.md: ``python tools/write_key_reference.py``."""

from detr_distill.commands.write_key_reference import main

if __name__ == "__main__":
    main()
