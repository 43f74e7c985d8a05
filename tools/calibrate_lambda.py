"""Finds the weight of the distillation loss for a wanted share: ``python tools/calibrate_lambda.py --help``."""

from detr_distill.commands.calibrate_lambda import main

if __name__ == "__main__":
    main()
