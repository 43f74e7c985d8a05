"""Losses of denoising queries by hand, on padding, and for batches of any kind."""

from __future__ import annotations

from detr_distill.detr.supervision.criterion import SetCriterion
from detr_distill.structures import DecoderOutput

import pytest
import torch
from helpers.builders import make_inputs, small_cfg
from helpers.detr.denoising_detectors import build, every_variant, make_group, make_targets


def naive_focal(logit: float, target: float) -> float:
    p = 1 / (1 + torch.tensor(-logit).exp().item())
    p_target, alpha = (p, 0.25) if target else (1 - p, 0.75)
    return -alpha * (1 - p_target) ** 2 * torch.tensor(p_target).log().item()


def test_losses_of_known_pairs_by_hand():
    """Two images with two and one objects, two groups: six positive queries, six negative ones, of which one padded
    each a group."""
    targets = make_targets([[0.3, 0.4, 0.2, 0.2], [0.6, 0.6, 0.4, 0.2]], [[0.5, 0.5, 0.2, 0.4]])
    group = make_group("ContrastiveDenoisingQueries", targets, MODEL__DETR__CONTRASTIVE_DENOISING__NUM_PAIRS=4)
    criterion = SetCriterion(small_cfg())
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 8, 5, generator=generator)
    boxes = torch.rand(2, 2, 8, 4, generator=generator) * 0.5 + 0.2
    output = DecoderOutput(logits, boxes, torch.zeros(2, 2, 8, 1), "sigmoid")
    losses = criterion(output, group, group.targets, group.pairs.expand_layers(2))
    assert set(losses) == {f"loss_{n}_denoising{s}" for n in ("class", "box", "giou") for s in ("", "_0")}

    # Copies of an object stand side by side: queries 0, 1 are object 0, queries 2, 3 object 1; 4 to 7 are negative.
    expected = {"class": 0.0, "box": 0.0}
    for image, count in enumerate(targets.counts):
        for query in range(8):
            object_, positive = (query % 4) // 2, query < 4
            if object_ >= count:
                continue
            label = int(targets.labels[image, object_])
            for k in range(5):
                expected["class"] += naive_focal(logits[1, image, query, k].item(), positive and k == label)
            if positive:
                expected["box"] += (boxes[1, image, query] - targets.boxes[image, object_]).abs().sum().item()
    for name, value in expected.items():
        found = losses[f"loss_{name}_denoising"].item()
        weight = {"class": criterion.class_weight, "box": criterion.l1_weight}[name]
        assert found == pytest.approx(weight * value / (3 * 2), rel=1e-4), "three objects, two groups"


@pytest.mark.parametrize("classification", ["focal", "softmax"])
def test_padding_attracts_no_loss(classification):
    targets = make_targets([[0.5] * 4] * 2, [[0.5] * 4], [])
    group = make_group("ContrastiveDenoisingQueries", targets, MODEL__DETR__CONTRASTIVE_DENOISING__NUM_PAIRS=2)
    criterion = SetCriterion(small_cfg(MODEL__DETR__LOSS__CLASSIFICATION=classification))
    logits = torch.randn(1, 3, 4, 5 + (classification == "softmax"), requires_grad=True)
    boxes = torch.rand(1, 3, 4, 4, requires_grad=True)
    output = DecoderOutput(logits, boxes, torch.zeros(1, 3, 4, 1), "sigmoid")
    sum(criterion(output, group, group.targets, group.pairs).values()).backward()
    attracted = logits.grad[0].abs().sum(-1) > 0
    assert torch.equal(attracted, ~group.padding) and attracted.sum() == 6
    assert torch.equal(boxes.grad[0].abs().sum(-1) > 0, ~group.padding & (torch.arange(4) < 2))


@every_variant
@pytest.mark.parametrize("counts", [(2, 3), (0, 2), (0, 0)])
def test_losses_have_the_same_names_and_reach_every_parameter(variant, counts):
    model = build(variant).train()
    losses = model(make_inputs(counts=counts))
    suffixes = {"", "_0", "_denoising", "_denoising_0"} | ({"_encoder"} if variant == "dino" else set())
    assert set(losses) == {f"loss_{n}{s}" for n in ("class", "box", "giou") for s in suffixes}
    assert all(value.isfinite() for value in losses.values())
    assert (losses["loss_class_denoising"] > 0) == (sum(counts) > 0)
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
