"""Two-stage queries of Deformable DETR: which tokens they are, the first boxes, and the encoder's loss."""

from __future__ import annotations

from detr_distill.structures import Memory

import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs, small_cfg
from helpers.detr.deformable_detectors import TWO_STAGE, build
from helpers.steps import encode


def test_two_stage_queries_are_the_best_tokens():
    model = build("two_stage").eval()
    memory = encode(model, make_inputs())
    own = model.queries(memory)
    scores, boxes = own.proposals.logits[0, ..., 0], own.proposals.boxes[0]
    for image in range(2):
        best = scores[image].sort(descending=True).indices[:7]
        assert torch.allclose(own.position[image].sigmoid(), boxes[image, best], atol=1e-6)
    assert own.content.abs().max() == 0
    assert not own.position.requires_grad and own.proposals.boxes.requires_grad
    assert (boxes[memory.mask] == 1).all(), "tokens of the padding propose nothing"
    model.queries.num_queries = 10_000
    everything = model.queries(memory).position
    assert everything.shape == (2, memory.tokens.shape[1], 4) and everything.isfinite().all()


def test_first_boxes_are_squares_at_the_cells():
    model = build_model(small_cfg(**TWO_STAGE)).eval()  # box heads start at zero
    memory = encode(model, make_inputs(sizes=((64, 64),), counts=(1,)))
    levels = model.queries(memory).proposals.boxes[0, 0].split([256, 64, 16])
    for level, (boxes, side) in enumerate(zip(levels, (16, 8, 4), strict=True)):
        cell = boxes.view(side, side, 4)[1, 2]
        expected = torch.tensor([2.5 / side, 1.5 / side, 0.05 * 2**level, 0.05 * 2**level])
        assert torch.allclose(cell, expected, atol=1e-5)


def test_tokens_at_the_border_propose_nothing():
    """Half a cell of 64 is 0.008 of the image, less than 0.01; half a cell of 40 is more."""
    model = build("two_stage").eval()
    for columns, border in ((64, 1), (40, 0)):
        tokens = torch.zeros(1, 2 * columns, 32)
        sizes, ratios = torch.tensor([[columns, 2.0]]), torch.ones(1, 1, 2)
        memory = Memory(tokens, tokens, None, [(2, columns)], level_sizes=sizes, valid_ratios=ratios)
        boxes = model.queries(memory).proposals.boxes[0, 0]
        expected = torch.ones(2, columns, dtype=torch.bool)
        expected[:, :border] = expected[:, columns - border :] = False
        assert torch.equal((boxes < 1).all(-1).view(2, columns), expected)
        assert (boxes[~expected.flatten()] == 1).all()


def test_encoder_loss_knows_objects_but_no_classes(inputs):
    model = build("two_stage").train()
    before = model(inputs)
    for entry in inputs:
        entry["instances"].gt_classes = (entry["instances"].gt_classes + 1) % 5
    after = model(inputs)
    encoder = {name for name in before if "encoder" in name}
    assert len(encoder) == 3 and all(before[name] == after[name] for name in encoder)
    assert before["loss_class"] != after["loss_class"]
