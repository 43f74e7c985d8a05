"""The feature loss against closed forms, and its bounds."""

from __future__ import annotations

from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.distill.divergence import jensen_shannon
from detr_distill.distill.knowledge import Knowledge
from detr_distill.distill.losses.feature import FeatureLoss
from detr_distill.distill.students.base import StudentOutput, StudentStep
from detr_distill.errors import ConfigError

import pytest
import torch
from helpers.builders import make_inputs
from helpers.distill.label_teachers import build_distilling
from helpers.feature_maps import map_pairs
from torch import nn

PLAIN = {"adapter_layers": 0, "norm": "none"}


def build(names="a", teacher_names=None, teacher_channels=3, **options) -> FeatureLoss:
    """A loss on maps of three channels, as they are if ``options`` say nothing else."""
    pairs = map_pairs(names, teacher_names or names, teacher_channels=teacher_channels)
    return FeatureLoss(pairs=pairs, **{**PLAIN, **options})


def compare(loss: FeatureLoss, own: dict, target: dict, step=None) -> torch.Tensor:
    return loss(StudentOutput(own, step=step), Knowledge(features=target), [])["loss_distill_feature"]


def maps(seed: int, channels=3, size=(2, 2)) -> torch.Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(seed))


def test_jensen_shannon_by_hand_and_its_bounds():
    same = torch.tensor([[1.0, 2, 3]])
    assert jensen_shannon(same, same + 5).item() == pytest.approx(0, abs=1e-6)
    apart = jensen_shannon(torch.tensor([[50.0, 0]]), torch.tensor([[0.0, 50]]))
    assert apart.item() == pytest.approx(1, abs=1e-6), "in bits, 1 is the most"
    a, b = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    m = (a + b) / 2
    expected = ((a * (a / m).log2()).sum() + (b * (b / m).log2()).sum()) / 2
    assert jensen_shannon(a.log(), b.log()).item() == pytest.approx(expected.item(), abs=1e-6)
    first, second = 5 * torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(0))
    values = jensen_shannon(first, second)
    assert (values >= -1e-6).all() and (values <= 1 + 1e-6).all()
    assert torch.allclose(values, jensen_shannon(second, first), atol=1e-6)
    assert (jensen_shannon(first, second, 4.0) < values).float().mean() > 0.9, "softer maps are nearer"


@pytest.mark.parametrize("divergence", ["mse", "cosine", "kl", "js", "js_distance"])
@pytest.mark.parametrize("softmax", ["channels", "space"])
def test_each_divergence_against_its_closed_form(divergence, softmax):
    own, target = maps(0), maps(1)
    loss = build(weight=3.0, divergence=divergence, softmax=softmax, temperature=2.0)
    axis = 1 if softmax == "channels" else 2
    p, q = ((x.flatten(2) / 2.0).softmax(axis) for x in (target, own))
    m, length = (p + q) / 2, p.shape[axis]
    js = ((p * (p / m).log2() + q * (q / m).log2()).sum(axis) / 2).mean()
    expected = {
        "mse": (own - target).square().mean(),
        "cosine": 1 - nn.CosineSimilarity(dim=1)(own, target).mean(),
        "kl": 4 * (p * (p / q).log()).sum(axis).mean(),
        "js": js,
        "js_distance": (js / length + 1e-8).sqrt(),
    }[divergence]
    assert compare(loss, {"a": own}, {"a": target}).item() == pytest.approx(3 * expected.item(), rel=1e-4)


@pytest.mark.parametrize("mean", ["cells", "levels"])
def test_a_map_is_compared_with_the_teachers_of_the_named_pair(mean):
    own = {"a": maps(0), "b": maps(1)}
    # The teacher has maps of the student's names as well, which are not those to be compared.
    target = {name: maps(2 + seed) for seed, name in enumerate("abxy")}
    loss = build("ab", "ya", mean=mean)
    expected = ((own["a"] - target["y"]).square().mean() + (own["b"] - target["a"]).square().mean()) / 2
    assert compare(loss, own, target).item() == pytest.approx(expected.item(), rel=1e-5)


def test_teacher_features_reach_the_loss():
    keys = {"IN_FEATURES": ["p3", "p5"], "TEACHER_FEATURES": ["p4", "p3"], "ADAPTER_LAYERS": 0, "NORM": "none"}
    model = build_distilling("retinanet", **{f"FEATURE_LOSS__{key}": value for key, value in keys.items()})
    own, target = ({f"p{level}": maps(seed + level, 16) for level in range(3, 8)} for seed in (0, 5))
    expected = ((own["p3"] - target["p4"]).square().mean() + (own["p5"] - target["p3"]).square().mean()) / 2
    assert compare(model.losses["FeatureLoss"], own, target).item() == pytest.approx(expected.item(), rel=1e-5)


def test_levels_are_joined_by_cells_or_by_means():
    own = {"a": maps(0, size=(4, 4)), "b": maps(1, size=(2, 2))}
    target = {"a": maps(2, size=(4, 4)), "b": maps(3, size=(2, 2))}
    fine, coarse = ((own[name] - target[name]).square() for name in "ab")
    cells = compare(build("ab", mean="cells"), own, target)
    assert cells.item() == pytest.approx(torch.cat([fine.flatten(), coarse.flatten()]).mean().item(), rel=1e-5)
    levels = compare(build("ab", mean="levels"), own, target)
    assert levels.item() == pytest.approx(((fine.mean() + coarse.mean()) / 2).item(), rel=1e-5)
    weighted = compare(build("ab", mean="levels", level_weights=(3.0, 1.0)), own, target)
    assert weighted.item() == pytest.approx(((3 * fine.mean() + coarse.mean()) / 4).item(), rel=1e-5)


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_norms_are_torchs_own(norm):
    own, target = maps(0, size=(3, 4)), maps(1, size=(3, 4))
    normalise = nn.InstanceNorm2d(3) if norm == "instance" else nn.GroupNorm(1, 3, affine=False)
    expected = (normalise(own) - normalise(target)).square().mean()
    found = compare(build(norm=norm), {"a": own}, {"a": target})
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    single = compare(build(norm=norm), {"a": own[..., :1, :1]}, {"a": target[..., :1, :1]})
    assert single.isfinite()


def test_foreground_counts_cells_of_objects_alone():
    inputs = make_inputs(sizes=((32, 32), (32, 32)), counts=(1, 0))
    inputs[0]["instances"].gt_boxes.tensor[:] = torch.tensor([0.0, 0, 15, 15])
    own, target = maps(0), maps(1)
    step = StudentStep(inputs, {}, (32, 32), ground_truth=read_ground_truth(inputs, "cpu"))
    found = compare(build(foreground=True), {"a": own}, {"a": target}, step)
    assert found.item() == pytest.approx((own - target)[0, :, 0, 0].square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_adapters_have_the_layers_asked_for(layers):
    loss = build(adapter_layers=layers, teacher_channels=3 if layers == 0 else 5)
    assert sum(isinstance(layer, nn.Conv2d) for layer in loss.adapter) == layers
    target = maps(1, channels=3 if layers == 0 else 5, size=(4, 4))
    assert compare(loss, {"a": maps(0)}, {"a": target}).isfinite(), "a map of another size is resized"


@pytest.mark.parametrize("divergence", ["mse", "js_distance"])
def test_gradient_reaches_the_student_and_not_the_teacher(divergence):
    own, target = maps(0).requires_grad_(), maps(1).requires_grad_()
    compare(build(divergence=divergence), {"a": own}, {"a": target}).backward()
    assert own.grad.abs().sum() > 0 and target.grad is None
    equal = maps(0).requires_grad_()
    compare(build(divergence=divergence), {"a": equal}, {"a": maps(0)}).backward()
    assert equal.grad.isfinite().all(), "equal maps have a finite gradient, under the root too"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "l7"}, "js_distance"),
        ({"norm": "layer"}, "FEATURE_LOSS.NORM"),
        ({"softmax": "time"}, "FEATURE_LOSS.SOFTMAX"),
        ({"teacher_channels": 4}, "3 channels and the teacher's 4"),
        ({"level_weights": (1.0,)}, "LEVEL_WEIGHTS"),
        ({"level_weights": (0.0,), "mean": "levels"}, "LEVEL_WEIGHTS are all 0"),
        ({"foreground": True, "softmax": "space", "divergence": "kl"}, "FOREGROUND"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)
