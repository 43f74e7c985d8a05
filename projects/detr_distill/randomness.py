"""Random numbers that depend on where a run is, never on how it got there."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

LOADING = 2**32 - 1  # the part of what is drawn for a position of the data stream
LOADING_UNLABELED = 2**32 - 2  # and of that of images without labels


def seed_step(seed: int, rank: int, iteration: int, part: int = 0, *, devices: bool = True) -> None:
    """Seeds torch, NumPy and ``random`` for one part of one training step.

    A resumed run therefore draws what the uninterrupted run would have drawn, with no random state in the checkpoint.

    Args:
        seed: of the run. rank: of this process. iteration: of the run, or a position in the rank's data stream.
        part: 0 what comes before a step, k + 1 its k-th micro-batch, ``LOADING`` the data.
        devices: also the accelerators, which a worker process that loads data leaves alone.
    """
    words = np.random.SeedSequence([seed, rank, iteration, part]).generate_state(3)
    manual_seed = torch.manual_seed if devices else torch.default_generator.manual_seed
    manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words[1:])
    random.seed(int(words[2]))


@contextlib.contextmanager
def preserved_randomness() -> Iterator[None]:
    """Gives the process its random states back at the end; those of accelerators are left as they are."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
