"""Writes what a trained detector predicts on a data set: ``python tools/predict.py --help``."""

from detr_distill.commands.predict import main

if __name__ == "__main__":
    main()
