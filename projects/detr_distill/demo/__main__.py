"""``python -m detr_distill.demo``, from a checkout or an installed package."""

from . import main

if __name__ == "__main__":
    main()
