"""Any detector in two halves gives the losses of its own forward, and its head reads the maps that it is given."""

from __future__ import annotations

import dataclasses

from detr_distill.detr.assignment import solve_assignments
from detr_distill.distill.students import run_student, start_student

import pytest
import torch
from builders import make_inputs, randomise, small_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage


def convolutional_cfg(architecture: str):
    """A small RetinaNet or R-CNN with a feature pyramid on R18."""
    cfg = small_cfg(MODEL__META_ARCHITECTURE=architecture)
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    if architecture == "RetinaNet":
        cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
        cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
        return cfg
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 50
    cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads" if architecture == "cascade" else "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM, cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 16, 3
    return cfg


def multi_level_cfg():
    cfg = small_cfg(
        MODEL__DETR__NECK__NAME="MultiLevelNeck", MODEL__DETR__NUM_LEVELS=2, MODEL__DETR__HIDDEN_DIM=32,
        MODEL__DETR__DECODER__NAME="DeformableBoxDecoder", MODEL__DETR__DECODER__BOX_REFINEMENT=True,
        MODEL__DETR__QUERIES__NAME="TwoStageQueries",
    )  # fmt: skip
    cfg.MODEL.DETR.ENCODER.NAME = "DeformableEncoder"
    return cfg


CASES = {
    "conditional": small_cfg,
    "deformable": multi_level_cfg,
    "retinanet": lambda: convolutional_cfg("RetinaNet"),
    "faster_rcnn": lambda: convolutional_cfg("GeneralizedRCNN"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_halves_give_the_losses_of_the_whole(case):
    detector = randomise(build_model(CASES[case]())).train()
    inputs = make_inputs(sizes=((64, 96), (96, 64)))
    with EventStorage():
        torch.manual_seed(0)
        expected = detector(inputs)
        vars(detector).pop("loss_normalizer", None)  # RetinaNet's running mean of objects
        torch.manual_seed(0)
        step = start_student(detector, inputs)
        assert step.image_size == (96, 96)
        assert all(values.shape[0] == 2 and values.dim() == 4 for values in step.features.values())
        output = run_student(detector, step, [], frozenset())
        losses = output.finish(solve_assignments(output.costs))
    assert losses.keys() == expected.keys()
    assert all(torch.allclose(losses[name], expected[name], rtol=1e-5, atol=1e-6) for name in expected)


@pytest.mark.parametrize("case", CASES)
def test_the_head_reads_the_maps_that_it_is_given(case):
    detector = randomise(build_model(CASES[case]())).train()
    inputs = make_inputs(sizes=((64, 96), (96, 64)))
    step = start_student(detector, inputs)
    maps = {name: torch.rand_like(values).requires_grad_() for name, values in step.features.items()}
    with EventStorage():
        output = run_student(detector, dataclasses.replace(step, features=maps), [], frozenset())
    sum(output.finish(solve_assignments(output.costs)).values()).backward()
    assert all(values.grad.abs().sum() > 0 for values in maps.values())
    assert not [name for name, p in detector.backbone.named_parameters() if p.grad is not None]
