"""Trains and evaluates: ``python train_net.py --config-file configs/... --num-gpus 8 [KEY VALUE ...]``."""

import signal

if __name__ == "__main__":
    # Ctrl-C while the libraries load ends the program without their stack traces; later ``main`` has words for it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from detr_distill.engine import main

if __name__ == "__main__":
    main()
