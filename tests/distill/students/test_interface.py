"""A detector of one's own becomes a student by one class, which says how it runs in two halves."""

from __future__ import annotations

import dataclasses
import inspect
from typing import ClassVar

import detr_distill.distill.students as students
from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.distill.students import Student, StudentOutput, StudentStep, student_for, student_of
from detr_distill.errors import ConfigError

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from helpers.builders import make_inputs, small_cfg
from helpers.distill.student_steps import whole_step
from helpers.registrations import forgotten_afterwards
from torch import nn

SIZES = ((64, 64), (64, 64))


class CountingNet(nn.Module):
    """Says for each class how many objects an image has, from a map of 16 channels and stride 8."""

    def __init__(self, cfg):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), nn.ReLU())
        self.head = nn.Linear(16, cfg.MODEL.DETR.NUM_CLASSES)

    def maps(self, batched_inputs):
        return self.body(torch.stack([entry["image"] / 255 for entry in batched_inputs]))

    def counts(self, maps):
        return self.head(maps.mean((-2, -1))).exp()

    def forward(self, batched_inputs):
        return self.counts(self.maps(batched_inputs))


class CountingStudent(Student):
    """Runs a :class:`CountingNet`."""

    @property
    def num_classes(self):
        return self.detector.head.out_features

    @property
    def feature_channels(self):
        return {"grid": self.detector.head.in_features}

    def start(self, batched_inputs):
        height, width = batched_inputs[0]["image"].shape[-2:]
        return StudentStep(batched_inputs, {"grid": self.detector.maps(batched_inputs)}, (height, width))

    def finish(self, step, groups, capture, matchings, features=None):
        read = step.features if features is None else features
        counts = self.detector.counts(read["grid"])
        goal = F.one_hot(step.ground_truth.labels, self.num_classes) * step.ground_truth.valid.unsqueeze(-1)
        loss = F.poisson_nll_loss(counts, goal.sum(1), log_input=False)
        return StudentOutput(read, losses=lambda: {"loss_count": loss}, step=step)

    def select(self, context, images):
        return context


@pytest.fixture(autouse=True)
def registered():
    with forgotten_afterwards():
        META_ARCH_REGISTRY.register(CountingNet)
        yield student_for(CountingNet)(CountingStudent)


@pytest.fixture
def taught_cfg(equal_teacher):
    """A frozen DETR teaches the maps of a detector."""

    def make(architecture: str, **keys):
        settings = {
            "STUDENT_ARCHITECTURE": architecture, "MATCHERS": [], "LOSSES": ["FeatureLoss"],
            "FEATURE_LOSS__IN_FEATURES": ["grid"], "FEATURE_LOSS__TEACHER_FEATURES": ["level0"],
        } | keys  # fmt: skip
        return small_cfg(**equal_teacher, **{f"MODEL__DISTILL__{key}": value for key, value in settings.items()})

    return make


def test_it_takes_thirty_lines():
    assert len(inspect.getsource(CountingStudent).splitlines()) <= 30


def test_it_learns_from_a_detr(taught_cfg):
    torch.manual_seed(0)
    model = build_model(taught_cfg("CountingNet")).train()
    inputs = make_inputs(sizes=SIZES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for _ in range(30):
        losses = model(inputs)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    assert set(history[0]) == {"loss_count", "loss_distill_feature"}
    assert history[-1]["loss_distill_feature"] < 0.7 * history[0]["loss_distill_feature"]
    assert history[-1]["loss_count"] < history[0]["loss_count"]
    assert all(parameter.grad is None for parameter in model.teacher.detector.parameters())


def test_the_teacher_reaches_its_maps_and_nothing_else(taught_cfg):
    model = build_model(taught_cfg("CountingNet")).train()
    model(make_inputs(sizes=SIZES))["loss_distill_feature"].backward()
    assert model.student.body[0].weight.grad.abs().sum() > 0 and model.student.head.weight.grad is None


def test_a_label_encoder_runs_its_head(taught_cfg):
    """On a part of the images and on maps that are not its own."""
    keys = {"TEACHER__NAME": "LabelEncoder", "LABEL_ENCODER__HEAD_SHARE": 0.5, "FEATURE_LOSS__TEACHER_FEATURES": []}
    cfg = taught_cfg("CountingNet", **keys)
    cfg.MODEL.DISTILL.TEACHER.CONFIG_FILE = cfg.MODEL.DISTILL.TEACHER.WEIGHTS = ""
    losses = build_model(cfg).train()(make_inputs(sizes=SIZES), iteration=0)
    assert set(losses) == {"loss_count", "loss_count_teacher", "loss_distill_feature"}
    assert losses["loss_count"] != losses["loss_count_teacher"]


def test_it_stays_as_it_is(taught_cfg):
    """At inference the detector's own forward runs, and its weights keep their names."""
    model = build_model(taught_cfg("CountingNet")).eval()
    inputs = make_inputs(sizes=SIZES, labels=False)
    assert type(model.student) is CountingNet and torch.equal(model(inputs), model.student(inputs))
    own = {name.removeprefix("student.") for name in model.state_dict() if name.startswith("student.")}
    assert own == {"body.0.weight", "body.0.bias", "head.weight", "head.bias"}


def test_it_may_teach_its_maps():
    """As a frozen teacher, since its maps are all that is known of it."""
    detector = CountingNet(small_cfg())
    inputs = make_inputs(sizes=SIZES)
    knowledge = student_of(detector).know(StudentStep(inputs), None, frozenset())
    assert torch.equal(knowledge.features["grid"], detector.maps(inputs)) and knowledge.output is None


def test_it_teaches_from_its_files(taught_cfg, tmp_path):
    """Another of its kind, frozen: nothing of a backbone is asked of it."""
    teacher_cfg = small_cfg(MODEL__META_ARCHITECTURE="CountingNet")
    torch.save({"model": build_model(teacher_cfg).state_dict()}, tmp_path / "teacher.pth")
    (tmp_path / "teacher.yaml").write_text(teacher_cfg.dump())
    cfg = taught_cfg("CountingNet", FEATURE_LOSS__TEACHER_FEATURES=["grid"])
    cfg.MODEL.DISTILL.TEACHER.CONFIG_FILE = str(tmp_path / "teacher.yaml")
    cfg.MODEL.DISTILL.TEACHER.WEIGHTS = str(tmp_path / "teacher.pth")
    assert build_model(cfg).train()(make_inputs(sizes=SIZES))["loss_distill_feature"] > 0


def test_a_step_that_it_leaves_out_is_known_all_the_same(taught_cfg):
    """The iteration, by which a schedule goes, and the objects."""

    class ForgetfulStudent(CountingStudent):
        def finish(self, *arguments, **keys):
            return dataclasses.replace(super().finish(*arguments, **keys), step=None)

    student_for(CountingNet)(ForgetfulStudent)
    keys = {"SCHEDULE__STEPS": [1], "SCHEDULE__FACTORS": [0.5], "FEATURE_LOSS__FOREGROUND": True}
    model = build_model(taught_cfg("CountingNet", **keys)).train()
    first, second = (model(make_inputs(sizes=SIZES), iteration=n)["loss_distill_feature"] for n in (0, 1))
    assert torch.allclose(second, 0.5 * first) and first > 0


def test_a_detector_without_a_student_is_refused(taught_cfg):
    @META_ARCH_REGISTRY.register()
    class StrangeNet(nn.Module):
        def __init__(self, cfg):
            super().__init__()

    wanted = (
        "^MODEL.DISTILL.STUDENT_ARCHITECTURE: StrangeNet cannot be a student here, no Student is registered for it. "
        r"Known, .*CountingNet, DenseDetector, DetrDetector, .*register it with student_for\(\)"
    )
    with pytest.raises(ConfigError, match=wanted):
        build_model(taught_cfg("StrangeNet"))


def test_a_subclass_is_run_as_its_author_wrote_it(taught_cfg):
    """One that changes parts is a student, too; one that changes forward() is refused until it has a Student."""

    @META_ARCH_REGISTRY.register()
    class WideNet(CountingNet):
        def counts(self, maps):
            return 2 * super().counts(maps)

    assert build_model(taught_cfg("WideNet")).train()(make_inputs(sizes=SIZES))

    @META_ARCH_REGISTRY.register()
    class OtherNet(CountingNet):
        def forward(self, batched_inputs):
            return -super().forward(batched_inputs)

    with pytest.raises(ConfigError, match=r"OtherNet cannot be a student here, it overrides the forward\(\) of Count"):
        build_model(taught_cfg("OtherNet"))
    student_for(OtherNet)(CountingStudent)
    assert build_model(taught_cfg("OtherNet")).train()(make_inputs(sizes=SIZES))


def test_what_it_does_not_give_is_refused(taught_cfg):
    with pytest.raises(ConfigError, match="AdaptiveMatcher asks for predictions, which the student's CountingNet"):
        build_model(taught_cfg("CountingNet", MATCHERS=["AdaptiveMatcher"], LOSSES=["PredictionLoss"]))
    with pytest.raises(ConfigError, match="need DETR-type queries, found CountingNet"):
        build_model(taught_cfg("CountingNet", MATCHERS=["FixedMatcher"], LOSSES=["PredictionLoss"]))
    with pytest.raises(ConfigError, match=r"names \['p3'\]; the student has \['grid'\]"):
        build_model(taught_cfg("CountingNet", FEATURE_LOSS__IN_FEATURES=["p3"]))


def test_a_student_that_lacks_a_half_is_no_student():
    class HalfStudent(Student):
        num_classes = 5
        feature_channels: ClassVar[dict] = {}

    with pytest.raises(TypeError, match="abstract method"):
        HalfStudent(CountingNet(small_cfg()))
    with pytest.raises(
        ConfigError, match=r"HalfStudent does not define finish\(\), select\(\), start\(\); see .*Student"
    ):
        student_for(CountingNet)(HalfStudent)
    with pytest.raises(ConfigError, match=r"is no Student\. Let it inherit"):
        student_for(CountingNet)(CountingNet)


def test_both_halves_alone():
    """Without a teacher: the step keeps the ground truth that the losses read."""
    detector, inputs = CountingNet(small_cfg()), make_inputs(sizes=SIZES)
    step, output = whole_step(detector, inputs)
    assert step.ground_truth.counts == read_ground_truth(inputs, "cpu").counts == [2, 3]
    output.losses()["loss_count"].backward()
    assert detector.body[0].weight.grad.abs().sum() > 0


def test_earlier_functions_go_on_working_and_warn():
    detector, inputs = CountingNet(small_cfg()), make_inputs(sizes=SIZES)
    with pytest.warns(FutureWarning, match=r"start_student\(\) .* is now student_of\(detector\).start\(\)"):
        step = students.start_student(detector, inputs)
    assert torch.equal(step.features["grid"], detector.maps(inputs)) and step.image_size == (64, 64)
    with pytest.warns(FutureWarning, match=r"feature_channels\(\) .* is now student_of\(detector\).feature_channels"):
        assert students.feature_channels(detector) == {"grid": 16}
    with pytest.warns(FutureWarning, match=r"count_classes\(\) .* is now student_of\(detector\).num_classes"):
        assert students.count_classes(detector) == 5


def test_the_network_of_a_teacher_goes_on_working(build_distiller, equal_teacher):
    model = build_distiller(equal_teacher)
    with pytest.warns(FutureWarning, match=r"network_of\(\) .* is now teacher.detector"):
        assert students.network_of(model.teacher) is model.teacher.detector


EARLIER = [students.start_student, students.run_student, students.feature_channels, students.select_images]


@pytest.mark.parametrize("function", [*EARLIER, students.count_classes], ids=lambda function: function.__name__)
def test_a_function_for_a_detector_is_refused_in_words(function):
    """What was registered in five places is one class now."""
    with pytest.raises(ConfigError, match=r"^CountingNet is registered .* Write a Student .* student_for\(\)"):
        function.register(CountingNet)


@pytest.mark.parametrize("function", [students.run_student, students.select_images])
def test_what_no_longer_works_says_what_does(function):
    with pytest.raises(ConfigError, match="are methods now: write a Student"):
        function(CountingNet(small_cfg()), None, [], frozenset())
