"""What matchers and losses ask for is checked however they were built."""

from __future__ import annotations

from detr_distill.distill import DistillDetector
from detr_distill.distill.classes import same_classes
from detr_distill.distill.losses import PredictionLoss, QueryRelationLoss
from detr_distill.distill.matchers import AdaptiveMatcher, FixedMatcher, GeneralMatcher
from detr_distill.distill.side import ASSIGNMENT, DECODING, HIDDEN, MAPS, QUERIES
from detr_distill.distill.teachers.base import Teacher
from detr_distill.errors import ConfigError
from detr_distill.structures import PREDICTIONS

import pytest
from detectron2.modeling import build_model
from helpers.builders import small_cfg
from torch import nn

CLASSES = same_classes(5)


class Giving(Teacher):
    """A teacher that gives what it is told to."""

    classes = CLASSES

    def __init__(self, *given):
        nn.Module.__init__(self)
        self.given = frozenset(given)

    @property
    def gives(self):
        return self.given

    def forward(self, step, capture):
        raise NotImplementedError


def adaptive():
    return AdaptiveMatcher(classes=CLASSES)


def fixed(**settings):
    maps = {"content_projection": nn.Identity(), "position_projection": nn.Identity()}
    return FixedMatcher(**maps, student_layers=2, **settings)


def general():
    return GeneralMatcher(content_projection=nn.Identity(), position_projection=nn.Identity())


def positives():
    return PredictionLoss(classes=CLASSES, class_targets="positives")


def relation():
    return QueryRelationLoss(widths=(16, 16))


def distiller(teacher, matchers, losses):
    parts = {str(n): matcher for n, matcher in enumerate(matchers)}
    student = build_model(small_cfg())
    return DistillDetector(
        student=student, teacher=teacher, matchers=parts, losses={str(n): loss for n, loss in enumerate(losses)}
    )


@pytest.mark.parametrize(
    ("given", "matchers", "losses", "lacking"),
    [
        ((), [adaptive], [], f"AdaptiveMatcher asks for {PREDICTIONS}"),
        ((PREDICTIONS,), [adaptive], [positives], f"PredictionLoss asks for {ASSIGNMENT}"),
        ((PREDICTIONS,), [adaptive], [relation], f"QueryRelationLoss asks for {HIDDEN}"),
        ((PREDICTIONS, QUERIES), [fixed], [], f"FixedMatcher asks for {ASSIGNMENT}"),
        ((PREDICTIONS, ASSIGNMENT), [fixed], [], f"FixedMatcher asks for {QUERIES}"),
        ((QUERIES, MAPS), [general], [], f"GeneralMatcher asks for {DECODING}"),
    ],
)
def test_what_the_teacher_lacks_is_said(given, matchers, losses, lacking):
    with pytest.raises(ConfigError, match=f"{lacking}, which the teacher's Giving does not have"):
        distiller(Giving(*given), [make() for make in matchers], [make() for make in losses])


def test_no_assignment_is_needed_where_none_is_imposed():
    assert distiller(Giving(PREDICTIONS, QUERIES), [fixed(teacher_assignment="none")], [])


def test_two_matchers_of_one_name_are_refused():
    teacher = Giving(PREDICTIONS, QUERIES, ASSIGNMENT)
    with pytest.raises(ConfigError, match=r"MATCHERS are called \['fixed', 'fixed'\]\. Give each class a name"):
        distiller(teacher, [fixed(), fixed()], [])
