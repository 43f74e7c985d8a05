"""Random numbers that depend on where a run is, never on how it got there."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_step(seed: int, rank: int, iteration: int, part: int = 0) -> None:
    """Seeds torch (every device), NumPy and ``random`` for one part of one training step.

    A resumed run therefore draws what the uninterrupted run would have drawn, with no random state in the checkpoint.

    Args:
        seed: of the run. rank: of this process. iteration: of the run. part: 0 loading, k + 1 the k-th micro-batch.
    """
    words = np.random.SeedSequence([seed, rank, iteration, part]).generate_state(3)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words[1:])
    random.seed(int(words[2]))
