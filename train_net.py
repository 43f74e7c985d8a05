"""Trains and evaluates: ``python train_net.py --config-file configs/... --num-gpus 8 [KEY VALUE ...]``."""

from detr_distill.engine import main

if __name__ == "__main__":
    main()
