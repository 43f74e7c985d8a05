"""A batch at a fixed place: what is put there, what its ground truth knows, and what it refuses to tell the host."""

from __future__ import annotations

from detr_distill.detr.preprocess import pad_images, read_ground_truth
from detr_distill.structures.fixed_batch import FixedBatch
from detr_distill.structures.ground_truth import UnknownCounts, UnknownOnHostError
from detr_distill.structures.transfer import constant, copy_to

import pytest
import torch
from helpers.builders import make_inputs

SIZES = ((40, 56), (48, 40))
MEAN, STD = torch.full((3, 1, 1), 100.0), torch.full((3, 1, 1), 50.0)


def filled(inputs, batch=None, objects=4):
    batch = batch or FixedBatch(len(inputs), (48, 64), objects, torch.float32, torch.device("cpu"))
    batch.fill([entry["image"] for entry in inputs], read_ground_truth(inputs, "cpu"))
    return batch


def test_images_are_padded_as_ever_whatever_was_there_before():
    batch = filled(make_inputs(((48, 64), (48, 64)), seed=1))
    place = batch.pixels.data_ptr()
    inputs = make_inputs(SIZES)
    filled(inputs, batch)
    images = [entry["image"] for entry in batch]
    found = pad_images(images, MEAN, STD, 1, torch.stack([entry["extent"] for entry in batch]))
    expected = pad_images([entry["image"] for entry in inputs], MEAN, STD, 16)
    assert torch.equal(found.tensor, expected.tensor) and torch.equal(found.mask, expected.mask)
    assert batch.pixels.data_ptr() == place


def test_objects_are_those_of_the_batch():
    batch = filled(make_inputs(SIZES, counts=(4, 4), seed=1))
    inputs = make_inputs(SIZES, counts=(0, 3))
    filled(inputs, batch)
    expected, found = read_ground_truth(inputs, "cpu"), read_ground_truth(batch, "cpu")
    assert found.labels.shape == (2, 4) and found.device_counts.tolist() == [0, 3]
    assert torch.equal(found.labels[found.valid], expected.labels[expected.valid])
    assert torch.equal(found.boxes[found.valid], expected.boxes[expected.valid])
    assert found.num_objects == expected.num_objects == 3
    assert found.num_labelled == 2 and found.image_weight is None


def test_a_later_batch_is_seen_by_a_later_ground_truth():
    batch = filled(make_inputs(SIZES, counts=(1, 1)))
    assert batch.truth.num_objects == 2
    filled(make_inputs(SIZES, counts=(2, 3)), batch)
    assert batch.truth.num_objects == 5


@pytest.mark.parametrize("ask", [sum, len, list, bool, lambda counts: counts[0], lambda counts: max(1, *counts)])
def test_the_host_is_not_told_how_many_there_are(ask):
    with pytest.raises(UnknownOnHostError, match="counts the objects of each image on the host"):
        ask(UnknownCounts())
    truth = filled(make_inputs(SIZES)).truth
    with pytest.raises(UnknownOnHostError):
        ask(truth.repeat(2).counts)
    assert truth.repeat(2).num_objects == 2 * truth.num_objects


def test_no_objects_count_as_one():
    assert read_ground_truth(make_inputs(SIZES, counts=(0, 0)), "cpu").num_objects == 1


def test_what_is_on_its_device_stays():
    values = torch.rand(3)
    assert copy_to(values, "cpu") is values
    assert constant(((2, 1), (4, 3)), torch.device("cpu")).tolist() == [[2.0, 1.0], [4.0, 3.0]]
    assert constant((True, False), torch.device("cpu")).tolist() == [1.0, 0.0]
