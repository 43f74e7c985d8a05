"""A student that begins with parts of its teacher, where names and shapes agree."""

from __future__ import annotations

import logging

from detr_distill.distill.classes import ClassMap, same_classes
from detr_distill.distill.teacher_start import PARTS, copy_parts, start_from_teacher
from detr_distill.errors import ConfigError

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import randomise, small_cfg
from helpers.convolutional import dense_cfg, rcnn_cfg

SAME = same_classes(5)
ADAMIXER = {
    "MODEL__DETR__NECK__NAME": "AdaMixerNeck",
    "MODEL__DETR__HIDDEN_DIM": 32,
    "MODEL__DETR__QUERIES__NAME": "AdaMixerQueries",
    "MODEL__DETR__DECODER__NAME": "AdaMixerDecoder",
}


def student_and_weights(student_cfg, teacher_cfg):
    teacher = randomise(build_model(teacher_cfg), seed=1)
    return randomise(build_model(student_cfg), seed=2), teacher.state_dict()


def test_every_part_is_copied_and_nothing_else():
    for part in PARTS:
        student, weights = student_and_weights(small_cfg(), small_cfg())
        before = {name: value.clone() for name, value in student.state_dict().items()}
        taken = copy_parts(student, weights, [part], SAME, 5)
        assert taken.whole and not (taken.misshaped or taken.absent or taken.classes)
        for name, value in student.state_dict().items():
            assert torch.equal(value, weights[name] if name in taken.whole else before[name]), name
    student, weights = student_and_weights(small_cfg(), small_cfg())
    copy_parts(student, weights, list(PARTS), SAME, 5)
    assert all(torch.equal(value, weights[name]) for name, value in student.state_dict().items())


def test_what_does_not_fit_is_left_and_named():
    keys = {"MODEL__DETR__NUM_QUERIES": 9, "MODEL__DETR__ENCODER__NUM_LAYERS": 0}
    student, weights = student_and_weights(small_cfg(), small_cfg(**keys))
    taken = copy_parts(student, weights, ["encoder", "queries", "neck"], SAME, 5)
    assert taken.misshaped == ["queries.position.weight (9, 16) instead of (7, 16)"]
    assert taken.absent and all(name.startswith("encoder.") for name in taken.absent)
    assert taken.whole == ["input_projection.weight", "input_projection.bias"]


def test_an_expression_chooses_parameters():
    student, weights = student_and_weights(small_cfg(), small_cfg())
    taken = copy_parts(student, weights, [r"self_attention\.output"], SAME, 5)
    assert taken.whole and all("self_attention.output" in name for name in taken.whole)


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (small_cfg, ("class_head",)),
        (lambda **keys: small_cfg(MODEL__DETR__LOSS__CLASSIFICATION="softmax", **keys), ("class_head",)),
        (lambda **keys: small_cfg(**ADAMIXER, **keys), ("class_head.3",)),
        (lambda **keys: with_classes(dense_cfg("RetinaNet"), keys), ("cls_score",)),
        (lambda **keys: with_classes(dense_cfg("FCOS"), keys), ("cls_score", "cls_logits")),
        (lambda **keys: with_classes(rcnn_cfg(masks=True), keys), ("cls_score", "bbox_pred", "predictor")),
        (lambda **keys: with_classes(rcnn_cfg("CascadeROIHeads"), keys), ("cls_score",)),
    ],
    ids=["focal", "softmax", "adamixer", "retinanet", "fcos", "rcnn", "cascade"],
)
def test_class_rows_are_found_by_name(make, layers):
    """Student classes 0 and 3 are the teacher's 2 and 1; a row of "no object" stays the last.

    Those are the layers whose shape the number of classes decides, and no others.
    """
    classes = ClassMap((0, 3), (2, 1), identical=False, num_student=5)
    student, weights = student_and_weights(make(), make(MODEL__DETR__NUM_CLASSES=3))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    taken = copy_parts(student, weights, ["heads"], classes, 3)
    assert taken.classes and not taken.absent and not taken.misshaped
    state = student.state_dict()
    assert taken.classes == [name for name in state if state[name].shape != weights[name].shape]
    for name in taken.classes:
        assert any(layer in name for layer in layers)
        mine, its, old = state[name], weights[name], before[name]
        if "box_predictor.bbox_pred" in name:  # four rows of each class, one behind the other
            mine, its, old = (rows.view(-1, 4, *rows.shape[1:]) for rows in (mine, its, old))
        anchors, rest = divmod(len(mine), 5)
        for anchor in range(anchors):
            for row in range(5):
                source = {0: its[anchor * 3 + 2], 3: its[anchor * 3 + 1]}.get(row, old[anchor * 5 + row])
                assert torch.equal(mine[anchor * 5 + row], source), (name, anchor, row)
        assert not rest or torch.equal(mine[-1], its[-1])


def test_rows_of_another_number_do_not_fit():
    """The teacher's boxes are of all classes, the student's of each."""
    cfgs = [with_classes(rcnn_cfg(), {}), with_classes(rcnn_cfg(), {"MODEL__DETR__NUM_CLASSES": 3})]
    cfgs[1].MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    student, weights = student_and_weights(*cfgs)
    taken = copy_parts(student, weights, ["bbox_pred"], ClassMap((0, 3), (2, 1), identical=False, num_student=5), 3)
    assert taken.misshaped == [
        "roi_heads.box_predictor.bbox_pred.weight (4, 16) instead of (20, 16)",
        "roi_heads.box_predictor.bbox_pred.bias (4,) instead of (20,)",
    ]


def with_classes(cfg, keys):
    count = keys.get("MODEL__DETR__NUM_CLASSES", 5)
    cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES = count
    return cfg


@pytest.fixture
def teacher_keys(save_teacher):
    keys = save_teacher()
    del keys["MODEL__META_ARCHITECTURE"]
    return keys


def test_a_plain_student_may_start_so_too(teacher_keys, caplog):
    cfg = small_cfg(**teacher_keys, MODEL__DISTILL__START_FROM_TEACHER=["decoder", "heads"])
    student = build_model(cfg)
    with caplog.at_level(logging.INFO):
        start_from_teacher(cfg, student)
    weights = torch.load(cfg.MODEL.DISTILL.TEACHER.WEIGHTS, weights_only=True)["model"]
    same = {name: torch.equal(value, weights[name]) for name, value in student.state_dict().items()}
    assert all(same[name] for name in same if name.startswith("decoder."))
    assert not same["queries.position.weight"] and "tensors of" in caplog.text
    assert "decoder.heads: 8" in caplog.text and "decoder.layers: " in caplog.text
    before = {name: value.clone() for name, value in student.state_dict().items()}
    start_from_teacher(small_cfg(**teacher_keys), student)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize(
    ("parts", "keys", "words"),
    [
        (["encoders"], {}, "no parameter for 'encoders'. Name one of backbone, neck"),
        (["("], {}, "nor a regular expression"),
        (
            ["queries"],
            {"MODEL__DETR__NUM_QUERIES": 3},
            r"nothing of .* fits the student: queries\.position.* \(7, 16\) instead",
        ),
    ],
)
def test_what_cannot_be_taken_is_refused(teacher_keys, parts, keys, words):
    cfg = small_cfg(**teacher_keys, **keys, MODEL__DISTILL__START_FROM_TEACHER=parts)
    with pytest.raises(ConfigError, match=words):
        start_from_teacher(cfg, build_model(cfg))


def test_beside_a_file_of_predictions_the_start_has_weights_of_its_own(teacher_keys):
    """What the file holds is no checkpoint."""
    checkpoint = teacher_keys["MODEL__DISTILL__TEACHER__WEIGHTS"]
    keys = {
        **teacher_keys,
        "MODEL__DISTILL__TEACHER__NAME": "PredictionsFile",
        "MODEL__DISTILL__TEACHER__WEIGHTS": "predictions.json",
        "MODEL__DISTILL__START_FROM_TEACHER": ["decoder"],
    }
    with pytest.raises(ConfigError, match=r"predictions\.json holds predictions.*START_WEIGHTS"):
        start_from_teacher(small_cfg(**keys), build_model(small_cfg(**teacher_keys)))
    cfg = small_cfg(**keys, MODEL__DISTILL__START_WEIGHTS=checkpoint)
    student = build_model(small_cfg(**teacher_keys))
    start_from_teacher(cfg, student)
    weights = torch.load(checkpoint, weights_only=True)["model"]
    state = student.state_dict()
    assert all(torch.equal(state[name], weights[name]) for name in state if name.startswith("decoder.layers"))


def test_the_start_s_own_weights_name_their_classes(teacher_keys, named_sets, tmp_path):
    """Stored in reverse: a row goes where its name is, whoever names the file; the number may be theirs too."""
    content = torch.load(teacher_keys["MODEL__DISTILL__TEACHER__WEIGHTS"], weights_only=True)
    names = ["d", "x", "b", "g", "none"]
    torch.save({**content, "class_names": names}, tmp_path / "named.pth")
    keys = {
        **teacher_keys,
        "MODEL__DISTILL__TEACHER__OPTS": ["MODEL.DETR.NUM_CLASSES", "0"],
        "MODEL__DISTILL__START_FROM_TEACHER": ["heads"],
        "MODEL__DETR__NUM_CLASSES": 4,
        "DATASETS__TRAIN": (named_sets[1],),
    }
    found = []
    for place in ({"START_WEIGHTS": "", "TEACHER__WEIGHTS": "named.pth"}, {"START_WEIGHTS": "named.pth"}):
        given = {f"MODEL__DISTILL__{key}": str(tmp_path / name) if name else "" for key, name in place.items()}
        named = small_cfg(**{**keys, "MODEL__DISTILL__TEACHER__WEIGHTS": "predictions.json", **given})
        if place["START_WEIGHTS"]:
            named.MODEL.DISTILL.TEACHER.NAME = "PredictionsFile"
        student = build_model(named)
        start_from_teacher(named, student)
        found.append(student.state_dict()["decoder.heads.class_head.weight"])
    weights = content["model"]["decoder.heads.class_head.weight"]
    assert torch.equal(found[0], weights[[3, 2, 1, 0]]) and torch.equal(found[1], found[0])
