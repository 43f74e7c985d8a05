"""KD-DETR: random queries that both sides decode, and pairs that count by the teacher's score."""

from __future__ import annotations

import math

from detr_distill.data import class_names
from detr_distill.distill import divergence
from detr_distill.distill.classes import match_classes
from detr_distill.distill.knowledge import Knowledge
from detr_distill.distill.losses.prediction import PredictionLoss
from detr_distill.distill.match import Match
from detr_distill.distill.students import StudentOutput, StudentStep
from detr_distill.errors import ConfigError
from detr_distill.randomness import seed_step
from detr_distill.structures import DecoderOutput, QueryGroup, pairs_in_order

import pytest
import torch
from helpers.builders import make_inputs, small_cfg
from helpers.distill.families import ADAMIXER, DAB, DEFORMABLE, TWO_STAGE, distiller
from helpers.distill.running import whole_and_resumed

KD_DETR = {
    "MODEL__DISTILL__MATCHERS": "('FixedMatcher', 'GeneralMatcher')",
    "MODEL__DISTILL__LOSSES": "('PredictionLoss',)",
    "MODEL__DISTILL__TEACHER_LAYER": "last",
    "MODEL__DISTILL__FIXED_MATCHER__LOSS_WEIGHT": 0.0,
    "MODEL__DISTILL__GENERAL_MATCHER__NUM_QUERIES": 4,
    "MODEL__DISTILL__PREDICTION_LOSS__DIVERGENCE": "softmax_kl",
    "MODEL__DISTILL__PREDICTION_LOSS__TEMPERATURE": 10.0,
    "MODEL__DISTILL__PREDICTION_LOSS__PAIR_WEIGHT": "teacher_score",
    "MODEL__DISTILL__PREDICTION_LOSS__BOX_SCORE_THRESHOLD": 0.0,
}


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(build_distiller, equal_teacher):
    """Both sides decode the same random queries, and neither lets them see others: equal networks agree on them."""
    model = build_distiller(equal_teacher, KD_DETR, MODEL__DETR__DROPOUT=0.0)
    model.student.load_state_dict(model.teacher.detector.state_dict())
    model.student.backbone.eval()  # its normalisation, as the teacher's
    losses = model(make_inputs())
    general = {name: value for name, value in losses.items() if name.endswith(("_general", "_fixed"))}
    assert len(general) == 6  # the last layer of three terms; the others follow the teacher's last layer
    for name, value in general.items():
        assert value.abs() < 1e-3, name
    assert losses["loss_distill_box_general_0"] > 1e-3


def test_random_queries_follow_the_seed_of_the_step(build_distiller, wide_teacher):
    model = build_distiller(wide_teacher, KD_DETR)
    matcher, own = (
        model.matchers["GeneralMatcher"],
        model.teacher(StudentStep(make_inputs()), frozenset()).queries,
    )
    draws = []
    for iteration in (5, 6, 5):
        seed_step(0, 0, iteration, 1)
        draws.append(matcher.draw(own))
    content, position = draws[0]
    assert content.shape == (2, 4, 24) and position.shape == (2, 4, 24)
    assert torch.equal(position, draws[2][1]) and torch.equal(content, draws[2][0])
    assert not torch.equal(position, draws[1][1])
    assert torch.equal(position[0], position[1])
    assert content.abs().sum() == 0  # as the Conditional DETR's own


def test_random_queries_have_the_content_of_the_teachers_own(build_distiller, wide_teacher):
    matcher = build_distiller(wide_teacher, KD_DETR).matchers["GeneralMatcher"]
    own = QueryGroup("own", torch.arange(1, 7.0).view(1, 3, 2).repeat(2, 1, 1), torch.zeros(2, 3, 5))
    torch.manual_seed(0)
    content, position = matcher.draw(own)
    rows = {tuple(row) for row in content[0].tolist()}
    assert rows <= {(1.0, 2.0), (3.0, 4.0), (5.0, 6.0)} and len(rows) > 1
    assert torch.equal(content[0], content[1]) and position.shape == (2, 4, 5) and position.std() > 0.5


def test_the_groups_have_no_detection_loss_and_all_layers_follow_the_last(build_distiller, wide_teacher):
    model = build_distiller(wide_teacher, KD_DETR)
    losses = model(make_inputs())
    assert not [
        name for name in losses if not name.startswith("loss_distill") and ("general" in name or "fixed" in name)
    ]
    sum(losses.values()).backward()
    for matcher in model.matchers.values():
        assert matcher.position_projection.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.teacher.detector.parameters())


@pytest.mark.parametrize(
    ("teacher", "student"), [(DAB, DEFORMABLE), (TWO_STAGE, DAB), (ADAMIXER, TWO_STAGE), (DEFORMABLE, ADAMIXER)]
)
def test_queries_of_other_kinds_take_part(tmp_path, teacher, student):
    """Boxes, embeddings and two-stage queries on either side."""
    matchers = {"DISTILL__MATCHERS": "('GeneralMatcher',)", "DISTILL__LOSSES": "('PredictionLoss',)"}
    model = distiller(tmp_path, teacher, student, DISTILL__GENERAL_MATCHER__NUM_QUERIES=4, **matchers)
    losses = model.train()(make_inputs())
    taught = [value for name, value in losses.items() if name.startswith("loss_distill")]
    assert taught and all(torch.isfinite(value) for value in taught)
    sum(losses.values()).backward()


def _compare(pair_weight, **keys):
    """Two pairs: the teacher is sure of the first (0.8) and not of the second (0.2); one layer, one image."""
    goal = torch.logit(torch.tensor([[[[0.8, 0.1], [0.2, 0.1]]]]))
    goal_boxes = torch.tensor([[[[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]]]])
    boxes = goal_boxes + torch.tensor([[[[0.1, 0, 0, 0], [0.3, 0, 0, 0]]]])
    hidden = torch.zeros(1, 1, 2, 0)
    loss = PredictionLoss(
        classes=match_classes(None, None, 2, 2), class_weight=1.0, l1_weight=5.0, giou_weight=2.0,
        box_score_threshold=0.0, pair_weight=pair_weight, **keys,
    )  # fmt: skip
    teacher = DecoderOutput(goal, goal_boxes, hidden, "sigmoid")
    student = StudentOutput({}, {"own": DecoderOutput(torch.zeros(1, 1, 2, 2), boxes, hidden, "sigmoid")})
    match = Match("general", "own", (0,), pairs_in_order(goal, 1, 1, 2), teacher_group="general")
    return loss.terms(student, Knowledge(extra={"general": teacher}), match)


def test_pairs_count_by_the_teachers_score_by_hand():
    """L1 is 5 * (0.8 * 0.1 + 0.2 * 0.3) / 1, against 5 * (0.1 + 0.3) / 1 with equal weights; the scores add up to 1."""
    assert math.isclose(_compare("teacher_score")["box"].item(), 0.7, rel_tol=1e-5)
    assert math.isclose(_compare("equal")["box"].item(), 2.0, rel_tol=1e-5)
    with pytest.raises(ConfigError, match="PAIR_WEIGHT is 'best'"):
        _compare("best")


def test_class_term_by_hand():
    """T^2 KL of softmax(logits / T), weighted; the student's is uniform."""
    expected = 0.0
    for score, other in ((0.8, 0.1), (0.2, 0.1)):
        first, second = math.log(score / (1 - score)) / 10, math.log(other / (1 - other)) / 10
        p = math.exp(first) / (math.exp(first) + math.exp(second))
        expected += score * 100 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    found = _compare("teacher_score", divergence="softmax_kl", temperature=10.0)["class"].item()
    assert math.isclose(found, expected, rel_tol=1e-4)
    assert divergence.softmax_kl(torch.zeros(3), torch.zeros(3), 10.0) == 0


def test_a_resumed_run_draws_the_whole_runs_queries(save_teacher, tiny_digits, tmp_path):
    teacher = save_teacher(MODEL__DETR__NUM_CLASSES=10, MODEL__DETR__HIDDEN_DIM=24)

    def cfg(name):
        return small_cfg(
            **teacher, **KD_DETR, DATASETS__TRAIN=(tiny_digits,), DATASETS__TEST=(), MODEL__DETR__NUM_CLASSES=10,
            SOLVER__IMS_PER_BATCH=2, SOLVER__MAX_ITER=4, SOLVER__CHECKPOINT_PERIOD=2, OUTPUT_DIR=str(tmp_path / name),
            MODEL__DISTILL__TEACHER__CLASS_NAMES=class_names(tiny_digits),
        )  # fmt: skip

    whole_and_resumed(cfg, stop_after=2)


def test_numbers_are_checked(build_distiller, wide_teacher):
    with pytest.raises(ConfigError, match="NUM_QUERIES is 0"):
        build_distiller(wide_teacher, {**KD_DETR, "MODEL__DISTILL__GENERAL_MATCHER__NUM_QUERIES": 0})
