"""Batches that are packed into one block of memory come back whole."""

from __future__ import annotations

from detr_distill.data import DataError
from detr_distill.data.transport import pack, unpack

import numpy as np
import torch


def test_a_packed_batch_comes_back_whole():
    batch = [
        {"image": torch.arange(7, dtype=torch.uint8), "boxes": torch.rand(3, 4), "name": "a"},
        {"image": torch.rand(2, 3).t(), "empty": torch.zeros(0, 4), "flag": torch.tensor(True), "list": [1, 2.5, None]},
    ]
    data, block = pack(batch)
    assert block.is_shared()
    result = unpack((data, block))
    for one, two in zip(batch, result, strict=True):
        assert list(one) == list(two)
        for key, value in one.items():
            if isinstance(value, torch.Tensor):
                assert two[key].dtype == value.dtype
                assert torch.equal(two[key], value)
            else:
                assert two[key] == value
    assert unpack(pack(DataError("text"))).args == ("text",)


def test_empty_tensors_that_come_from_numpy_can_be_packed():
    """An image without objects: NumPy gives such arrays a stride of 0."""
    batch = [{"classes": torch.from_numpy(np.array([3, 4])[np.zeros(2, dtype=bool)]), "boxes": torch.zeros(0, 4)}]
    (result,) = unpack(pack(batch))
    assert result["classes"].dtype == torch.int64 and result["classes"].shape == (0,)
    assert result["boxes"].shape == (0, 4)
