"""DETR, Conditional DETR and DAB-DETR equal the independent implementation in transformers, weights copied across.

Points and anchors are spread over the image and to its border; images have odd sizes and padding.
"""

from __future__ import annotations

import pytest
import torch
from helpers.builders import make_inputs

pytest.importorskip("transformers")

from helpers.parity import build_ours, build_reference, our_weights
from helpers.parity_points import assert_same_losses, near_the_border, published_logit, spread_points, use_epsilon

SETTINGS = {
    "DetrDecoder": {"LOSS__CLASSIFICATION": "softmax", "MATCHER__COST_CLASS": 1.0},
    "ConditionalDecoder": {"MATCHER__COST_CLASS": 2.0},
    "DabDecoder": {
        "MATCHER__COST_CLASS": 2.0,
        "ENCODER__NAME": "DabEncoder",
        "QUERIES__NAME": "AnchorBoxQueries",
        "POSITION_TEMPERATURE": 20.0,
    },
}
# 1e-5 is that of transformers, 1e-3 of DAB-DETR's authors and of detrex.
CASES = [("DetrDecoder", 0.0), *((f, e) for f in ("ConditionalDecoder", "DabDecoder") for e in (1e-5, 1e-3))]


@torch.no_grad()
@pytest.mark.parametrize(("family", "epsilon"), CASES)
def test_every_layer_and_loss_equals_transformers(family, epsilon, monkeypatch):
    keys = {"DECODER__NAME": family, "POSITION_TEMPERATURE": 10000.0, "LOGIT_EPSILON": epsilon, **SETTINGS[family]}
    ours = build_ours(**{f"MODEL__DETR__{name}": value for name, value in keys.items()})
    reference = build_reference(family)
    if epsilon:
        spread_points(reference)
        use_epsilon(monkeypatch, reference, epsilon)
    ours.load_state_dict(our_weights(family, reference), strict=True)

    inputs = make_inputs(sizes=((91, 133), (121, 65)), counts=(2, 3))
    started = ours.start(inputs)
    finished, images = ours.finish(started), started.images
    output = finished.outputs["own"]
    assert images.mask.any(), "the batch must be padded"
    pixels = {"pixel_values": images.tensor, "pixel_mask": (~images.mask).long()}
    expected = reference(**pixels, output_hidden_states=True)
    logits, hidden, boxes = layer_outputs(family, reference, expected, pixels, epsilon)
    assert logits.std() > 0.01 and boxes.std() > 0.01, "a constant output would prove nothing"
    assert torch.equal(logits[-1], expected.logits) and (boxes[-1] - expected.pred_boxes).abs().max() < 1e-6
    for found, wanted in ((output.hidden, hidden), (output.logits, logits), (output.boxes, boxes)):
        assert found.shape == wanted.shape and (found - wanted).abs().max() < 1e-4
    assert_same_losses(ours, inputs, finished, reference, logits, boxes)


def layer_outputs(family, reference, expected, pixels, epsilon):
    """Logits, hidden states and boxes of every layer.

    transformers gives the hidden states of inner layers before the final norm; its own heads then give what a layer
    predicts.
    """
    hidden = torch.stack(expected.decoder_hidden_states[1:])
    inner = reference.model.decoder.layernorm(hidden[:-1])
    hidden = torch.cat([inner, expected.last_hidden_state[None]])
    class_head = reference.class_embed if family == "DabDecoder" else reference.class_labels_classifier
    offsets = reference.bbox_predictor(hidden)
    if epsilon:
        points = reference.model(**pixels).reference_points
        assert near_the_border(points, epsilon), "where the limit counts"
        # DAB-DETR: an anchor for each layer. Conditional DETR: one point, (Q, B, 2), for all.
        points = points if family == "DabDecoder" else points.transpose(0, 1)
        offsets[..., : points.shape[-1]] += published_logit(points, epsilon)
    return class_head(hidden), hidden, offsets.sigmoid()
