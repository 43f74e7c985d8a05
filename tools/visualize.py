"""Draws what a trained model sees: ``python tools/visualize.py --help``."""

from detr_distill.commands.visualize import main

if __name__ == "__main__":
    main()
