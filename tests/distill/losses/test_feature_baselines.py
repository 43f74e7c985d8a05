"""FitNet, AT, DeFeat, CWD and PKD by hand; what holds for these, FGD and MGD."""

from __future__ import annotations

from typing import ClassVar

from detr_distill.distill.knowledge import Knowledge
from detr_distill.distill.losses.feature import FeatureLoss
from detr_distill.distill.losses.feature_parts import spatial_attention
from detr_distill.distill.losses.focal_global import FocalGlobalLoss
from detr_distill.distill.losses.map_pairs import MapPair, find_pairs, read_teacher_map
from detr_distill.distill.losses.masked_generation import MaskedGenerationLoss
from detr_distill.distill.side import Side
from detr_distill.distill.students.base import StudentOutput, student_of
from detr_distill.errors import ConfigError

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import randomise, small_cfg
from helpers.feature_maps import OWN, TARGET, levels, make_step, map_pairs, random_maps, run
from helpers.host_reads import host_reads
from helpers.torch_calls import torch_calls
from torch import nn
from torch.nn import functional as F

FITNET = {"norm": "none", "adapter_layers": 1, "adapter_kernel": 1, "mean": "levels"}
AT = {"norm": "attention", "adapter_layers": 0, "mean": "sum"}
DEFEAT = {"norm": "none", "adapter_layers": 0, "mean": "levels", "foreground": True, "background_weight": 4.0}
CWD = {"divergence": "kl", "softmax": "space", "temperature": 4.0, "norm": "none", "adapter_layers": 0, "mean": "sum"}
PKD = {"norm": "batch", "adapter_layers": 0, "mean": "sum"}


def feature_loss(pairs=None, teacher_channels=3, **options) -> FeatureLoss:
    return FeatureLoss(pairs=pairs or map_pairs(teacher_channels=teacher_channels), **options)


def feature_value(own=OWN, target=TARGET, counts=(1, 0), **options) -> float:
    return run(feature_loss(**options), own, target, counts)["loss_distill_feature"].item()


def test_fitnet_is_the_squared_error_behind_its_convolution():
    loss = feature_loss(**FITNET)
    errors = [(torch.einsum("oi,bihw->bohw", loss.adapter[0].weight[..., 0, 0], own) - target
               + loss.adapter[0].bias[:, None, None]).square().mean() for own, target in levels()]  # fmt: skip
    assert run(loss)["loss_distill_feature"].item() == pytest.approx((sum(errors) / 2).item(), rel=1e-5)


def test_attention_transfer_by_hand():
    own = {"a": torch.tensor([[[[3.0, 0]], [[0, 4]]]]), "b": torch.ones(1, 2, 1, 1)}
    target = {"x": torch.tensor([[[[1.0, 0]], [[0, 0]]]]), "y": torch.ones(1, 2, 1, 1)}
    # Strengths 9/2 and 16/2, of length sqrt(337)/2; the teacher's lie in the first cell. One cell alone is always 1.
    expected = ((9 / 337**0.5 - 1) ** 2 + (16 / 337**0.5) ** 2) / 2
    found = run(feature_loss(weight=10.0, **AT), own, target)
    assert found["loss_distill_feature"].item() == pytest.approx(10 * expected, rel=1e-5)
    wide = random_maps("xy", 3, channels=5)
    assert feature_value(target=wide, teacher_channels=5, **AT) > 0, "widths may differ without an adapter"
    still = torch.zeros(1, 3, 2, 2, requires_grad=True)
    spatial_attention(still).sum().backward()
    assert still.grad.isfinite().all()


def test_defeat_weighs_objects_and_background_apart():
    errors = [(own - target).square().mean(1) for own, target in levels()]
    # The object owns the cells whose corner lies in it: 2x2 of 4x4, 1 of 2x2, of the first image.
    inside = [errors[0][0, :2, :2].mean(), errors[1][0, 0, 0]]
    outside = [(errors[0].sum() - errors[0][0, :2, :2].sum()) / 28, (errors[1].sum() - errors[1][0, 0, 0]) / 7]
    expected = 1.5 * (sum(inside) / 2 + 4 * sum(outside) / 2)
    assert feature_value(weight=1.5, **DEFEAT) == pytest.approx(expected.item(), rel=1e-5)
    only = feature_value(weight=1.5, **{**DEFEAT, "background_weight": 0.0})
    assert only == pytest.approx(1.5 * (sum(inside) / 2).item(), rel=1e-5)
    empty = feature_value(counts=(0, 0), **DEFEAT)
    assert empty == pytest.approx(4 * (errors[0].mean() + errors[1].mean()).item() / 2, rel=1e-5)


def test_cwd_by_hand_on_two_places():
    own, target = torch.zeros(1, 1, 1, 2), torch.tensor([[[[3.0, 1.0]]]]).log() * 4  # at temperature 4: 3/4 and 1/4
    found = run(feature_loss(map_pairs("a", "a", 1, 1), **CWD), {"a": own}, {"a": target})
    expected = 16 * (0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log())
    assert found["loss_distill_feature"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert feature_value(**CWD) > 0


def test_pkd_is_one_minus_pearsons_correlation():
    expected = 0.0
    for own, target in levels():
        for channel in range(3):
            both = torch.stack([own[:, channel].flatten(), target[:, channel].flatten()])
            expected += (1 - torch.corrcoef(both)[0, 1].item()) / 3
    assert feature_value(weight=0.5, **PKD) == pytest.approx(expected, rel=1e-3)
    turned = {"a": OWN["a"] * 7 - 2, "b": OWN["b"] * 7 - 2}
    assert feature_value(own=turned, weight=0.5, **PKD) == pytest.approx(expected, rel=1e-3), "scale does not matter"


FORMS = {
    "fitnet": lambda pairs: feature_loss(pairs, **FITNET),
    "at": lambda pairs: feature_loss(pairs, **AT),
    "defeat": lambda pairs: feature_loss(pairs, **{**DEFEAT, "adapter_layers": 1}),
    "cwd": lambda pairs: feature_loss(pairs, **{**CWD, "adapter_layers": 1}),
    "pkd": lambda pairs: feature_loss(pairs, **{**PKD, "adapter_layers": 1}),
    "fgd": lambda pairs: randomise(FocalGlobalLoss(pairs=pairs)),
    "mgd": lambda pairs: MaskedGenerationLoss(weight=1.0, pairs=pairs),
}


def make(form: str, channels: int = 3, teacher_channels: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return FORMS[form](map_pairs(channels=channels, teacher_channels=teacher_channels))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("counts", [(1, 2), (0, 0)])
@pytest.mark.parametrize("sizes", [((4, 4), (2, 2)), ((3, 5), (1, 1))], ids=["even", "one cell"])
def test_every_form_teaches_the_student_alone(form, counts, sizes):
    """The teacher is wider and finer; images may be empty and maps one cell."""
    own = {name: value.requires_grad_() for name, value in random_maps("ab", 0, sizes=sizes).items()}
    finer = [(2 * height, 2 * width) for height, width in sizes]
    target = {name: value.requires_grad_() for name, value in random_maps("xy", 1, 5, finer).items()}
    loss = make(form)
    sum(run(loss, own, target, counts).values()).backward()
    assert own["a"].grad.abs().sum() > 0 and all(value.grad.isfinite().all() for value in own.values())
    assert all(value.grad is None for value in target.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_losses_are_float32_under_autocast(form):
    loss, target = make(form), random_maps("xy", 1, 5)
    torch.manual_seed(5)
    expected = run(loss, target=target)
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(loss, {name: value.bfloat16() for name, value in OWN.items()}, target)
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected[name].item(), rel=0.03)


@pytest.mark.parametrize("form", FORMS)
def test_no_form_waits_for_the_device(form):
    loss, target, step = make(form), random_maps("xy", 1, 5), make_step((1, 2))
    own = {name: value.clone().requires_grad_() for name, value in OWN.items()}
    with host_reads() as reads:
        found = loss(StudentOutput(own, step=step), Knowledge(features=target), [])
        sum(found.values()).backward()
    assert not reads


@pytest.mark.parametrize("form", ["defeat", "fgd"])
@pytest.mark.parametrize(("counts", "pads"), [((1, 2), 0), ((0, 0), 4)])
def test_boxes_are_prepared_once_a_step(form, counts, pads):
    """Not once a level: in a batch without objects one object of padding, and one copy of the corners to the device."""
    loss, student = make(form), StudentOutput(OWN, step=make_step(counts))
    known = Knowledge(features=random_maps("xy", 1, 5))
    with torch_calls() as calls:
        loss(student, known, [])
    assert sum(function is F.pad for function, _ in calls) == pads
    truth = make_step(counts, device="meta").ground_truth
    corners = truth.at_least_one().corners_on_device
    assert corners.is_meta and corners is truth.at_least_one().corners_on_device


def test_a_map_of_another_grid_is_read_between_its_cells():
    """Two cells read as four: each centre's value, a quarter and three quarters of the way; no gradient."""
    maps = torch.tensor([[[[0.0, 4.0]]]], dtype=torch.float16, requires_grad=True)
    target = read_teacher_map(Knowledge(features={"x": maps}), "x", (2, 4))
    assert torch.equal(target, torch.tensor([[[[0.0, 1, 3, 4]] * 2]]).view(1, 1, 2, 4))
    assert target.dtype == torch.float32 and not target.requires_grad
    halved = read_teacher_map(Knowledge(features={"x": torch.tensor([[[[0.0, 4, 1, 3]]]])}), "x", (1, 2))
    assert torch.equal(halved, torch.tensor([[[[2.0, 2.0]]]]))


class Pyramid(Side):
    """A side with two maps, and no encoder."""

    feature_channels: ClassVar = {"p3": 8, "p4": 9}


def pairs_of(in_features=(), teacher_features=()) -> tuple[MapPair, ...]:
    student = student_of(build_model(small_cfg()))
    return find_pairs(in_features, teacher_features, "MODEL.DISTILL.FOCAL_GLOBAL_LOSS", student, Pyramid())


def test_maps_of_other_names_are_paired_in_order():
    assert pairs_of(["level0"], ["p4"]) == (MapPair("level0", "p4", 16, 9),)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"IN_FEATURES names \['p3', 'p4'\]; the student has \['level0', 'memory0'\]"),
        ([["level0"]], r"IN_FEATURES names \['level0'\]; the teacher has \['p3', 'p4'\]"),
        ([["level0"], ["p9"]], r"TEACHER_FEATURES names \['p9'\]"),
        ([["level0"], ["p3", "p4"]], "as many maps"),
        ([[], ["p3"]], "as many maps"),
        ([["level0", "level0"], ["p3", "p4"]], "each map once"),
    ],
)
def test_unknown_maps_are_named(names, message):
    with pytest.raises(ConfigError, match=f"FOCAL_GLOBAL_LOSS.*{message}"):
        pairs_of(*names)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: feature_loss(**{**AT, "divergence": "kl"}), "NORM is 'attention'"),
        (lambda: feature_loss(**{**FITNET, "background_weight": 1.0}), "BACKGROUND_WEIGHT is 1.0"),
    ],
)
def test_bad_options_are_named(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
