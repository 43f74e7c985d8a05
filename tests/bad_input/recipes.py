"""Bad settings of the recipes that teach from labels or from predictions, of mixed precision and of clipping."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from detr_distill.distill.teacher_start import start_from_teacher
from detr_distill.engine import build_config
from detr_distill.engine.precision import GradientClipper, Precision

import torch
from detectron2.modeling import build_model
from helpers.builders import ROOT, make_inputs
from helpers.convolutional import CASES
from helpers.distill.label_teachers import build_distilling
from torch import nn

from bad_input import Row

NAN, INFINITE = float("nan"), float("inf")


def taught(case: str = "conditional", **keys: object) -> Callable[[Path], object]:
    """A student of a label encoder; ``keys`` are below MODEL.DISTILL, with ``__`` for ``.``."""
    return lambda folder: build_distilling(case, **keys)


def stepping(case: str = "conditional", **keys: object) -> Callable[[Path], object]:
    """The same, and one step whose iteration nobody says."""
    return lambda folder: build_distilling(case, **keys)(make_inputs())


def map_encoder(
    case: str = "retinanet", weights: Callable[[], dict] | None = None, **keys: object
) -> Callable[[Path], object]:
    """A student of LabelEnc's encoder, whose weights are in a file where there are some."""

    def build(folder: Path) -> object:
        more = dict(keys)
        if weights is not None:
            more["TEACHER__WEIGHTS"] = str(folder / "step1.pth")
            torch.save({"model": weights()}, more["TEACHER__WEIGHTS"])
        return build_distilling(case, TEACHER__NAME="LabelMapEncoder", LABEL_MAP_ENCODER__WIDTH=8, **more)

    return build


def step1_weights(**keys: object) -> Callable[[], dict]:
    def build() -> dict:
        model = build_distilling("retinanet", TEACHER__NAME="LabelMapEncoder", LABEL_MAP_ENCODER__WIDTH=8, **keys)
        return model.state_dict()

    return build


def matching(student: str, teacher: str, matcher: str, **keys: object) -> Callable[[Path], object]:
    """A student of a frozen detector, paired by a matcher and compared by PredictionLoss."""

    def build(folder: Path) -> object:
        teacher_cfg, cfg = CASES[teacher](), CASES[student]()
        (folder / "teacher.yaml").write_text(teacher_cfg.dump())
        torch.save({"model": build_model(teacher_cfg).state_dict()}, folder / "teacher.pth")
        node = cfg.MODEL.DISTILL
        node.STUDENT_ARCHITECTURE, cfg.MODEL.META_ARCHITECTURE = cfg.MODEL.META_ARCHITECTURE, "DistillDetector"
        node.TEACHER.CONFIG_FILE, node.TEACHER.WEIGHTS = str(folder / "teacher.yaml"), str(folder / "teacher.pth")
        node.MATCHERS, node.LOSSES = [matcher], ["PredictionLoss"]
        for key, value in keys.items():
            cfg.merge_from_list([f"MODEL.DISTILL.{key.replace('__', '.')}", value])
        return build_model(cfg)

    return build


def typed(file: str, *words: str) -> Callable[[Path], object]:
    """A shipped configuration with KEY VALUE from the command line."""
    return lambda folder: build_config(str(ROOT / "configs" / file), list(words))


def starting(**keys: object) -> Callable[[Path], object]:
    """A plain student that begins with the decoder of what ``TEACHER`` names."""
    given = {"START_FROM_TEACHER": ["decoder"], "TEACHER.CONFIG_FILE": "configs/photos/teacher.yaml"}
    given |= {key.replace("__", "."): value for key, value in keys.items()}
    words = [str(word) for key, value in given.items() for word in (f"MODEL.DISTILL.{key}", value)]
    cfg = build_config(str(ROOT / "configs/photos/student.yaml"), words)
    return lambda folder: start_from_teacher(cfg, nn.Identity())


ROWS = [
    Row(
        "start from predictions",
        starting(TEACHER__NAME="PredictionsFile", TEACHER__WEIGHTS="predictions"),
        r"TEACHER\.WEIGHTS predictions holds predictions.*checkpoint in MODEL\.DISTILL\.START_WEIGHTS",
    ),
    Row("start from nothing", starting(), r"START_FROM_TEACHER is \['decoder'\].*START_WEIGHTS are empty"),
    Row("start from no file", starting(START_WEIGHTS="absent.pth"), r"START_WEIGHTS names absent\.pth, which does not"),
    Row("share of one", taught(BALANCE__TARGET_SHARE=1.0), r"BALANCE\.TARGET_SHARE is 1\.0.*less than 1"),
    Row("negative share", taught(BALANCE__TARGET_SHARE=-0.1), r"BALANCE\.TARGET_SHARE is -0\.1.*0 or more"),
    Row("share that is no number", taught(BALANCE__TARGET_SHARE=NAN), r"BALANCE\.TARGET_SHARE is nan"),
    Row("negative iterations", taught(BALANCE__ITERATIONS=-1), r"BALANCE\.ITERATIONS is -1.*0 or more"),
    Row("one bound", taught(BALANCE__TARGET_SHARE=0.4, BALANCE__RANGE=[1.0]), r"RANGE is \[1\.0\].*two factors"),
    Row("bounds in reverse", taught(BALANCE__TARGET_SHARE=0.4, BALANCE__RANGE=[2.0, 1.0]), r"RANGE is .*in order"),
    Row("a bound of zero", taught(BALANCE__TARGET_SHARE=0.4, BALANCE__RANGE=[0.0, 1.0]), r"RANGE is .*above 0"),
    Row("balance without an iteration", stepping(BALANCE__TARGET_SHARE=0.4), r"MODEL\.DISTILL\.BALANCE.*iteration"),
    Row("unknown class cost", taught(ADAPTIVE_MATCHER__DIVERGENCE="js"), r"DIVERGENCE is 'js'\. Known: 'kl', 'bce'"),
    Row("negative class cost", taught(ADAPTIVE_MATCHER__COST_CLASS=-1.0), r"ADAPTIVE_MATCHER\.COST_CLASS is -1"),
    Row("cost that is no number", taught(ADAPTIVE_MATCHER__COST_L1=NAN), r"ADAPTIVE_MATCHER\.COST_L1 is nan"),
    Row("endless cost", taught(ADAPTIVE_MATCHER__COST_GIOU=INFINITE), r"ADAPTIVE_MATCHER\.COST_GIOU is inf"),
    Row("unknown coarse maps", map_encoder(LABEL_MAP_ENCODER__COARSE_MAPS="c4"), r"COARSE_MAPS is 'c4'.*'max_pool'"),
    Row("too narrow an encoder", taught(LABEL_MAP_ENCODER__WIDTH=1), r"LABEL_MAP_ENCODER\.WIDTH is 1.*2 or more"),
    Row("LabelEnc on a DETR", map_encoder("conditional"), r"TEACHER\.NAME is 'LabelMapEncoder'.*Use 'LabelEncoder'"),
    Row("LabelEnc's missing file", map_encoder(TEACHER__WEIGHTS="missing.pth"), r"WEIGHTS names .*missing\.pth"),
    Row("LabelEnc from a plain file", map_encoder(weights=lambda: {"head": torch.zeros(1)}), r"no weights under"),
    Row(
        "LabelEnc of other coarse maps",
        map_encoder(weights=step1_weights(LABEL_MAP_ENCODER__COARSE_MAPS="p5")),
        r"coarser\.0\.weight.*of another shape|of another shape.*coarser\.0\.weight",
    ),
    Row("steps without factors", taught(SCHEDULE__STEPS=[5]), r"SCHEDULE\.STEPS is \[5\] and FACTORS is \[\]"),
    Row(
        "steps out of order",
        taught(SCHEDULE__STEPS=[9, 5], SCHEDULE__FACTORS=[1.0, 2.0]),
        r"SCHEDULE\.STEPS are iterations \[9, 5\]\. Give them in order",
    ),
    Row("unknown step", taught(SCHEDULE__STEPS=["drop"], SCHEDULE__FACTORS=[1.0]), r"SCHEDULE\.STEPS holds 'drop'"),
    Row(
        "the drop of a rate that does not drop",
        taught(SCHEDULE__STEPS=["lr_drop"], SCHEDULE__FACTORS=[1.0]),
        r"names 'lr_drop', but .*WarmupCosineLR",
    ),
    Row("schedule without an iteration", stepping(SCHEDULE__STUDENT_FROM=5.0), r"MODEL\.DISTILL\.SCHEDULE.*iteration"),
    Row("heads that do not divide", taught(LABEL_ENCODER__NUM_HEADS=3), r"NUM_HEADS is 3.*divisor"),
    Row("a map that is not read", taught(LABEL_ENCODER__IN_FEATURES=["p9"]), r"IN_FEATURES names \['p9'\]"),
    Row(
        "a map twice",
        taught("retinanet", LABEL_ENCODER__IN_FEATURES=["p3", "p3"]),
        r"LABEL_ENCODER\.IN_FEATURES.*each map once",
    ),
    Row("masks that are not there", stepping(LABEL_ENCODER__USE_MASKS=True), r"USE_MASKS is True.*no gt_masks"),
    Row(
        "half precision on a CPU", lambda folder: Precision("cpu", "float16"), r"float16 needs a CUDA device.*bfloat16"
    ),
    Row(
        "a teacher in float16 on a CPU",
        matching("conditional", "conditional", "AdaptiveMatcher", TEACHER__PRECISION="float16"),
        r"TEACHER\.PRECISION is float16.*MODEL\.DEVICE is cpu.*bfloat16",
    ),
    Row(
        "a teacher in an unknown type",
        typed("d3etr/conditional_r101_r50.yaml", "MODEL.DISTILL.TEACHER.PRECISION", "half"),
        r"TEACHER\.PRECISION is 'half'.*'bfloat16'",
    ),
    Row("unknown precision", lambda folder: Precision("cpu", "float8"), r'AMP\.DTYPE is "float8"'),
    Row("unknown clipping", lambda folder: GradientClipper("values", 1.0), r'CLIP_TYPE is "values".*full_model'),
    Row("one-to-one with many", matching("retinanet", "conditional", "AdaptiveMatcher"), r"Use OverlapMatcher"),
    Row("many with one-to-one", matching("conditional", "conditional", "OverlapMatcher"), r"Use AdaptiveMatcher"),
    Row(
        "positives that nobody knows",
        matching("conditional", "retinanet", "AdaptiveMatcher", PREDICTION_LOSS__CLASS_TARGETS="positives"),
        r"CLASS_TARGETS is 'positives'.*Set it to 'all'",
    ),
    Row(
        "a temperature without a softmax",
        matching("conditional", "conditional", "AdaptiveMatcher", PREDICTION_LOSS__TEMPERATURE=10.0),
        r"TEMPERATURE is 10\.0, and DIVERGENCE 'focal_bce'",
    ),
    Row(
        "centre-ness neither on nor off",
        typed("digits/fcos_student.yaml", "MODEL.FCOS.CENTERNESS_WEIGHTS", "maybe"),
        r"MODEL\.FCOS\.CENTERNESS_WEIGHTS",
    ),
]
