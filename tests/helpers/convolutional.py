"""Small detectors of every kind that can be a student: detectron2's own, and DETRs with one level and with several."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks
from helpers.builders import make_inputs, randomise, small_cfg


def _pyramid_cfg(architecture: str, first: int):
    """A narrow R50 with a feature pyramid from stage ``first`` on.

    Only bottlenecks can be narrow: an R18 has a hundred times as many weights, which are what a short run saves.
    """
    cfg = small_cfg(MODEL__META_ARCHITECTURE=architecture)
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8, 32
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = [f"res{stage}" for stage in range(first, 6)]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    return cfg


def dense_cfg(architecture: str):
    """RetinaNet or FCOS."""
    cfg = _pyramid_cfg(architecture, first=3)
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    return cfg


def rcnn_cfg(heads: str = "StandardROIHeads", masks: bool = False):
    """Faster, Mask or Cascade R-CNN."""
    cfg = _pyramid_cfg("GeneralizedRCNN", first=2)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 50
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.IN_FEATURES = heads, ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM, cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 16, 3
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = heads == "CascadeROIHeads"
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = masks, "bitmask"
    cfg.MODEL.ROI_MASK_HEAD.NAME, cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = "MaskRCNNConvUpsampleHead", 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    return cfg


def deformable_cfg():
    """Two-stage Deformable DETR with two levels."""
    return small_cfg(
        MODEL__DETR__NECK__NAME="MultiLevelNeck", MODEL__DETR__NUM_LEVELS=2, MODEL__DETR__HIDDEN_DIM=32,
        MODEL__DETR__ENCODER__NAME="DeformableEncoder", MODEL__DETR__DECODER__NAME="DeformableBoxDecoder",
        MODEL__DETR__DECODER__BOX_REFINEMENT=True, MODEL__DETR__QUERIES__NAME="TwoStageQueries",
    )  # fmt: skip


CASES = {
    "conditional": small_cfg,
    "deformable": deformable_cfg,
    "retinanet": lambda: dense_cfg("RetinaNet"),
    "fcos": lambda: dense_cfg("FCOS"),
    "faster_rcnn": rcnn_cfg,
    "mask_rcnn": lambda: rcnn_cfg(masks=True),
    "cascade_rcnn": lambda: rcnn_cfg("CascadeROIHeads"),
}


def make_masked_inputs(**options):
    """As make_inputs, with a mask for every object: its box without a corner."""
    inputs = make_inputs(**options)
    for entry in inputs:
        if "instances" in entry:
            instances = entry["instances"]
            masks = torch.zeros(len(instances), *instances.image_size, dtype=torch.bool)
            for mask, box in zip(masks, instances.gt_boxes.tensor.int().tolist(), strict=True):
                left, top, right, bottom = box
                mask[top:bottom, left:right] = True
                mask[top : (top + bottom) // 2, left : (left + right) // 2] = False
            instances.gt_masks = BitMasks(masks)
    return inputs


def convolutional_distiller(cfg: CfgNode, folder, losses=("FeatureLoss",), **keys):
    """A student on detectron2's side that learns the maps of another of its kind."""
    (folder / "teacher.yaml").write_text(cfg.dump())
    torch.save({"model": randomise(build_model(cfg), 1, 0.03).state_dict()}, folder / "teacher.pth")
    cfg = cfg.clone()
    cfg.MODEL.DISTILL.STUDENT_ARCHITECTURE, cfg.MODEL.META_ARCHITECTURE = cfg.MODEL.META_ARCHITECTURE, "DistillDetector"
    node = cfg.MODEL.DISTILL
    node.TEACHER.CONFIG_FILE, node.TEACHER.WEIGHTS = str(folder / "teacher.yaml"), str(folder / "teacher.pth")
    node.MATCHERS, node.LOSSES = [], list(losses)
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    model = build_model(cfg).train()
    randomise(model.student, 2, 0.03)
    return model
