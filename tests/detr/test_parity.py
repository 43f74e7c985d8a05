"""DETR, Conditional DETR and DAB-DETR equal the independent implementation in transformers, weights copied across."""

from __future__ import annotations

import pytest
import torch
from helpers.builders import make_inputs

pytest.importorskip("transformers")

from helpers.parity import build_ours, build_reference, our_weights
from helpers.steps import encode_features

SETTINGS = {
    "DetrDecoder": {"MODEL__DETR__LOSS__CLASSIFICATION": "softmax"},
    "ConditionalDecoder": {},
    "DabDecoder": {"MODEL__DETR__ENCODER__NAME": "DabEncoder", "MODEL__DETR__QUERIES__NAME": "AnchorBoxQueries"},
}


@torch.no_grad()
@pytest.mark.parametrize("family", SETTINGS)
def test_every_layer_equals_transformers(family):
    temperature = 20.0 if family == "DabDecoder" else 10000.0
    keys = {"MODEL__DETR__DECODER__NAME": family, "MODEL__DETR__POSITION_TEMPERATURE": temperature}
    reference, ours = build_reference(family), build_ours(**keys, **SETTINGS[family])
    ours.load_state_dict(our_weights(family, reference), strict=True)

    images = ours.preprocess(make_inputs(sizes=((90, 130), (120, 64)), counts=(1, 1)))
    assert images.mask.any(), "the batch must be padded"
    memory = encode_features(ours, ours.backbone(images.tensor), images)
    output = ours.decode(memory, [ours.queries(memory)])["own"]
    expected = reference(pixel_values=images.tensor, pixel_mask=(~images.mask).long(), output_hidden_states=True)
    assert expected.logits.std() > 0.01 and expected.pred_boxes.std() > 0.01, "a constant output would prove nothing"
    assert torch.allclose(output.logits[-1], expected.logits, atol=1e-4)
    assert torch.allclose(output.boxes[-1], expected.pred_boxes, atol=1e-4)
    # Inner layers: transformers gives them before the final norm; its own heads then give what a layer predicts.
    hidden = torch.stack(expected.decoder_hidden_states[1 : output.num_layers])
    normed = reference.model.decoder.layernorm(hidden)
    class_head = reference.class_embed if family == "DabDecoder" else reference.class_labels_classifier
    assert torch.allclose(output.hidden[:-1], normed, atol=1e-4)
    assert torch.allclose(output.logits[:-1], class_head(normed), atol=1e-4)
    offsets = reference.bbox_predictor(normed)
    if family != "DetrDecoder":
        points = reference.model(pixel_values=images.tensor, pixel_mask=(~images.mask).long()).reference_points
        # DAB-DETR: an anchor for each layer. Conditional DETR: one point, (Q, B, 2), for all.
        points = points[: output.num_layers - 1] if family == "DabDecoder" else points.transpose(0, 1)
        offsets[..., : points.shape[-1]] += torch.logit(points)
    assert torch.allclose(output.boxes[:-1], offsets.sigmoid(), atol=1e-4)
