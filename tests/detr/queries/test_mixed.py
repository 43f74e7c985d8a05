"""DINO's mixed query selection, its loss in the encoder, and how its queries start."""

from __future__ import annotations

from detr_distill.detr.detector import Finished
from detr_distill.detr.supervision.matchings import Matchings
from detr_distill.structures import Memory, QueryGroup

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs, small_cfg
from helpers.detr.denoising_detectors import DINO, DN, begin_step, build
from helpers.steps import encode
from torch import Tensor


def choose(model, memory: Memory) -> tuple[QueryGroup, Tensor, Tensor]:
    """The queries, and what the class head saw and said of every token."""
    seen: list[Tensor] = []
    with model.queries.heads.class_head.register_forward_hook(lambda _, inputs, logits: seen.extend((*inputs, logits))):
        own = model.queries(memory)
    tokens, logits = seen
    return own, tokens, logits


def test_queries_are_the_best_tokens_of_any_class():
    model = build("dino").eval()
    memory = encode(model, make_inputs())
    own, tokens, logits = choose(model, memory)
    boxes = own.candidates.boxes
    scores = logits.max(-1).values
    assert not torch.equal(scores.argmax(1), logits[..., 0].argmax(1)), "the best class is not always the first"
    for image in range(2):
        best = scores[image].sort(descending=True).indices[:7]
        assert torch.allclose(own.position[image], boxes[image, best], atol=1e-5)
        assert torch.equal(own.proposals.logits[0, image], logits[image, best])
        assert torch.equal(own.proposals.hidden[0, image], tokens[image, best])
    assert torch.equal(own.content, model.queries.content.weight.expand(2, -1, -1)), "content is learned"
    assert not own.position.requires_grad and own.proposals.boxes.requires_grad


@pytest.mark.parametrize("queries", ["MixedQueries", "TwoStageQueries"])
def test_with_no_object_tokens_are_ranked_by_their_classes(queries):
    """Raw logits of a softmax head would prefer tokens that are sure of "no object"."""
    content = {"MODEL__DETR__QUERIES__NAME": queries, "MODEL__DETR__LOSS__CLASSIFICATION": "softmax"}
    if queries == "TwoStageQueries":
        content |= {"MODEL__DETR__TRAINING_GROUPS": []}
    model = build("dino", **content).eval()
    with torch.no_grad():
        model.queries.heads.class_head.weight[-1] *= 4
    memory = encode(model, make_inputs())
    own, _, logits = choose(model, memory)
    boxes = own.candidates.boxes
    probabilities = logits.softmax(-1)[..., :-1]
    scores = probabilities.amax(-1) if queries == "MixedQueries" else probabilities[..., 0]
    for image in range(2):
        best = scores[image].sort(descending=True).indices[:7]
        assert torch.allclose(own.position[image], boxes[image, best], atol=1e-4)


def test_small_images_have_fewer_queries():
    model = build("dino", MODEL__DETR__NUM_QUERIES=500)
    losses = model.train()(make_inputs(sizes=((32, 40), (40, 32))))
    assert all(value.isfinite() for value in losses.values())


def test_encoder_loss_knows_the_classes(inputs):
    model = build("dino").train()

    def encoder_losses() -> dict[str, Tensor]:
        torch.manual_seed(0)
        return {name: value for name, value in model(inputs).items() if "encoder" in name}

    before = encoder_losses()
    for entry in inputs:
        entry["instances"].gt_classes = (entry["instances"].gt_classes + 1) % 5
    after = encoder_losses()
    assert len(before) == 3 and before["loss_class_encoder"] != after["loss_class_encoder"]


def test_only_the_chosen_tokens_have_the_encoders_loss():
    model = build("dino").train()
    memory, targets, groups = begin_step(model, make_inputs())
    finished = Finished(memory, groups, model.decode(memory, groups))
    entries = {entry.group.name: entry.output for entry in model.supervise(finished, targets, Matchings())}
    assert entries["encoder"].logits.shape == (1, 2, 7, 5)


def test_published_start():
    torch.manual_seed(0)
    model = build_model(small_cfg(**{**DINO, "MODEL__DETR__NUM_QUERIES": 300}))
    bound = (6 / (300 + 32)) ** 0.5
    assert 0.95 * bound < model.queries.content.weight.abs().max() <= bound, "Xavier's range"
    (maker,) = model.training_groups.values()
    assert maker.label_embedding.weight.std().item() == pytest.approx(1, abs=0.15)
    heads = [*model.decoder.heads, model.queries.heads]
    assert all(h.box_head.layers[-1].bias.abs().max() == 0 == h.box_head.layers[-1].weight.abs().max() for h in heads)
    assert all(layer.cross_attention.sampling_offsets.weight.abs().max() == 0 for layer in model.decoder.layers)
    anchors = build_model(small_cfg(**{**DN, "MODEL__DETR__NUM_QUERIES": 300})).queries
    assert anchors.position.weight.std().item() == pytest.approx(1, abs=0.1)
