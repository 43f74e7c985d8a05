"""``python -m detr_distill VERB``: the program ``detr-distill``."""

from .options import main

if __name__ == "__main__":
    main()
