"""``python -m detr_distill.engine --config-file configs/...``: train_net.py of an installed package."""

from . import main

if __name__ == "__main__":
    main()
