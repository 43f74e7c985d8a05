"""A teacher's queries in a student of another kind: what queries say of themselves, and how they are mapped."""

from __future__ import annotations

from detr_distill.detr.queries.base import Queries
from detr_distill.distill.matchers.query_exchange import START_SIZE, CommonContent, PlaceMap, content_map, position_map
from detr_distill.errors import ConfigError
from detr_distill.registry import QUERIES_REGISTRY

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs, randomise
from helpers.distill.families import CONDITIONAL, DAB, LARGER, NAMES, TWO_STAGE, distiller, family_cfg, step
from helpers.steps import encode
from torch import nn


@pytest.mark.parametrize("name", NAMES)
def test_queries_say_what_they_are(name):
    """As they claim: content is zero for all, or not; positions are of the network's width, or 4 or 2 numbers."""
    model = randomise(build_model(family_cfg(name)))
    group = model.queries(encode(model, make_inputs()))
    assert (model.queries.content_kind == "zero") == (group.content.abs().max() == 0)
    width = {"embedding": 32, "box_logits": 4, "point_logits": 2}[model.queries.position_kind]
    assert group.position.shape[2] == width == model.queries.widths[1] and group.content.shape[2] == 32


class Described(nn.Module):
    def __init__(self, content, position, content_kind, position_kind):
        super().__init__()
        self.widths = (content, position)
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
    ],
)
def test_positions_pass_unchanged_between_equal_kinds_alone(teacher, student, expected):
    """Of equal width or not: a box is no embedding of four numbers."""
    sides = [Described(8, width, "zero", kind) for kind, width in (teacher, student)]
    found = position_map(*sides)
    assert type(found) is expected
    assert found(torch.randn(2, 3, teacher[1])).shape == (2, 3, student[1])


def test_queries_that_say_nothing_of_themselves_are_not_registered():
    class SilentQueries(Queries):
        def forward(self, memory, beside=None):
            return self.own_group(memory, None, torch.zeros(self.widths[1]))

    with pytest.raises(ConfigError, match=r"SilentQueries does not set position_kind, content_kind; see .*Queries"):
        QUERIES_REGISTRY.register(SilentQueries)
    assert "SilentQueries" not in QUERIES_REGISTRY


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
