"""LabelEnc: the picture of the labels by hand, the pyramid on any detector, and the two trainings."""

from __future__ import annotations

from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.distill.students import StudentStep
from detr_distill.distill.teachers.label_encoder.label_map import LabelMapEncoder
from detr_distill.errors import CheckpointError, ConfigError

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from helpers.builders import make_inputs, randomise
from helpers.convolutional import CASES
from helpers.distill.student_steps import start_step

PYRAMIDS = ["retinanet", "fcos", "faster_rcnn", "cascade_rcnn"]


def distilling_cfg(case: str, weights: str = ""):
    cfg = CASES[case]()
    cfg.MODEL.DISTILL.STUDENT_ARCHITECTURE = cfg.MODEL.META_ARCHITECTURE
    cfg.MODEL.META_ARCHITECTURE = "DistillDetector"
    cfg.MODEL.DISTILL.TEACHER.NAME, cfg.MODEL.DISTILL.TEACHER.WEIGHTS = "LabelMapEncoder", weights
    cfg.MODEL.DISTILL.LABEL_MAP_ENCODER.WIDTH = 8
    cfg.MODEL.DISTILL.MATCHERS, cfg.MODEL.DISTILL.LOSSES = [], ["FeatureLoss"]
    cfg.MODEL.DISTILL.FEATURE_LOSS.NORM = "group"
    return cfg


def step_of(boxes, classes, size=(8, 8)) -> StudentStep:
    instances = Instances(
        size, gt_boxes=Boxes(torch.tensor(boxes).view(-1, 4)), gt_classes=torch.tensor(classes).long()
    )
    inputs = [{"image": torch.zeros(3, *size), "instances": instances}]
    maps = {"p": torch.zeros(1, 4, 2, 2)}
    return StudentStep(inputs, maps, size, ground_truth=read_ground_truth(inputs, "cpu"))


def draw(encoder: LabelMapEncoder, step: StudentStep) -> torch.Tensor:
    """The picture of the labels, which the stem reads."""
    seen: list[torch.Tensor] = []
    with encoder.stem.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs)):
        encoder(step, frozenset())
    return seen[0]


def small_encoder(**options) -> LabelMapEncoder:
    return randomise(LabelMapEncoder(strides={"p": 4, "q": 8}, channels=4, num_classes=3, width=4, **options))


def test_the_picture_by_hand():
    """Chebyshev distance from the centre in box sizes: 1 at the centre, 1/2 at the border, nothing outside."""
    encoder = small_encoder()
    encoder.frozen = True  # no dimming
    picture = draw(encoder, step_of([[0.0, 0, 4, 8], [2, 2, 6, 6], [4, 4, 6, 6]], [2, 0, 0]))
    assert picture.shape == (1, 3, 8, 8) and not picture[0, 1].any()
    # Rows are y. The tall box: centre (2, 4), size (4, 8).
    assert picture[0, 2, 4].tolist() == [0.5, 0.75, 1, 0.75, 0.5, 0, 0, 0]
    assert picture[0, 2, :, 2].tolist() == pytest.approx([0.5, 0.625, 0.75, 0.875, 1, 0.875, 0.75, 0.625])
    # Two of one class: the larger value where they overlap; (5, 5) is the small one's centre, (4, 4) the large one's.
    assert picture[0, 0, 5, 5] == 1 and picture[0, 0, 4, 4] == 1 and picture[0, 0, 2, 2] == 0.5
    assert picture[0, 0, 5, 4] == 0.75 and not picture[0, 0, :2].any()


def test_objects_are_dimmed_only_while_the_encoder_learns():
    torch.manual_seed(0)
    encoder = small_encoder()
    step = step_of([[0.0, 0, 8, 8]], [1])
    peaks = torch.stack([draw(encoder, step).max() for _ in range(400)])
    assert 0.4 < (peaks == 1).float().mean() < 0.6 and (peaks < 0.5).float().mean() > 0.15
    encoder.frozen = True
    assert draw(encoder, step).max() == 1


def test_an_image_without_objects_is_dark_and_still_taught():
    encoder = small_encoder()
    step = step_of([], [])
    assert not draw(encoder, step).any()
    assert encoder(step, frozenset()).features["q"].shape == (1, 4, 1, 1)


@pytest.mark.parametrize("case", PYRAMIDS)
def test_both_trainings_on_any_pyramid(case, tmp_path):
    first = build_model(distilling_cfg(case)).train()
    inputs = make_inputs(sizes=((64, 96), (96, 64)))
    with EventStorage():
        losses = first(inputs)
    sum(losses.values()).backward()
    assert {"loss_distill_feature"} < set(losses) and any(name.endswith("_teacher") for name in losses)
    assert not [name for name, value in first.named_parameters() if value.requires_grad and value.grad is None]

    file = tmp_path / "model_final.pth"
    torch.save({"model": first.state_dict()}, file)
    second = build_model(distilling_cfg(case, str(file))).train()
    for name, value in second.teacher.state_dict().items():
        assert torch.equal(value, first.teacher.state_dict()[name]), name
    with EventStorage():
        losses = second(inputs)
    sum(losses.values()).backward()
    assert not any(name.endswith("_teacher") for name in losses), "the head no longer reads the frozen maps"
    assert not [
        name for name, value in second.teacher.named_parameters() if value.requires_grad or value.grad is not None
    ]
    assert any(value.grad is not None and value.grad.any() for value in second.losses.parameters())


@pytest.mark.parametrize("case", PYRAMIDS)
def test_maps_have_the_students_names_and_sizes(case):
    model = build_model(distilling_cfg(case)).train()
    _, step = start_step(model.student, make_inputs(sizes=((64, 96), (96, 64))))
    taught = model.teacher(step, frozenset()).features
    assert {name: values.shape for name, values in taught.items()} == {
        name: values.shape for name, values in step.features.items()
    }


@pytest.mark.parametrize("coarse", ["c5", "p5", "max_pool"])
def test_coarse_maps_are_made_as_the_detectors_pyramid_makes_them(coarse):
    strides = {f"p{level}": 2**level for level in range(3, 8)}
    encoder = randomise(
        LabelMapEncoder(strides=strides, channels=4, num_classes=3, width=4, coarse_maps=coarse, weights="")
    )
    seen: list[torch.Tensor] = []
    encoder.stages[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    maps = encoder(step_of([[0.0, 0, 90, 120], [30, 20, 200, 90]], [2, 0], (128, 256)), frozenset()).features
    assert [tuple(values.shape[-2:]) for values in maps.values()] == [(16, 32), (8, 16), (4, 8), (2, 4), (1, 2)]
    if coarse == "max_pool":
        assert torch.equal(maps["p6"], maps["p5"][..., ::2, ::2]) and torch.equal(maps["p7"], maps["p6"][..., ::2, ::2])
        assert not list(encoder.coarser.parameters())
        return
    p6, p7 = (
        lambda values, layer=layer: F.conv2d(values, layer.weight, layer.bias, stride=2, padding=1)
        for layer in encoder.coarser
    )
    source = seen[0] if coarse == "c5" else maps["p5"]
    assert torch.allclose(maps["p6"], p6(source), atol=1e-5)
    assert torch.allclose(maps["p7"], p7(p6(source).relu()), atol=1e-5)
    assert not torch.allclose(maps["p7"], p7(p6(source)), atol=1e-3), "the ReLU must matter here"


def test_what_does_not_fit_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"LabelMapEncoder.*Use 'LabelEncoder'"):
        build_model(distilling_cfg("conditional"))
    with pytest.raises(ConfigError, match=r"TEACHER.WEIGHTS names .*missing.pth"):
        build_model(distilling_cfg("retinanet", "missing.pth"))
    file = tmp_path / "plain.pth"
    torch.save({"model": {"head.weight": torch.zeros(1)}}, file)
    with pytest.raises(CheckpointError, match=r"no weights under 'teacher.'"):
        build_model(distilling_cfg("retinanet", str(file)))
    cfg = distilling_cfg("retinanet")
    torch.save({"model": build_model(cfg).state_dict()}, file)
    cfg.MODEL.DISTILL.TEACHER.WEIGHTS, cfg.MODEL.DISTILL.LABEL_MAP_ENCODER.WIDTH = str(file), 4
    with pytest.raises(CheckpointError, match="of another shape"):
        build_model(cfg)
