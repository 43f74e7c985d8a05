"""Distillation between detectors of different kinds: every family teaches and learns, with all that the pair can use.

A family is the first shipped configuration of a registered decoder with a kind of queries, made small: a new detector
takes part as soon as it has a configuration.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from detr_distill.detr.deformable import DeformableAttention
from detr_distill.distill.layers import layer_map
from detr_distill.distill.query_exchange import (
    START_SIZE,
    CommonContent,
    PlaceMap,
    content_map,
    position_map,
)
from detr_distill.engine.configuration import build_config
from detr_distill.registry import DECODER_REGISTRY, QUERIES_REGISTRY
from detr_distill.structures import CROSS_ATTENTION, SAMPLED_ATTENTION, SELF_ATTENTION

import pytest
import torch
from builders import ROOT, make_inputs, randomise
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from scipy.optimize import linear_sum_assignment
from torch import nn

FILES = [
    file
    for folder in ("digits", "detr")
    for file in sorted((ROOT / "configs" / folder).glob("*.yaml"))
    if not file.name.startswith("Base-")
]
STAGES = ["stage1", "stage2", "stage3"]
SMALL = {
    "BACKBONE.NAME": "build_conv_backbone",
    "CONV_BACKBONE.CHANNELS": [8, 8, 8],
    "DETR.NUM_CLASSES": 5,
    "DETR.NUM_QUERIES": 6,
    "DETR.HIDDEN_DIM": 32,
    "DETR.NUM_HEADS": 2,
    "DETR.FFN_DIM": 24,
    "DETR.DROPOUT": 0.0,
    "DETR.DECODER.NUM_LAYERS": 2,
    "DETR.DECODER.NUM_POINTS": 2,
    "DETR.ADAMIXER.IN_POINTS": 4,
    "DETR.ADAMIXER.OUT_POINTS": 6,
}
# Another width, depth, and number of heads and queries than the student.
LARGER = {
    "DETR__HIDDEN_DIM": 64,
    "DETR__NUM_HEADS": 4,
    "DETR__NUM_QUERIES": 9,
    "DETR__DECODER__NUM_LAYERS": 3,
}


@cache
def families() -> dict[str, str]:
    """A configuration file for each pair of decoder and queries, "decoder/queries": file."""
    found: dict[str, str] = {}
    for file in FILES:
        cfg = build_config(str(file), [])
        if cfg.MODEL.META_ARCHITECTURE == "DetrDetector":
            found.setdefault(f"{cfg.MODEL.DETR.DECODER.NAME}/{cfg.MODEL.DETR.QUERIES.NAME}", str(file))
    return found


NAMES = sorted(families())
ADAMIXER, CONDITIONAL, DAB, DEFORMABLE, TWO_STAGE, DETR = (
    next(name for name in NAMES if name.startswith(start))
    for start in (
        "AdaMixerDecoder/", "ConditionalDecoder/", "DabDecoder/AnchorQ", "DeformableDecoder/", "DeformableBoxDecoder/",
        "DetrDecoder/",
    )
)  # fmt: skip


def family_cfg(name: str, **keys):
    """The small configuration of a family on the CPU; ``keys`` override below ``MODEL`` with ``__`` for ``.``."""
    cfg = build_config(families()[name], ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    cfg.DATASETS.TRAIN = ()
    node = cfg.MODEL.DETR
    node.IN_FEATURES = STAGES[-min(len(node.IN_FEATURES), 2) :]
    node.NUM_LEVELS = min(node.NUM_LEVELS, 2)
    node.ENCODER.NUM_LAYERS = min(node.ENCODER.NUM_LAYERS, 1)
    for key, value in {**SMALL, **{key.replace("__", "."): value for key, value in keys.items()}}.items():
        cfg.merge_from_list([f"MODEL.{key}", value])
    return cfg


@cache
def detector(name: str) -> nn.Module:
    """A family's detector, to be looked at."""
    return build_model(family_cfg(name))


def distiller(folder: Path, teacher: str, student: str, teacher_keys=None, datasets=None, **keys) -> nn.Module:
    """A randomised student of one family with a teacher of another and every loss that both can use.

    ``datasets`` names the training sets of teacher and student.
    """
    configurations = [family_cfg(teacher, **(teacher_keys or {})), family_cfg(student)]
    for cfg, dataset in zip(configurations, datasets or (), strict=False):
        cfg.DATASETS.TRAIN = (dataset,)
    teacher_cfg, cfg = configurations
    network = randomise(build_model(teacher_cfg), seed=1)
    (folder / "teacher.yaml").write_text(teacher_cfg.dump())
    torch.save({"model": network.state_dict()}, folder / "teacher.pth")
    shared = shared_captures(teacher, student)
    cfg.MODEL.META_ARCHITECTURE = "DistillDetector"
    node = cfg.MODEL.DISTILL
    node.TEACHER.CONFIG_FILE, node.TEACHER.WEIGHTS = str(folder / "teacher.yaml"), str(folder / "teacher.pth")
    node.LOSSES = ["PredictionLoss", "AttentionLoss"] + ["SampledAttentionLoss"] * (SAMPLED_ATTENTION in shared)
    node.ATTENTION_LOSS.SELF_WEIGHT = float(SELF_ATTENTION in shared)
    node.ATTENTION_LOSS.CROSS_WEIGHT = float(CROSS_ATTENTION in shared)
    for key, value in keys.items():
        cfg.merge_from_list(["MODEL." + key.replace("__", "."), value])
    model = build_model(cfg).train()
    randomise(model.student, seed=2)
    return model


def shared_captures(*names: str) -> frozenset[str]:
    return frozenset.intersection(*(detector(name).decoder.captures for name in names))


def step(model, counts=(2, 3)):
    """Losses of a training step after the backward pass, and {matcher's name: (student, knowledge, match)}."""
    seen = {}
    handles = [
        matcher.register_forward_hook(lambda module, args, match: seen.update({match.name: (*args[:2], match)}))
        for matcher in model.matchers.values()
    ]
    losses = model(make_inputs(counts=counts))
    sum(losses.values()).backward()
    for handle in handles:
        handle.remove()
    return losses, seen


def check_losses(model, losses, captures):
    """Every term of every matcher and layer is there and finite, and reaches every parameter."""
    terms = {"class", "box", "giou", *captures}
    layers = ["", *(f"_{layer}" for layer in range(len(model.student.decoder.layers) - 1))]
    expected = {f"loss_distill_{t}_{m}{s}" for t in terms for m in ("adaptive", "fixed") for s in layers}
    assert {name for name in losses if "distill" in name} == expected
    assert {f"loss_{term}_fixed{s}" for term in ("class", "box", "giou") for s in layers} <= set(losses)
    assert not [name for name, value in losses.items() if not value.isfinite() or value.dim()]
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def check_pairs(model, seen):
    """Adaptive pairs solve their cost, one to one; fixed pairs join query i with i, for all the teacher has."""
    student, knowledge, adaptive = seen["adaptive"]
    own, goal = student.outputs["own"].logits, knowledge.output.logits
    cost = model.matchers["AdaptiveMatcher"].cost(student, knowledge).values
    for layer, image in ((0, 1), (len(own) - 1, 0)):
        rows, columns = linear_sum_assignment(cost[layer, image].detach().numpy())
        assert adaptive.pairs.query[layer, image].tolist() == rows.tolist()
        assert adaptive.pairs.target[layer, image].tolist() == columns.tolist()
    assert adaptive.pairs.weight.shape == (len(own), 2, min(own.shape[2], goal.shape[2]))
    fixed = seen["fixed"][2]
    assert torch.equal(fixed.pairs.query, fixed.pairs.target) and fixed.pairs.query.shape[2] == goal.shape[2]
    assert adaptive.teacher_layer == fixed.teacher_layer == layer_map(len(own), len(goal), "aligned")


def all_pairs() -> list[tuple[str, str]]:
    """Every family as teacher and as student, twice, of and with different others; and pairs of note."""
    count = len(NAMES)
    pairs = [(NAMES[i], NAMES[(i + shift) % count]) for shift in (1, count // 2) for i in range(count)]
    noted = [
        (DEFORMABLE, CONDITIONAL), (CONDITIONAL, DEFORMABLE), (TWO_STAGE, CONDITIONAL), (CONDITIONAL, TWO_STAGE),
        (ADAMIXER, DEFORMABLE), (DETR, DAB), (DAB, DETR), (TWO_STAGE, DEFORMABLE),
    ]  # fmt: skip
    return list(dict.fromkeys(pairs + noted))


def test_every_registered_class_has_a_family():
    for place, registry in enumerate((DECODER_REGISTRY, QUERIES_REGISTRY)):
        assert {name.split("/")[place] for name in NAMES} >= {name for name, _ in registry}, "a shipped file is missing"


@pytest.mark.parametrize(("teacher", "student"), all_pairs(), ids=lambda name: name.split("/")[1])
def test_step_and_evaluation(teacher, student, tmp_path):
    model = distiller(tmp_path, teacher, student, LARGER)
    losses, seen = step(model)
    check_losses(model, losses, shared_captures(teacher, student))
    check_pairs(model, seen)
    with torch.no_grad():
        for result in model.eval()(make_inputs(labels=False)):
            assert len(result["instances"]) and result["instances"].scores.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_what_a_decoder_captures(name):
    """Self-attention all; points those that sample by attention, dense maps those that do not sample."""
    decoder = detector(name).decoder
    samples = any(isinstance(module, DeformableAttention) for module in decoder.modules())
    assert SELF_ATTENTION in decoder.captures and (SAMPLED_ATTENTION in decoder.captures) == samples
    assert not {CROSS_ATTENTION, SAMPLED_ATTENTION} <= decoder.captures


@pytest.mark.parametrize("name", NAMES)
def test_queries_say_what_they_are(name):
    """As they claim: content is zero for all, or not; positions are of the network's width, or 4 or 2 numbers."""
    model = randomise(build_model(family_cfg(name)))
    images = model.preprocess(make_inputs())
    group = model.queries(model.encode(model.backbone(images.tensor), images))
    assert (model.queries.content_kind == "zero") == (group.content.abs().max() == 0)
    width = {"embedding": 32, "box_logits": 4, "point_logits": 2}[model.queries.position_kind]
    assert group.position.shape[2] == width == model.queries.widths[1] and group.content.shape[2] == 32


def test_more_queries_than_the_student(tmp_path):
    model = distiller(tmp_path, DAB, DAB, {"DETR__NUM_QUERIES": 90}, DETR__NUM_QUERIES=30)
    losses, seen = step(model)
    check_losses(model, losses, shared_captures(DAB))
    check_pairs(model, seen)
    assert seen["adaptive"][2].pairs.query.shape[2] == 30 and seen["fixed"][2].pairs.query.shape[2] == 90


def test_twice_the_layers_and_the_width(tmp_path):
    teacher = {"DETR__DECODER__NUM_LAYERS": 6, "DETR__HIDDEN_DIM": 64}
    model = distiller(tmp_path, DEFORMABLE, DEFORMABLE, teacher, DETR__DECODER__NUM_LAYERS=3)
    losses, seen = step(model)
    check_losses(model, losses, shared_captures(DEFORMABLE))
    check_pairs(model, seen)
    assert seen["fixed"][2].teacher_layer == (1, 3, 5)


def test_batch_without_objects(tmp_path):
    model = distiller(tmp_path, TWO_STAGE, CONDITIONAL)
    losses, seen = step(model, counts=(0, 0))
    check_losses(model, losses, shared_captures(TWO_STAGE, CONDITIONAL))
    check_pairs(model, seen)


@pytest.fixture(scope="module")
def named_sets():
    """Two training sets that are known by their class names alone."""
    names = {"mixed_teacher": list("abcdefgh"), "mixed_student": ["g", "b", "x", "d"]}
    for name, classes in names.items():
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).thing_classes = classes
    yield tuple(names)
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(("teacher", "student"), [(DETR, CONDITIONAL), (CONDITIONAL, TWO_STAGE)])
def test_a_subset_of_the_classes_in_another_order(tmp_path, named_sets, teacher, student):
    """Classes that the student does not have are not taught; those that it has are found by name."""
    keys = {"datasets": named_sets, "DETR__NUM_CLASSES": 4}
    model = distiller(tmp_path, teacher, student, {"DETR__NUM_CLASSES": 8}, **keys)
    classes = model.teacher.classes
    assert (classes.student, classes.teacher) == ((0, 1, 3), (6, 1, 3))
    losses, seen = step(model)
    check_losses(model, losses, shared_captures(teacher, student))
    check_pairs(model, seen)
    head = model.teacher.detector.decoder.heads.class_head
    changed = []
    for known in (0, 6):
        saved = head.bias.data.clone()
        head.bias.data[known] += 1.0
        after = model(make_inputs())
        changed.append(
            [name for name in after if "_class_adaptive" in name and not torch.equal(after[name], losses[name])]
        )
        head.bias.data.copy_(saved)
    # A softmax teacher's other classes share one unit of probability.
    assert changed[1] and bool(changed[0]) == (teacher == DETR)


class Described(nn.Module):
    def __init__(self, content, position, content_kind=None, position_kind=None):
        super().__init__()
        self.widths = (content, position)
        if content_kind:
            self.content_kind, self.position_kind = content_kind, position_kind


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        (("embedding", 8), ("embedding", 8), nn.Identity),
        (("embedding", 8), ("embedding", 4), nn.Linear),
        (("box_logits", 4), ("box_logits", 4), nn.Identity),
        (("embedding", 4), ("box_logits", 4), nn.Linear),
        (("box_logits", 4), ("embedding", 4), nn.Linear),
        (("point_logits", 2), ("embedding", 8), nn.Linear),
        (("box_logits", 4), ("point_logits", 2), PlaceMap),
        (("point_logits", 2), ("box_logits", 4), PlaceMap),
        (("another", 4), ("box_logits", 4), nn.Linear),
        ((None, 8), (None, 8), nn.Linear),
    ],
)
def test_positions_pass_unchanged_between_equal_kinds_alone(teacher, student, expected):
    """Of equal width or not: a box is no embedding of four numbers, and what says nothing of itself is not trusted."""
    sides = [Described(8, width, kind and "zero", kind) for kind, width in (teacher, student)]
    found = position_map(*sides)
    assert type(found) is expected
    assert found(torch.randn(2, 3, teacher[1])).shape == (2, 3, student[1])


def test_boxes_and_points_become_each_other():
    logits = torch.randn(2, 3, 4)
    assert torch.equal(PlaceMap(2)(logits), logits[..., :2])
    boxes = PlaceMap(4)(logits[..., :2])
    assert torch.equal(boxes[..., :2], logits[..., :2]) and (boxes[..., 2:] == START_SIZE).all()
    boxes.sum().backward()


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [("zero", "zero", CommonContent), ("zero", "learned", CommonContent), ("learned", "zero", nn.Identity)],
)
def test_content_that_is_zero_becomes_what_the_student_knows(teacher, student, expected):
    content = content_map(Described(8, 4, teacher, "embedding"), Described(8, 4, student, "embedding"))
    assert type(content) is expected
    assert bool(list(content.parameters())) == ((teacher, student) == ("zero", "learned"))
    other = content_map(Described(12, 4, teacher, "embedding"), Described(8, 4, student, "embedding"))
    assert other(torch.zeros(2, 3, 12)).shape == (2, 3, 8)
    assert other(torch.zeros(2, 3, 12)).abs().max() == 0, "at the start"


def test_boxes_of_one_network_are_anchors_of_another(tmp_path):
    model = distiller(tmp_path, TWO_STAGE, DAB, LARGER)
    _, seen = step(model)
    (group,) = model.matchers["FixedMatcher"].extra_groups(seen["fixed"][1], 2)
    assert torch.equal(group.position, seen["fixed"][1].queries.position)
    assert group.content.shape == (2, 9, 32) and group.content.abs().max() == 0
    assert not list(model.matchers["FixedMatcher"].parameters())


def test_other_kinds_of_queries_are_mapped_in_float32(tmp_path):
    model = distiller(tmp_path, CONDITIONAL, TWO_STAGE, LARGER)
    _, seen = step(model)
    with torch.autocast("cpu", torch.bfloat16):
        (group,) = model.matchers["FixedMatcher"].extra_groups(seen["fixed"][1], 2)
        losses = model(make_inputs())
    assert group.position.dtype == torch.float32 and group.position.shape == (2, 9, 4)
    assert all(value.isfinite() for value in losses.values())
