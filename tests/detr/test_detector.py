"""Properties of the detectors: no leaks between groups, padding changes nothing, attention maps add up to 1."""

from __future__ import annotations

import dataclasses

from detr_distill.detr.detector import Finished
from detr_distill.detr.layers.attention import attend
from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.detr.supervision.matchings import Matchings
from detr_distill.errors import ConfigError
from detr_distill.structures import CAPTURES, GroundTruth, ImageBatch, Memory, Pairs, QueryGroup

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs, randomise, small_cfg
from helpers.steps import encode, encode_features

DECODERS = ["DetrDecoder", "ConditionalDecoder", "DabDecoder"]
CLASSIFICATION = {"DetrDecoder": "softmax", "ConditionalDecoder": "focal", "DabDecoder": "focal"}
QUERIES = {"DabDecoder": "AnchorBoxQueries"}


def build(decoder: str, **keys):
    return randomise(
        build_model(
            small_cfg(
                MODEL__DETR__DECODER__NAME=decoder,
                MODEL__DETR__LOSS__CLASSIFICATION=CLASSIFICATION[decoder],
                MODEL__DETR__QUERIES__NAME=QUERIES.get(decoder, "LearnedQueries"),
                **keys,
            )
        )
    )


def random_group(queries_of, name: str, images: int, queries: int, **options) -> QueryGroup:
    generator = torch.Generator().manual_seed(len(name) + queries)
    widths = getattr(queries_of, "queries", queries_of).widths
    content, position = (torch.randn(images, queries, width, generator=generator) for width in widths)
    return QueryGroup(name, content, position, **options)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("capture", [frozenset(), CAPTURES])
def test_groups_do_not_see_each_other(decoder, capture, inputs):
    model = build(decoder).eval()
    memory = encode(model, inputs)
    own, other = model.queries(memory), random_group(model, "other", 2, 5)
    alone = model.decode(memory, [own], capture)["own"]
    together = model.decode(memory, [own, other], capture)["own"]
    assert torch.allclose(alone.logits, together.logits, atol=1e-5)
    assert torch.allclose(alone.boxes, together.boxes, atol=1e-5)
    if capture:
        for name in ("self_attention", "cross_attention"):
            for first, second in zip(getattr(alone, name), getattr(together, name), strict=True):
                assert torch.allclose(first, second, atol=1e-6)
    seeing = random_group(model, "other", 2, 5, sees=("own",))
    changed = model.decode(memory, [own, seeing], capture)
    assert torch.allclose(alone.logits, changed["own"].logits, atol=1e-5), "seeing is one-way"
    assert not torch.allclose(
        changed["other"].logits, model.decode(memory, [own, other], capture)["other"].logits, atol=1e-4
    )


def test_inner_mask_hides_queries_of_a_group(inputs):
    model = build("ConditionalDecoder").eval()
    memory = encode(model, inputs)
    own = model.queries(memory)
    group = random_group(model, "other", 2, 4, inner_mask=~torch.eye(4, dtype=torch.bool))
    single = QueryGroup("other", group.content[:, :1], group.position[:, :1])
    masked = model.decode(memory, [own, group])["other"]
    assert torch.allclose(masked.logits[:, :, :1], model.decode(memory, [single])["other"].logits, atol=1e-5)


@pytest.mark.parametrize("decoder", DECODERS)
def test_outputs_do_not_depend_on_batch_or_padding(decoder):
    model = build(decoder).eval()
    inputs = make_inputs(sizes=((40, 56), (64, 72), (24, 48)), counts=(1, 1, 1), labels=False)
    with torch.no_grad():
        together = model(inputs)
        for entry, expected in zip(inputs, together, strict=True):
            (alone,) = model([entry])
            assert torch.allclose(alone["instances"].scores, expected["instances"].scores, atol=1e-5)
            assert torch.allclose(
                alone["instances"].pred_boxes.tensor, expected["instances"].pred_boxes.tensor, atol=1e-2
            )


@pytest.mark.parametrize("decoder", DECODERS)
def test_masked_cells_change_nothing(decoder):
    """Whatever lies in the padding of the features, encoder and decoder do not see it."""
    model = build(decoder).eval()
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(1, 8, 5, 7, generator=generator)
    padded = torch.nn.functional.pad(features, (0, 2, 0, 3), value=9.0)
    whole = ImageBatch(torch.zeros(1, 3, 40, 56), None, [(40, 56)])
    mask = torch.ones(1, 64, 72, dtype=torch.bool)
    mask[:, :40, :56] = False
    part = ImageBatch(torch.zeros(1, 3, 64, 72), mask, [(40, 56)])
    outputs = []
    for images, values in ((whole, features), (part, padded)):
        memory = encode_features(model, {"stage3": values}, images)
        outputs.append(model.decode(memory, [model.queries(memory)])["own"])
    assert torch.allclose(outputs[0].logits, outputs[1].logits, atol=1e-5)
    assert torch.allclose(outputs[0].boxes, outputs[1].boxes, atol=1e-5)


@pytest.mark.parametrize("decoder", DECODERS)
def test_attention_maps_are_distributions_in_train_mode(decoder, inputs):
    model = build(decoder, MODEL__DETR__DROPOUT=0.5).train()
    memory = encode(model, inputs)
    output = model.decode(memory, [model.queries(memory), random_group(model, "other", 2, 5)], CAPTURES)
    for name, queries in (("own", 7), ("other", 5)):
        maps = output[name]
        self_maps, cross_maps = torch.stack(maps.self_attention), torch.stack(maps.cross_attention)
        assert self_maps.shape == (2, 2, 2, queries, queries)
        assert cross_maps.shape == (2, 2, 2, queries, memory.tokens.shape[1])
        assert torch.allclose(self_maps.sum(-1), torch.ones(()), atol=1e-5)
        assert torch.allclose(cross_maps.sum(-1), torch.ones(()), atol=1e-5)
        hidden = memory.mask[None, :, None, None, :].expand_as(cross_maps)
        assert cross_maps[hidden].max() == 0, "nothing looks at padding"


def test_captured_attention_does_not_overflow_in_float16():
    query = torch.full((1, 1, 2, 64), 40.0, dtype=torch.float16)
    fused, _ = attend(query, query, query)
    output, attention = attend(query, query, query, capture=True)
    assert attention.isfinite().all() and torch.allclose(output.float(), fused.float(), atol=0.1)


@pytest.mark.parametrize("decoder", DECODERS)
def test_capture_changes_no_output(decoder, inputs):
    model = build(decoder).eval()
    memory = encode(model, inputs)
    own = model.queries(memory)
    plain, captured = model.decode(memory, [own])["own"], model.decode(memory, [own], CAPTURES)["own"]
    assert plain.self_attention is None and plain.cross_attention is None
    assert torch.allclose(plain.logits, captured.logits, atol=1e-5)


@pytest.mark.parametrize("decoder", DECODERS)
def test_losses_have_every_layer_and_reach_every_parameter(decoder, inputs):
    model = build(decoder).train()
    losses = model(inputs)
    assert set(losses) == {f"loss_{n}{s}" for n in ("class", "box", "giou") for s in ("", "_0")}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("decoder", DECODERS)
def test_read_projection_is_what_the_only_token_gives(decoder, inputs):
    model = build(decoder).eval()
    memory = encode(model, inputs)
    alone = Memory(memory.tokens[:, :1], memory.position[:, :1], None, [(1, 1)])
    seen = []
    model.decoder.layers[-1].cross_attention.register_forward_hook(lambda module, args, out: seen.append(out[0]))
    model.decode(alone, [model.queries(alone)])
    expected = model.decoder.read_projection()(alone.tokens)
    assert expected.abs().max() > 0 and torch.allclose(seen[0], expected.expand_as(seen[0]), atol=1e-5)


class RepeatedObjects(torch.nn.Module):
    """Two queries for every object, and the pairs known: query i is for object i // 2."""

    def __init__(self, widths, loss_weight):
        super().__init__()
        self.widths, self.loss_weight = widths, loss_weight

    def forward(self, memory, own, targets):
        images, objects = targets.labels.shape
        repeated = GroundTruth(
            targets.labels.repeat_interleave(2, dim=1),
            targets.boxes.repeat_interleave(2, dim=1),
            targets.valid.repeat_interleave(2, dim=1),
            [2 * count for count in targets.counts],
        )
        index = torch.arange(2 * objects).expand(1, images, -1)
        pairs = Pairs(index, index, repeated.valid[None].float())
        group = random_group(self, "twice", images, 2 * objects)
        return [dataclasses.replace(group, targets=repeated, pairs=pairs, loss_weight=self.loss_weight)]


def test_training_groups_have_targets_and_pairs_of_their_own(inputs):
    model = build("ConditionalDecoder").train()
    plain = model(inputs)
    model.training_groups["twice"] = RepeatedObjects(model.queries.widths, loss_weight=0.5)
    losses = model(inputs)
    for name, value in plain.items():
        assert torch.allclose(losses[name], value, atol=1e-5), "the own group does not notice"
    targets, memory = read_ground_truth(inputs, model.device), encode(model, inputs)
    groups = model.query_groups(memory, targets)
    output = model.decode(memory, groups)["twice"]
    objects = [entry["instances"] for entry in inputs]
    total = sum(len(entry) for entry in objects)
    for layer, suffix in ((0, "_0"), (1, "")):
        distance = 0.0
        for image in range(len(inputs)):
            boxes = targets.boxes[image, : len(objects[image])].repeat_interleave(2, dim=0)
            distance += (output.boxes[layer, image, : len(boxes)] - boxes).abs().sum()
        weight = 0.5 * model.criterion.l1_weight
        assert torch.allclose(losses[f"loss_box_twice{suffix}"], weight * distance / (2 * total), rtol=1e-4)
    finished = Finished(memory, groups, model.decode(memory, groups))
    assert [entry.matching is None for entry in model.supervise(finished, targets, Matchings())] == [False, True]
    assert model.query_groups(memory) and len(model.query_groups(memory)) == 1, "not at inference"


def test_batch_without_objects_trains(inputs):
    model = build("ConditionalDecoder").train()
    empty = make_inputs(counts=(0, 0))
    losses = model(empty)
    assert losses["loss_box"] == 0 and losses["loss_class"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    mixed = model(make_inputs(counts=(0, 2)))
    assert all(value.isfinite() for value in mixed.values())


def test_detections_are_boxes_of_the_original_image(inputs):
    model = build("ConditionalDecoder").eval()
    entry = {**inputs[0], "height": 80, "width": 112}
    (large,), (small,) = model([entry]), model([inputs[0]])
    assert large["instances"].image_size == (80, 112)
    assert torch.allclose(large["instances"].pred_boxes.tensor, small["instances"].pred_boxes.tensor * 2, atol=1e-3)
    scores = large["instances"].scores
    assert (scores[:-1] >= scores[1:]).all()


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ConfigError, match=r"Known: .*ConditionalDecoder, DabDecoder, .*DetrDecoder"):
        build_model(small_cfg(MODEL__DETR__DECODER__NAME="NoSuchDecoder"))
    with pytest.raises(ConfigError, match=r"IN_FEATURES.*'stage1', 'stage2', 'stage3'"):
        build_model(small_cfg(MODEL__DETR__IN_FEATURES=["res5"]))
    with pytest.raises(ConfigError, match="HIDDEN_DIM is 16"):
        build_model(small_cfg(MODEL__DETR__NUM_HEADS=3))
    for key, value in (("NUM_QUERIES", 0), ("DECODER__NUM_LAYERS", 0), ("ENCODER__NUM_LAYERS", -1)):
        with pytest.raises(ConfigError, match=f"{key.replace('__', '.')} is {value}"):
            build_model(small_cfg(**{f"MODEL__DETR__{key}": value}))
    with pytest.raises(ConfigError, match="CLASSIFICATION is 'none'"):
        build_model(small_cfg(MODEL__DETR__LOSS__CLASSIFICATION="none"))
    with pytest.raises(ConfigError, match="TRAINING_GROUPS names 'NoSuchGroup'"):
        build_model(small_cfg(MODEL__DETR__TRAINING_GROUPS=["NoSuchGroup"]))
