"""What the decoders with dense attention maps beside DETR's promise: groups, padding, maps, gradients, distillation."""

from __future__ import annotations

import dataclasses

from detr_distill.structures import CAPTURES, ImageBatch, QueryGroup

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs, randomise, small_cfg
from helpers.detr.dense_detectors import ANCHOR, MULTI_SCALE, SMCA, STANDARD
from helpers.host_reads import host_reads
from helpers.steps import check_images_alone, encode, encode_features, outputs_over_padding
from torch.nn import functional as F

VARIANTS = {"smca": SMCA, "smca_multi_scale": MULTI_SCALE, "anchor": ANCHOR, "anchor_standard": STANDARD}
every_variant = pytest.mark.parametrize("variant", VARIANTS)
HEADS, QUERIES = 2, 6


def build(variant: str, **keys):
    return randomise(build_model(small_cfg(**{**VARIANTS[variant], "MODEL__DETR__NUM_QUERIES": QUERIES, **keys})))


def random_group(model, name: str, queries: int, **options) -> QueryGroup:
    generator = torch.Generator().manual_seed(queries)
    content, position = (torch.randn(2, queries, width, generator=generator) for width in model.queries.widths)
    return QueryGroup(name, content, position, **options)


@every_variant
@pytest.mark.parametrize("capture", [frozenset(), CAPTURES], ids=["fused", "captured"])
def test_groups_do_not_see_each_other(variant, capture, inputs):
    model = build(variant).eval()
    memory = encode(model, inputs)
    own, other = model.queries(memory), random_group(model, "other", 5)
    alone = model.decode(memory, [own], capture)["own"]
    together = model.decode(memory, [own, other], capture)
    assert torch.allclose(alone.logits, together["own"].logits, atol=1e-5)
    assert torch.allclose(alone.boxes, together["own"].boxes, atol=1e-5)
    for name in capture:
        for first, second in zip(getattr(alone, name), getattr(together["own"], name), strict=True):
            assert torch.allclose(first, second, atol=1e-5)
    seeing = model.decode(memory, [own, dataclasses.replace(other, sees=("own",))], capture)
    assert torch.allclose(alone.logits, seeing["own"].logits, atol=1e-5), "seeing is one-way"
    assert not torch.allclose(seeing["other"].logits, together["other"].logits, atol=1e-4)


@every_variant
def test_captured_maps_are_distributions_and_change_nothing(variant, inputs):
    model = build(variant, MODEL__DETR__DROPOUT=0.5)
    assert model.decoder.captures >= CAPTURES
    memory = encode(model.eval(), inputs)
    own, other = model.queries(memory), random_group(model, "other", 5)
    plain, captured = (model.decode(memory, [own], capture)["own"] for capture in (frozenset(), CAPTURES))
    assert torch.allclose(plain.logits, captured.logits, atol=1e-5) and plain.cross_attention is None
    model.train()
    outputs = model.decode(memory, [own, other], CAPTURES)
    for name, queries in (("own", QUERIES), ("other", 5)):
        self_maps, cross_maps = (torch.stack(getattr(outputs[name], kind)) for kind in sorted(CAPTURES, reverse=True))
        assert self_maps.shape == (2, 2, HEADS, queries, queries)
        assert cross_maps.shape == (2, 2, HEADS, queries, memory.tokens.shape[1])
        assert cross_maps.dtype == torch.float32
        assert all(torch.allclose(maps.sum(-1), torch.ones(()), atol=1e-5) for maps in (self_maps, cross_maps))
        assert cross_maps[memory.mask[None, :, None, None, :].expand_as(cross_maps)].max() == 0


@every_variant
def test_content_of_the_padding_changes_nothing(variant, inputs):
    model = build(variant).eval()
    outputs = outputs_over_padding(model, inputs)
    assert torch.allclose(outputs[0].logits, outputs[1].logits, atol=1e-5)
    assert torch.allclose(outputs[0].boxes, outputs[1].boxes, atol=1e-6)


@pytest.mark.parametrize("variant", ["smca", "anchor", "anchor_standard"])
def test_padding_itself_changes_nothing(variant):
    """The same features with and without padding at the right and below; a neck that normalises would see it."""
    model = build(variant, MODEL__DETR__NECK__NAME="SingleLevelNeck").eval()
    features = torch.randn(1, 8, 5, 7, generator=torch.Generator().manual_seed(5))
    mask = torch.ones(1, 64, 72, dtype=torch.bool)
    mask[:, :40, :56] = False
    whole = ImageBatch(torch.zeros(1, 3, 40, 56), None, [(40, 56)])
    part = ImageBatch(torch.zeros(1, 3, 64, 72), mask, [(40, 56)])
    outputs = []
    for images, values in ((whole, features), (part, F.pad(features, (0, 2, 0, 3), value=9.0))):
        memory = encode_features(model, {"stage3": values}, images)
        outputs.append(model.decode(memory, [model.queries(memory)])["own"])
    assert torch.allclose(outputs[0].logits, outputs[1].logits, atol=1e-5)
    assert torch.allclose(outputs[0].boxes, outputs[1].boxes, atol=1e-5)


@every_variant
@pytest.mark.parametrize("sizes", [((40, 56), (64, 72), (24, 48)), ((48, 64), (48, 64), (48, 64))])
def test_detections_do_not_depend_on_the_batch(variant, sizes):
    model = build(variant).eval()
    inputs = make_inputs(sizes=sizes, counts=(1, 1, 1), labels=False)
    check_images_alone(model, inputs)


@every_variant
@pytest.mark.parametrize("counts", [(2, 3), (0, 0)], ids=["objects", "empty"])
def test_a_step_has_every_loss_reaches_every_parameter_and_reads_once(variant, counts):
    model = build(variant).train()
    with host_reads() as reads:
        losses = model(make_inputs(counts=counts))
        sum(losses.values()).backward()
    assert reads == ["cpu"]
    assert set(losses) == {f"loss_{n}{s}" for n in ("class", "box", "giou") for s in ("", "_0")}
    assert all(value.isfinite() for value in losses.values())
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@every_variant
def test_boxes_and_maps_stay_in_float32_under_autocast(variant, inputs):
    model = build(variant).train()
    with torch.autocast("cpu", torch.bfloat16):
        memory = encode(model, inputs)
        output = model.decode(memory, [model.queries(memory)], CAPTURES)["own"]
        losses = model(inputs)
    assert output.boxes.dtype == torch.float32 and output.logits.dtype == torch.bfloat16
    assert all(maps.dtype == torch.float32 for maps in output.cross_attention)
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


CONDITIONAL: dict = {}
ANCHOR_WIDE = {**ANCHOR, "MODEL__DETR__HIDDEN_DIM": 64, "MODEL__DETR__NUM_QUERIES": 9}


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        (SMCA, SMCA),
        (MULTI_SCALE, MULTI_SCALE),
        ({**SMCA, "MODEL__DETR__HIDDEN_DIM": 24, "MODEL__DETR__DECODER__NUM_LAYERS": 3}, CONDITIONAL),
        (CONDITIONAL, SMCA),
        (ANCHOR, ANCHOR),
        (STANDARD, ANCHOR),
        (ANCHOR_WIDE, SMCA),
        (CONDITIONAL, ANCHOR),
    ],
    ids=["smca", "multi_scale", "smca-conditional", "conditional-smca", "anchor", "standard-anchor", "anchor-smca",
         "conditional-anchor"],
)  # fmt: skip
def test_distillation_step(distiller, inputs, teacher, student):
    """Both matchers, predictions and both attention maps; one read of the device, a gradient for every parameter."""
    model = distiller(teacher, student)
    with host_reads() as reads:
        losses = model(inputs)
        sum(losses.values()).backward()
    assert reads == ["cpu"]
    terms = ("class", "box", "giou", "self_attention", "cross_attention")
    assert {f"loss_distill_{term}_{name}" for term in terms for name in ("adaptive", "fixed")} <= set(losses)
    assert "loss_class_fixed" in losses and all(value.isfinite() for value in losses.values())
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
