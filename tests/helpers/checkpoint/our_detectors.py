"""Small detectors of this project with the settings that the sources have, and the proof that an import gives them."""

from __future__ import annotations

from detr_distill.detr.queries import AnchorBoxQueries

import torch
from detectron2.modeling import build_model
from helpers.builders import SPREAD, randomise, small_cfg
from helpers.checkpoint.imported_detectors import build_imported, last_layer

LEVELS = {"NECK__NAME": "MultiLevelNeck", "NUM_LEVELS": 4, "ENCODER__NAME": "DeformableEncoder"}
DAB = {"DECODER__NAME": "DabDecoder", "ENCODER__NAME": "DabEncoder", "POSITION_TEMPERATURE": 20.0}
DN = {"QUERIES__NAME": "UnknownLabelQueries", "TRAINING_GROUPS": ["DenoisingQueries"]}
DINO = {
    **LEVELS,
    "DECODER__NAME": "DinoDecoder",
    "QUERIES__NAME": "MixedQueries",
    "TRAINING_GROUPS": ["ContrastiveDenoisingQueries"],
}
SETTINGS = {
    "detr": {"DECODER__NAME": "DetrDecoder", "LOSS__CLASSIFICATION": "softmax"},
    "conditional_detr": {},
    "dab_detr": {**DAB, "QUERIES__NAME": "AnchorBoxQueries"},
    "dn_detr": {**DAB, **DN},
    "deformable_detr": {**LEVELS, "DECODER__NAME": "DeformableDecoder", "QUERIES__NAME": "LearnedContentQueries"},
    "two_stage": {
        **LEVELS,
        "DECODER__NAME": "DeformableBoxDecoder",
        "DECODER__BOX_REFINEMENT": True,
        "QUERIES__NAME": "TwoStageQueries",
    },
    "dn_deformable_detr": {
        **LEVELS,
        **DN,
        "DECODER__NAME": "DabDeformableDecoder",
        "QUERIES__NAME": "MarkedAnchorQueries",
    },
    "dino": {**DINO, "POSITION_TEMPERATURE": 20.0, "NECK__POSITION_OFFSET": 0.0},
    "dino_separate": {
        **DINO,
        "POSITION_TEMPERATURE": 20.0,
        "NECK__POSITION_OFFSET": 0.0,
        "DECODER__SHARED_HEADS": False,
    },
    "dino_of_detrex": {**DINO, "DECODER__SHARED_HEADS": False},
}
# Networks that are tried in their authors' form, and their families.
AUTHORS = {"dn_detr": "dn_detr", "dn_deformable_detr": "dn_deformable_detr", "dino": "dino", "dino_separate": "dino"}
NUM_QUERIES, HEADS = 9, ["MODEL.DETR.NUM_HEADS", "4"]


def build_ours(name: str, num_classes: int = 5):
    """A small randomised detector on an R18, with the settings that the sources have."""
    keys = {"POSITION_TEMPERATURE": 10_000.0, **SETTINGS[name], "NUM_CLASSES": num_classes, "NUM_QUERIES": NUM_QUERIES}
    cfg = small_cfg(**{f"MODEL__DETR__{key}": value for key, value in keys.items()})
    cfg.MODEL.BACKBONE.NAME = "build_detr_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = 18, 64, False
    levels = "NUM_LEVELS" in SETTINGS[name]
    cfg.MODEL.DETR.IN_FEATURES = ["res3", "res4", "res5"] if levels else ["res5"]
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.DETR.IN_FEATURES
    cfg.MODEL.DETR.DECODER.POINT_TEMPERATURE, cfg.MODEL.DETR.DECODER.POSITION_GAIN = 10_000.0, 0.0
    cfg.MODEL.DETR.HIDDEN_DIM, cfg.MODEL.DETR.NUM_HEADS, cfg.MODEL.DETR.FFN_DIM = 32, 4, 48
    cfg.MODEL.DETR.ENCODER.NUM_LAYERS, cfg.MODEL.DETR.DECODER.NUM_LAYERS = 2, 3
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    model = randomise(build_model(cfg), seed=4).eval()
    if isinstance(model.queries, AnchorBoxQueries):  # all over the image and at its border, where limits count
        model.queries.position.weight.data *= 4 / SPREAD
    return model


def assert_round_trip(imported, model, tmp_path) -> None:
    """The same weights under the same names, and a configuration that makes the same of them."""
    weights = model.state_dict()
    assert set(imported.weights) == set(weights)
    assert all(torch.equal(imported.weights[key], value) for key, value in weights.items())
    (_, logits, boxes), (_, *expected) = last_layer(build_imported(imported, tmp_path)), last_layer(model)
    assert expected[0].std() > 0.01 and expected[1].std() > 0.01, "a constant output would prove nothing"
    assert (logits - expected[0]).abs().max() < 1e-4 and (boxes - expected[1]).abs().max() < 1e-4
