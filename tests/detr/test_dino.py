"""DINO and DN-Deformable DETR: the decoder of transformers, mixed selection, look forward twice, and distillation."""

from __future__ import annotations

import re

from detr_distill.detr.boxes import inverse_sigmoid
from detr_distill.detr.neck import resize_mask
from detr_distill.structures import SAMPLED_ATTENTION, SELF_ATTENTION, QueryGroup

import pytest
import torch
from builders import make_inputs, randomise, small_cfg
from detectron2.modeling import build_model
from detr.test_denoising import DINO, DN, DN_DEFORMABLE, begin_step, build
from distill.test_distiller import ReadCounter
from torch import Tensor

BOTH = {"dino": DINO, "dn_deformable": DN_DEFORMABLE}
both_decoders = pytest.mark.parametrize("variant", BOTH)
LAYERS = 3


def decode(model, inputs, capture=frozenset()):
    """Memory, the detector's own queries and their output."""
    images = model.preprocess(inputs)
    memory = model.encode(model.backbone(images.tensor), images)
    own = model.queries(memory)
    return memory, own, model.decode(memory, [own], capture)["own"]


# --- the decoder ---

GROUNDING_DINO = [
    (r"^layer_norm", "norm"),
    (r"^reference_points_head", "position_head"),
    (r"\.self_attn\.(query|key|value)\.", r".self_attention.\1_projection."),
    (r"\.self_attn\.out_proj", ".self_attention.output_projection"),
    (r"\.self_attn_layer_norm", ".self_attention_norm"),
    (r"\.encoder_attn_layer_norm", ".cross_attention_norm"),
    (r"\.encoder_attn\.value_proj", ".cross_attention.value_projection"),
    (r"\.encoder_attn\.output_proj", ".cross_attention.output_projection"),
    (r"\.encoder_attn\.", ".cross_attention."),
    (r"\.fc1\.", ".feed_forward.expand."),
    (r"\.fc2\.", ".feed_forward.contract."),
    (r"\.final_layer_norm", ".feed_forward_norm"),
]


def silence_text(reference) -> None:
    """Grounding DINO's decoder without its attention to a text."""
    for layer in reference.layers:
        torch.nn.init.zeros_(layer.encoder_attn_text.out_proj.weight)
        torch.nn.init.zeros_(layer.encoder_attn_text.out_proj.bias)
        layer.encoder_attn_text_layer_norm = torch.nn.Identity()


def load_grounding_dino(decoder, reference) -> None:
    """Copies the weights of ``reference``; the heads, which it has not, stay."""
    weights = {}
    for name, value in reference.state_dict().items():
        if "encoder_attn_text." in name:
            continue
        for pattern, replacement in GROUNDING_DINO:
            name = re.sub(pattern, replacement, name)
        weights[name] = value
    result = decoder.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys and all(name.startswith("heads.") for name in result.missing_keys)


@torch.no_grad()
def test_every_layer_equals_the_decoder_of_grounding_dino():
    """The same but for the attention to a text, and boxes are kept 1e-5 from 0 and 1, by DINO's authors 1e-3."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoDecoder

    keys = {"NUM_LAYERS": LAYERS, "SHARED_HEADS": False, "POINT_TEMPERATURE": 10_000.0}
    model = build("dino", **{f"MODEL__DETR__DECODER__{key}": value for key, value in keys.items()}).eval()
    config = transformers.GroundingDinoConfig(
        d_model=32, decoder_layers=LAYERS, decoder_attention_heads=2, decoder_ffn_dim=24, num_feature_levels=3,
        num_queries=7, decoder_n_points=4, disable_custom_kernels=True, attn_implementation="eager",
    )  # fmt: skip
    reference = randomise(GroundingDinoDecoder(config), seed=5).eval()
    silence_text(reference)
    load_grounding_dino(model.decoder, reference)
    reference.bbox_embed = [heads.box_head for heads in model.decoder.heads]
    model.decoder.epsilon = 1e-5

    memory, own, output = decode(model, make_inputs(sizes=((40, 64), (64, 32)), counts=(1, 1)))
    assert memory.mask.any()
    expected = reference(
        inputs_embeds=own.content,
        vision_encoder_hidden_states=memory.tokens,
        vision_encoder_attention_mask=~memory.mask,
        text_encoder_hidden_states=torch.randn(2, 3, 32),
        reference_points=own.position.sigmoid(),
        spatial_shapes=torch.tensor(memory.shapes),
        spatial_shapes_list=memory.shapes,
        level_start_index=torch.tensor([0, 256, 320]),
        valid_ratios=memory.valid_ratios,
        return_dict=True,
    )
    hidden = expected.intermediate_hidden_states.transpose(0, 1)
    points = [own.position.sigmoid(), *expected.intermediate_reference_points.unbind(1)][:-1]
    boxes = [
        (heads.box_head(values) + torch.logit(point, eps=1e-5)).sigmoid()
        for heads, values, point in zip(model.decoder.heads, hidden, points, strict=True)
    ]
    logits = [heads.class_head(values) for heads, values in zip(model.decoder.heads, hidden, strict=True)]
    assert hidden.std() > 0.01 and torch.stack(boxes).std() > 0.01, "a constant output would prove nothing"
    for found, wanted in ((output.hidden, hidden), (output.logits, logits), (output.boxes, boxes)):
        assert (found - torch.stack(list(wanted))).abs().max() < 1e-4


def test_levels_have_the_positions_of_grounding_dino():
    """DINO's own: no offset, temperature 20."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoSinePositionEmbedding

    keys = {"MODEL__DETR__NECK__POSITION_OFFSET": 0.0, "MODEL__DETR__POSITION_TEMPERATURE": 20.0}
    model = build_model(small_cfg(**DINO, **keys)).eval()
    torch.nn.init.zeros_(model.input_projection.level_embedding)
    images = model.preprocess(make_inputs(sizes=((40, 64), (64, 32)), counts=(1, 1)))
    memory = model.input_projection(model.backbone(images.tensor), images)
    embed = GroundingDinoSinePositionEmbedding(transformers.GroundingDinoConfig(d_model=32))
    assert embed.temperature == 20
    masks = [~resize_mask(images.mask, size) for size in memory.shapes]
    expected = [embed(images.tensor, mask).flatten(2).transpose(1, 2) for mask in masks]
    visible = ~memory.mask
    assert torch.allclose(memory.position[visible], torch.cat(expected, dim=1)[visible], atol=1e-5)


def test_anchors_of_dab_deformable_detr(inputs):
    """Each layer's anchor is the box before it without gradient; the content scales positions from the second on."""
    model = build("dn_deformable", MODEL__DETR__DECODER__NUM_LAYERS=LAYERS).eval()
    seen: list[tuple] = []
    for layer in model.decoder.layers:
        layer.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[:3]))
    memory, own, output = decode(model, inputs)
    anchors = [own.position.sigmoid(), *output.boxes[:-1]]
    contents = [own.content, *output.hidden[:-1]]
    frequency = 2 * torch.pi / model.decoder.temperature ** (torch.arange(8) * 2 / 16)
    for index, (content, position, places) in enumerate(seen):
        assert torch.equal(content, contents[index]), "without a norm the heads read what the next layer reads"
        assert torch.allclose(places, anchors[index][:, :, None] * memory.valid_ratios.repeat(1, 1, 2)[:, None])
        assert places.requires_grad == (index == 0)
        waves = [places[:, :, 0, k, None] * frequency for k in (1, 0, 2, 3)]  # y, x, width, height
        sine = torch.cat([torch.stack([w.sin(), w.cos()], -1).flatten(-2) for w in waves], dim=-1)
        expected = model.decoder.position_head(sine)
        if index:
            expected = expected * model.decoder.scale_head(content)
        assert torch.allclose(position, expected, atol=1e-5)


@both_decoders
def test_boxes_are_counted_from_a_thousandth(variant):
    """An anchor of no size has the logit of 0.001, as in the authors' code."""
    model = build_model(small_cfg(**BOTH[variant])).eval()  # box heads start at zero, but for the size bias
    memory, own, _ = decode(model, make_inputs())
    position = torch.full_like(own.position, -20.0)
    group = QueryGroup("own", own.content, position)
    first = model.decode(memory, [group])["own"].boxes[0]
    bias = torch.tensor([0.0, 0.0, model.decoder.size_bias, model.decoder.size_bias])
    expected = (inverse_sigmoid(torch.tensor(0.001)) + bias).sigmoid()
    assert torch.allclose(first, expected.expand_as(first), atol=1e-6)
    assert model.decoder.size_bias == (0.0 if variant == "dino" else -2.0)


@pytest.mark.parametrize("twice", [True, False])
def test_a_box_head_learns_from_its_own_layer_and_from_the_next(twice):
    keys = {"SHARED_HEADS": False, "LOOK_FORWARD_TWICE": twice, "NUM_LAYERS": LAYERS}
    model = build("dino", **{f"MODEL__DETR__DECODER__{key}": value for key, value in keys.items()})
    _, own, output = decode(model, make_inputs())
    heads = [heads.box_head.layers[-1].weight for heads in model.decoder.heads]
    for layer in range(LAYERS):
        found = torch.autograd.grad(output.boxes[layer].sum(), heads, allow_unused=True, retain_graph=True)
        reached = {index for index, gradient in enumerate(found) if gradient is not None and gradient.abs().max() > 0}
        assert reached == ({layer, layer - 1} - {-1} if twice else {layer})
    assert not own.position.requires_grad, "the encoder's boxes learn from its own loss"


def test_look_forward_twice_changes_no_output(inputs):
    outputs = []
    for twice in (True, False):
        model = build("dino", MODEL__DETR__DECODER__LOOK_FORWARD_TWICE=twice).eval()
        outputs.append(decode(model, inputs)[2].boxes)
    assert torch.equal(*outputs)


def test_heads_are_shared_or_not():
    def heads(variant: str, **keys) -> int:
        return len(build_model(small_cfg(**{**BOTH[variant], **keys})).decoder.heads)

    assert (heads("dino"), heads("dino", MODEL__DETR__DECODER__SHARED_HEADS=False)) == (1, 2)
    assert heads("dn_deformable") == 2


@both_decoders
def test_captured_attention_changes_nothing(variant, inputs):
    model = build(variant).eval()
    capture = frozenset({SELF_ATTENTION, SAMPLED_ATTENTION})
    assert model.decoder.captures == capture
    memory, _, groups = begin_step(model, inputs)
    plain, captured = (model.decode(memory, groups, c) for c in (frozenset(), capture))
    for group in groups:
        output = captured[group.name]
        assert torch.allclose(plain[group.name].logits, output.logits, atol=1e-5)
        queries = group.content.shape[1]
        assert output.self_attention[0].shape == (2, 2, queries, queries)
        assert output.sampled_attention[1].weights.shape == (2, queries, 2, 3, 4)
    maps = captured["denoising"].self_attention[0]
    hidden = groups[1].padding[:, None, None, :] & ~torch.eye(maps.shape[-1], dtype=torch.bool)
    assert maps[(groups[1].inner_mask | hidden).expand_as(maps)].max() == 0


@both_decoders
def test_boxes_stay_in_float32_under_autocast(variant, inputs):
    model = build(variant).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = decode(model, inputs)[2]
        losses = model(inputs)
    assert output.boxes.dtype == torch.float32 and output.logits.dtype == torch.bfloat16
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())


@both_decoders
def test_detections_do_not_depend_on_the_batch(variant):
    model = build(variant).eval()
    inputs = make_inputs(sizes=((48, 64), (48, 64)), counts=(1, 1), labels=False)
    with torch.no_grad():
        for entry, expected in zip(inputs, model(inputs), strict=True):
            assert torch.allclose(model([entry])[0]["instances"].scores, expected["instances"].scores, atol=1e-5)


# --- mixed query selection ---


def test_queries_are_the_best_tokens_of_any_class():
    model = build("dino").eval()
    images = model.preprocess(make_inputs())
    memory = model.encode(model.backbone(images.tensor), images)
    tokens, logits, boxes = model.queries._detect(memory)
    own = model.queries(memory)
    scores = logits.max(-1).values
    assert not torch.equal(scores.argmax(1), logits[..., 0].argmax(1)), "the best class is not always the first"
    for image in range(2):
        best = scores[image].sort(descending=True).indices[:7]
        assert torch.allclose(own.position[image], boxes[image, best], atol=1e-5)
        assert torch.equal(memory.proposals.logits[0, image], logits[image, best])
        assert torch.equal(memory.proposals.hidden[0, image], tokens[image, best])
    assert torch.equal(own.content, model.queries.content.weight.expand(2, -1, -1)), "content is learned"
    assert not own.position.requires_grad and memory.proposals.boxes.requires_grad


@pytest.mark.parametrize("queries", ["MixedQueries", "TwoStageQueries"])
def test_with_no_object_tokens_are_ranked_by_their_classes(queries):
    """Raw logits of a softmax head would prefer tokens that are sure of "no object"."""
    content = {"MODEL__DETR__QUERIES__NAME": queries, "MODEL__DETR__LOSS__CLASSIFICATION": "softmax"}
    if queries == "TwoStageQueries":
        content |= {"MODEL__DETR__TRAINING_GROUPS": []}
    model = build("dino", **content).eval()
    with torch.no_grad():
        model.queries.heads.class_head.weight[-1] *= 4
    images = model.preprocess(make_inputs())
    memory = model.encode(model.backbone(images.tensor), images)
    _, logits, boxes = model.queries._detect(memory)
    probabilities = logits.softmax(-1)[..., :-1]
    scores = probabilities.amax(-1) if queries == "MixedQueries" else probabilities[..., 0]
    own = model.queries(memory)
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
    outputs = model.decode(memory, groups)
    entries = {group.name: output for output, group, _ in model.supervised(outputs, groups, memory, targets)}
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


# --- distillation ---

LOSSES = ["PredictionLoss", "AttentionLoss", "SampledAttentionLoss"]


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ({**DINO, "MODEL__DETR__HIDDEN_DIM": 64, "MODEL__DETR__NUM_QUERIES": 9}, DINO),
        (DINO, DN_DEFORMABLE),
        (DN_DEFORMABLE, DINO),
    ],
    ids=["dino-dino", "dino-dn", "dn-dino"],
)
def test_distillation_step_with_denoising(tmp_path, inputs, teacher, student, monkeypatch):
    """Both matchers; one read of the device, a gradient for every parameter; the teacher denoises nothing."""
    cfg = small_cfg(**teacher)
    (tmp_path / "teacher.yaml").write_text(cfg.dump())
    torch.save({"model": randomise(build_model(cfg), 1).state_dict()}, tmp_path / "teacher.pth")
    keys = {
        "MODEL__META_ARCHITECTURE": "DistillDetector",
        "MODEL__DISTILL__TEACHER__CONFIG_FILE": str(tmp_path / "teacher.yaml"),
        "MODEL__DISTILL__TEACHER__WEIGHTS": str(tmp_path / "teacher.pth"),
        "MODEL__DISTILL__LOSSES": LOSSES,
        "MODEL__DISTILL__ATTENTION_LOSS__CROSS_WEIGHT": 0.0,
    }
    model = build_model(small_cfg(**keys, **student)).train()
    randomise(model.student, 2)
    (maker,) = model.teacher.detector.training_groups.values()
    maker.register_forward_pre_hook(lambda *_: pytest.fail("the teacher made denoising queries"))
    copies, original = [], Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self, *a, **k: copies.append(1) or original(self, *a, **k))
    with ReadCounter() as counter:
        losses = model(inputs)
        sum(losses.values()).backward()
    assert counter.reads == [] and copies == [1]
    for name in ("adaptive", "fixed"):
        assert {f"loss_distill_{term}_{name}" for term in ("class", "box", "giou", "self_attention")} <= set(losses)
    assert {"loss_class_denoising", "loss_class_fixed"} <= set(losses)
    assert all(value.isfinite() for value in losses.values())
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
