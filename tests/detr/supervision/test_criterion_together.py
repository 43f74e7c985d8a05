"""Groups that meet the same objects have together the costs and losses that each has alone."""

from __future__ import annotations

import dataclasses

from detr_distill.detr.supervision.criterion import SetCriterion, Supervised
from detr_distill.detr.supervision.matcher import HungarianMatcher
from detr_distill.detr.supervision.matchings import Matchings
from detr_distill.structures import DecoderOutput, GroundTruth, QueryGroup

import pytest
import torch

LAYERS, IMAGES, CLASSES = 2, 2, 4


def random_output(queries, activation, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(LAYERS, IMAGES, queries, CLASSES + (activation == "softmax"), generator=generator)
    boxes = torch.rand(LAYERS, IMAGES, queries, 4, generator=generator) * 0.4 + 0.1
    return DecoderOutput(logits.requires_grad_(), boxes.requires_grad_(), torch.zeros(LAYERS, IMAGES, 1), activation)


def objects(counts, seed):
    generator = torch.Generator().manual_seed(seed)
    most = max(counts)
    valid = torch.arange(most) < torch.tensor(counts)[:, None]
    labels = torch.randint(0, CLASSES, (IMAGES, most), generator=generator)
    return GroundTruth(labels, torch.rand(IMAGES, most, 4, generator=generator) * 0.4 + 0.1, valid, list(counts))


def entries(activation):
    truth, other = objects((3, 1), 5), objects((1, 2), 6)
    forced = {0: torch.rand(IMAGES, 5, 3, generator=torch.Generator().manual_seed(7))}
    every = dict.fromkeys(range(LAYERS), forced[0])
    empty = torch.zeros(IMAGES, 5, 1)
    padded = torch.tensor([[False] * 5, [False] * 4 + [True]])
    groups = [
        QueryGroup("own", empty, empty),
        QueryGroup("fixed", empty, empty, loss_weight=0.5, forced_cost=forced),
        QueryGroup("taught", empty, empty, forced_cost=every),
        QueryGroup("padded", empty, empty, padding=padded),
        QueryGroup("elsewhere", empty, empty, targets=other),
    ]
    return [
        Supervised(random_output(6 if group.name == "own" else 5, activation, seed), group, group.targets or truth)
        for seed, group in enumerate(groups)
    ]


@pytest.mark.parametrize("deep_supervision", [True, False])
@pytest.mark.parametrize("classification", ["focal", "softmax"])
def test_together_as_alone(classification, deep_supervision):
    criterion = SetCriterion(
        num_classes=CLASSES,
        matcher=HungarianMatcher(cost_class=2.0),
        classification=classification,
        deep_supervision=deep_supervision,
    )
    alone, matchings = entries("softmax" if classification == "softmax" else "sigmoid"), Matchings()
    together = criterion.match(alone, matchings)
    for entry, matched in zip(alone, together, strict=True):
        expected = criterion.cost(entry.output, entry.group, entry.targets)
        assert matched.matching.cost.name == expected.name
        assert torch.allclose(matched.matching.cost.values, expected.values, atol=1e-6)
    matchings.solve()
    found, expected = criterion.losses(together), {}
    for entry in together:
        expected.update(criterion(entry.output, entry.group, entry.targets, entry.pairs))
    assert found.keys() == expected.keys() and len(found) == 15 * (LAYERS if deep_supervision else 1)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-5), name
    tensors = [values for entry in alone for values in (entry.output.logits, entry.output.boxes)]
    gradients = [torch.autograd.grad(sum(losses.values()), tensors) for losses in (found, expected)]
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(*gradients, strict=True))


def test_an_assignment_that_is_forced_on_every_layer_needs_no_cost_of_its_own():
    taught = next(entry for entry in entries("sigmoid") if entry.group.name == "taught")
    matcher = HungarianMatcher()
    matcher.forward = lambda *_: pytest.fail("its cost is not read")
    cost = SetCriterion(num_classes=CLASSES, matcher=matcher).cost(taught.output, taught.group, taught.targets)
    assert torch.equal(cost.values[1], taught.group.forced_cost[1])


def test_queries_of_joined_groups_keep_their_places():
    first, second = (dataclasses.replace(entry) for entry in entries("sigmoid")[:2])
    criterion, matchings = SetCriterion(num_classes=CLASSES, matcher=HungarianMatcher()), Matchings()
    matched = criterion.match([first, second], matchings)
    matchings.solve()
    assert max(int(entry.pairs.query.max()) for entry in matched) < 6, "the ledger knows each group's own numbers"
