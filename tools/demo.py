"""Compares a small student without and with a teacher: ``python tools/demo.py --help``."""

from detr_distill.demo import main

if __name__ == "__main__":
    main()
