"""The count of host reads, on which many tests of a step rely, sees every way to read."""

from __future__ import annotations

import pytest
import torch
from helpers.host_reads import host_reads
from torch.nn import functional as F

VALUES, MASK = torch.arange(4.0), torch.tensor([True, False, True, True])


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda: VALUES.sum().item(), "item"),
        (lambda: float(VALUES[1]), "item"),
        (lambda: bool(MASK.any()), "item"),
        (lambda: VALUES[: torch.tensor(2)], "item"),
        (lambda: max(VALUES), "item"),
        (lambda: F.one_hot(torch.tensor([0, 2]), 3), "item"),
        (lambda: VALUES[MASK], "nonzero"),
        (lambda: torch.where(MASK), "nonzero"),
        (lambda: VALUES.masked_select(MASK), "masked_select"),
        (lambda: torch.equal(VALUES, VALUES), "equal"),
        (lambda: VALUES.unique(), "_unique2"),
        (lambda: VALUES.tolist(), "tolist"),
        (lambda: VALUES.numpy(), "numpy"),
        (lambda: VALUES.cpu(), "cpu"),
    ],
)
def test_a_read_is_seen(read, name):
    with host_reads() as reads:
        read()
    assert name in reads


def test_what_was_copied_is_read_for_nothing():
    with host_reads() as reads:
        VALUES.cpu().numpy()
        copied = VALUES.cpu()
        copied.tolist()
    assert reads == ["cpu", "cpu"]


def test_work_on_the_device_is_no_read():
    values = VALUES.clone().requires_grad_()
    with host_reads() as reads:
        chosen = values.index_select(0, torch.tensor([2, 0])) * torch.where(MASK[:2], 1.0, 0.5)
        (chosen.sum() / len(values)).backward()
    assert not reads
