"""Training steps on timm's networks, in our detectors and in detectron2's."""

from __future__ import annotations

from detr_distill.detr.backbones.timm import TimmBackbone
from detr_distill.engine import build_optimizer

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers.builders import make_inputs, small_cfg
from helpers.detr.small_networks import SMALL, STAGES, SWIN, detector_cfg, picture
from helpers.host_reads import host_reads


@pytest.mark.parametrize("name", [SWIN, SMALL])
def test_a_training_step_of_a_detector(name):
    """Every parameter is reached, the expression "backbone\\." finds the backbone's, and the device is not read."""
    levels = ["stage2", "stage3", "stage4"]
    cfg = detector_cfg(
        name,
        MODEL__TIMM__OUT_FEATURES=levels,
        MODEL__TIMM__OUTPUT_NORM=True,
        MODEL__TIMM__DROP_PATH=0.1,
        MODEL__DETR__HIDDEN_DIM=32,
        MODEL__DETR__IN_FEATURES=levels,
        MODEL__DETR__NUM_LEVELS=4,
        MODEL__DETR__NECK__NAME="MultiLevelNeck",
        MODEL__DETR__ENCODER__NAME="DeformableEncoder",
        MODEL__DETR__DECODER__NAME="DeformableDecoder",
        MODEL__DETR__QUERIES__NAME="LearnedContentQueries",
        SOLVER__LR_FACTORS=[["backbone\\.", 0.1]],
    )
    model = build_model(cfg).train()
    with host_reads() as reads:
        sum(model(make_inputs()).values()).backward()
    assert reads == ["cpu"]
    assert not [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None]
    slow = [g for g in build_optimizer(cfg, model).param_groups if g["lr"] == pytest.approx(0.1 * cfg.SOLVER.BASE_LR)]
    backbone = {p for p in model.backbone.parameters() if p.requires_grad}
    assert {p for group in slow for p in group["params"]} == backbone
    assert (
        len(backbone) > 6 and {f"norms.{n}.weight" for n in range(3)} <= dict(model.backbone.named_parameters()).keys()
    )


def test_checkpointing_changes_no_gradient():
    plain = TimmBackbone(name="test_convnext", out_features=["stage4"])
    sparing = TimmBackbone(name="test_convnext", out_features=["stage4"], checkpointing=True)
    sparing.load_state_dict(plain.state_dict())
    assert any(getattr(m, "grad_checkpointing", False) for m in sparing.modules())
    for ours in (plain, sparing):
        ours.train()(picture())["stage4"].square().sum().backward()
    for first, second in zip(plain.parameters(), sparing.parameters(), strict=True):
        assert torch.allclose(first.grad, second.grad, atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "name", "features", "levels"),
    [
        ("GeneralizedRCNN", "build_timm_fpn_backbone", STAGES, ["p2", "p3", "p4", "p5", "p6"]),
        ("RetinaNet", "build_retinanet_timm_fpn_backbone", STAGES[1:], ["p3", "p4", "p5", "p6", "p7"]),
    ],
)
def test_detectron2s_detectors_train_on_a_pyramid(architecture, name, features, levels):
    cfg = small_cfg()
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.TIMM.NAME = SMALL
    cfg.MODEL.TIMM.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = features
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    cfg.MODEL.RETINANET.IN_FEATURES = cfg.MODEL.RPN.IN_FEATURES = levels
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = levels[:-1]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 3
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    model = build_model(cfg).train()
    assert list(model.backbone.output_shape()) == levels and model.backbone.size_divisibility == 32
    with EventStorage():
        losses = model(make_inputs())
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    trainable = {key: value for key, value in model.backbone.named_parameters() if value.requires_grad}
    assert not [key for key, value in trainable.items() if value.grad is None]
    assert not [key for key in trainable if key.startswith("bottom_up.network.layer1")]  # MODEL.BACKBONE.FREEZE_AT is 2
