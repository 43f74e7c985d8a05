"""Which maps the losses on maps read of either side: levels of the neck, and by name an encoder's output."""

from __future__ import annotations

from detr_distill.distill.losses import FeatureLoss, FocalGlobalLoss, MaskedGenerationLoss
from detr_distill.distill.students.base import student_of
from detr_distill.distill.teachers import NoTeacher
from detr_distill.errors import ConfigError

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import small_cfg
from helpers.detr.deformable_detectors import PLAIN

ON_MAPS = [FeatureLoss, FocalGlobalLoss, MaskedGenerationLoss]
OTHER_WIDTH = {**PLAIN, "MODEL__DETR__HIDDEN_DIM": 64, "MODEL__DETR__NUM_LEVELS": 2}


def keys_of(loss, **keys):
    """Those of a distiller that compares maps alone; ``keys`` are of the loss."""
    overrides = {"MODEL__DISTILL__LOSSES": [loss.__name__], "MODEL__DISTILL__MATCHERS": []}
    node = loss.node.replace(".", "__")
    return overrides | {f"{node}__{name}": value for name, value in keys.items()}


def distillation(losses):
    found = {name: value for name, value in losses.items() if "distill" in name}
    assert found and all(value.isfinite() and value > 0 for value in found.values())
    return sum(found.values())


def gradients(module):
    return [p.grad for p in module.parameters() if p.grad is not None and p.grad.any()]


@pytest.mark.parametrize("loss", ON_MAPS)
def test_an_encoders_output_teaches_the_encoder(loss, build_distiller, wide_teacher, inputs):
    model = build_distiller(wide_teacher, keys_of(loss, IN_FEATURES=["memory0"]))
    encoder = list(model.student.encoder.parameters())
    optimizer, values = torch.optim.Adam(encoder, lr=1e-3), []
    for _ in range(2):
        torch.manual_seed(0)
        values.append(distillation(model(inputs)))
        model.zero_grad()
        values[-1].backward()
        assert len(gradients(model.student.encoder)) == len(encoder) > 0
        assert gradients(model.student.backbone) and not gradients(model.student.decoder)
        optimizer.step()
    assert values[1] < values[0], "a step of the encoder alone brings its output nearer to the teacher's"


@pytest.mark.parametrize("loss", ON_MAPS)
def test_by_default_the_necks_levels_alone_are_read(loss, build_distiller, wide_teacher, inputs):
    model = build_distiller(wide_teacher, keys_of(loss))
    assert [(pair.name, pair.teacher_name) for pair in model.losses[loss.__name__].pairs] == [("level0", "level0")]
    distillation(model(inputs)).backward()
    assert gradients(model.student.input_projection) and not gradients(model.student.encoder)


@pytest.mark.parametrize("loss", ON_MAPS)
def test_levels_of_an_encoder_can_be_paired_at_will(loss, build_distiller, save_teacher, inputs):
    """Of two and three levels, and with a level of the neck."""
    names = {"IN_FEATURES": ["memory2", "memory0", "level1"], "TEACHER_FEATURES": ["memory1", "level0", "memory0"]}
    model = build_distiller(PLAIN, save_teacher(**OTHER_WIDTH), keys_of(loss, **names))
    pairs = [(pair.name, pair.teacher_name) for pair in model.losses[loss.__name__].pairs]
    assert pairs == [("memory2", "memory1"), ("memory0", "level0"), ("level1", "memory0")]
    distillation(model(inputs)).backward()
    assert gradients(model.student.encoder)


def test_memory_maps_are_the_encoders_output(build_distiller, equal_teacher, inputs):
    keys = keys_of(FeatureLoss, IN_FEATURES=["memory0"], ADAPTER_LAYERS=0, NORM="none")
    model, seen = build_distiller(equal_teacher, keys), []
    model.losses["FeatureLoss"].register_forward_hook(lambda module, args, found: seen.append((*args[:2], found)))
    model(inputs)
    student, known, found = seen[0]
    expected = (student.memory.tokens - known.memory.tokens).square().mean()
    assert found["loss_distill_feature"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert not torch.equal(student.maps["memory0"], student.maps["level0"])


def test_an_encoder_that_a_side_lacks_is_named(build_distiller, save_teacher):
    keys = keys_of(FeatureLoss, IN_FEATURES=["memory1"])
    with pytest.raises(ConfigError, match=r"names \['memory1'\]; the student has \['level0', 'memory0'\]"):
        build_distiller(save_teacher(**OTHER_WIDTH), keys)
    with pytest.raises(ConfigError, match=r"names \['memory1'\]; the teacher has \['level0', 'memory0'\]"):
        build_distiller(PLAIN, save_teacher(), keys)


@pytest.mark.parametrize("loss", ON_MAPS)
def test_a_teacher_without_maps_is_asked_before_one_is_looked_for(loss):
    message = f"{loss.__name__} asks for feature maps, which the teacher's NoTeacher does not have. Remove"
    with pytest.raises(ConfigError, match=message):
        loss(small_cfg(), student_of(build_model(small_cfg())), NoTeacher())
