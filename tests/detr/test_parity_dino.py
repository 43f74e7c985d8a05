"""DINO's decoder and its levels' positions equal Grounding DINO's in transformers, DN-Deformable DETR's a loop."""

from __future__ import annotations

import re

from detr_distill.detr.layers.attention import GroupLayout
from detr_distill.detr.layers.deformable import project_values
from detr_distill.detr.layers.position import box_positions
from detr_distill.detr.necks.base import resize_mask
from detr_distill.structures.levels import level_lengths

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import SPREAD, make_inputs, randomise, small_cfg
from helpers.detr.denoising_detectors import DINO, build, decode

pytest.importorskip("transformers")

from helpers.parity_points import near_the_border, published_logit

LAYERS = 3
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
@pytest.mark.parametrize("epsilon", [1e-5, 0.0])
def test_every_layer_equals_the_decoder_of_grounding_dino(epsilon, monkeypatch):
    """The same but for the attention to a text, and boxes are kept 1e-5 from 0 and 1, by DINO's authors 1e-3."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoDecoder

    keys = {"NUM_LAYERS": LAYERS, "SHARED_HEADS": False, "POINT_TEMPERATURE": 10_000.0}
    decoder_keys = {f"MODEL__DETR__DECODER__{key}": value for key, value in keys.items()}
    model = build("dino", **decoder_keys, MODEL__DETR__LOGIT_EPSILON=epsilon).eval()
    model.queries.heads.box_head.layers[-1].weight *= 20  # anchors all over the image and at its border
    config = transformers.GroundingDinoConfig(
        d_model=32, decoder_layers=LAYERS, decoder_attention_heads=2, decoder_ffn_dim=24, num_feature_levels=3,
        num_queries=7, decoder_n_points=4, disable_custom_kernels=True, attn_implementation="eager",
    )  # fmt: skip
    reference = randomise(GroundingDinoDecoder(config), seed=5).eval()
    silence_text(reference)
    load_grounding_dino(model.decoder, reference)
    reference.bbox_embed = [heads.box_head for heads in model.decoder.heads]
    published = epsilon or 1e-3
    monkeypatch.setattr(torch.special, "logit", lambda values, eps: published_logit(values, published))

    memory, own, output = decode(model, make_inputs(sizes=((39, 61), (63, 31)), counts=(1, 1)))
    assert memory.mask.any() and near_the_border(own.position.sigmoid(), published)
    expected = reference(
        inputs_embeds=own.content,
        vision_encoder_hidden_states=memory.tokens,
        vision_encoder_attention_mask=~memory.mask,
        text_encoder_hidden_states=torch.randn(2, 3, 32),
        reference_points=own.position.sigmoid(),
        spatial_shapes=torch.tensor(memory.shapes),
        spatial_shapes_list=memory.shapes,
        level_start_index=torch.tensor([0, *level_lengths(memory.shapes)]).cumsum(0)[:-1],
        valid_ratios=memory.valid_ratios,
        return_dict=True,
    )
    hidden = expected.intermediate_hidden_states.transpose(0, 1)
    points = [own.position.sigmoid(), *expected.intermediate_reference_points.unbind(1)][:-1]
    boxes = [
        (heads.box_head(values) + published_logit(point, published)).sigmoid()
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


@torch.no_grad()
def test_dn_deformable_moves_anchors_layer_by_layer():
    """DAB-Deformable DETR of DN-DETR as its authors write it, layer after layer; anchors reach the image's border."""
    model = build("dn_deformable").eval()
    model.queries.position.weight *= 4 / SPREAD
    memory, own, output = decode(model, make_inputs(sizes=((39, 61), (63, 31)), counts=(1, 1)))
    anchor, content, decoder = own.position.sigmoid(), own.content, model.decoder
    assert memory.mask.any() and near_the_border(anchor, 1e-3)
    ratios = torch.cat([memory.valid_ratios, memory.valid_ratios], dim=-1)
    layout = GroupLayout((own.content.shape[1],), (None,), ((),))
    values = project_values([layer.cross_attention for layer in decoder.layers], memory)
    for index, (layer, heads) in enumerate(zip(decoder.layers, decoder.heads, strict=True)):
        reference = anchor[:, :, None] * ratios[:, None]
        position = decoder.position_head(box_positions(reference[:, :, 0], decoder.width, decoder.temperature))
        position = position * decoder.scale_head(content) if index else position
        content, *_ = layer(content, position, reference, values[index], layout, memory, frozenset())
        anchor = (heads.box_head(content) + published_logit(anchor, 1e-3)).sigmoid()
        assert (output.logits[index] - heads.class_head(content)).abs().max() < 1e-5
        assert (output.boxes[index] - anchor).abs().max() < 1e-5
