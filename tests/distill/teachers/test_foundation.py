"""A network of timm as a teacher: its map is the library's own, on the student's images at another size."""

from __future__ import annotations

from unittest import mock

from detr_distill.engine import build_config
from detr_distill.errors import CheckpointError, ConfigError

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from helpers.builders import ROOT, make_inputs, randomise, small_cfg
from helpers.imagenet import imagenet_file
from helpers.make_golden import NO_DOWNLOAD

timm = pytest.importorskip("timm")
NETWORK = "test_vit"
LOSS = {
    "IN_FEATURES": ["memory0"],
    "TEACHER_FEATURES": ["foundation"],
    "DIVERGENCE": "cosine",
    "NORM": "none",
    "ADAPTER_LAYERS": 1,
    "ADAPTER_KERNEL": 1,
}


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A small ViT with random weights, and their file."""
    network = randomise(timm.create_model(NETWORK, num_classes=0, dynamic_img_size=True), 1, 0.05).eval()
    file = tmp_path_factory.mktemp("vit") / "weights.pth"
    torch.save(network.state_dict(), file)
    return network, file


def build(weights, **keys):
    cfg = small_cfg(
        MODEL__META_ARCHITECTURE="DistillDetector",
        MODEL__DISTILL__TEACHER__NAME="FoundationModel",
        MODEL__DISTILL__TEACHER__WEIGHTS=str(weights),
        MODEL__DISTILL__MATCHERS=[],
        MODEL__DISTILL__LOSSES=["FeatureLoss"],
        **{f"MODEL__DISTILL__FEATURE_LOSS__{key}": value for key, value in LOSS.items()},
        **{"MODEL__DISTILL__FOUNDATION_MODEL__NETWORK": NETWORK, **keys},
    )
    model = build_model(cfg).train()
    randomise(model.student, 2)
    return model


def patch_map(network, images):
    """(B, C, height / 16, width / 16) of timm's own forward pass."""
    tokens = network.forward_features(images)[:, network.num_prefix_tokens :]
    size = [pixels // 16 for pixels in images.shape[-2:]]
    return tokens.transpose(1, 2).unflatten(2, size)


@pytest.mark.parametrize(("scale", "size"), [(1.0, (48, 64)), (0.5, (32, 32)), (2.0, (96, 112))])
def test_the_map_is_the_librarys(scale, size, vit):
    network, file = vit
    model = build(file, MODEL__DISTILL__FOUNDATION_MODEL__SCALE=scale, INPUT__FORMAT="BGR")
    inputs, seen = make_inputs(), {}
    model.teacher.register_forward_hook(lambda _, given, knowledge: seen.update(knowledge=knowledge, step=given[0]))
    model(inputs, iteration=0)
    images = torch.zeros(2, 3, *seen["step"].image_size)
    for place, entry in zip(images, inputs, strict=True):
        rgb = entry["image"].float().flip(0) / 255
        place[:, : rgb.shape[1], : rgb.shape[2]] = (rgb - 0.5) / 0.5
    expected = patch_map(network, F.interpolate(images, size, mode="bilinear", antialias=True))
    assert torch.allclose(seen["knowledge"].features["foundation"], expected, atol=1e-4)
    assert expected.std() > 0.1


def test_a_student_learns_from_it_and_keeps_nothing_of_it(vit):
    model = build(vit[1])
    losses = model(make_inputs(), iteration=0)
    assert 0 < losses["loss_distill_feature"] < 2
    losses["loss_distill_feature"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.losses.parameters())
    assert any(parameter.grad is not None for parameter in model.student.backbone.parameters())
    assert not [name for name, _ in model.named_parameters() if "blocks" in name]
    assert not [name for name in model.state_dict() if "blocks" in name]


def test_an_earlier_block_of_another_kind_of_network(vit):
    model = build(vit[1], MODEL__DISTILL__FOUNDATION_MODEL__OUT_FEATURE="stage2")
    assert model.teacher.feature_channels == {"foundation": 64} and model(make_inputs(), iteration=0)


def test_the_recipe_builds(vit):
    words = ["MODEL.DISTILL.TEACHER.WEIGHTS", str(vit[1]), "MODEL.DISTILL.FOUNDATION_MODEL.NETWORK", NETWORK]
    file = ROOT / "configs/transformers/rtdetr_v2_r18_foundation.yaml"
    undrawn = {draw: lambda values, *_arguments, **_keys: values for draw in ("uniform_", "normal_")}
    with mock.patch.multiple(torch.Tensor, **undrawn):
        model = build_model(build_config(str(file), ["MODEL.DEVICE", "cpu", *words, *NO_DOWNLOAD]))
    (pair,) = model.losses["FeatureLoss"].pairs
    assert (pair.name, pair.channels, pair.teacher_channels) == ("memory2", 256, 64)
    assert model.balance is not None


def test_weights_of_a_package():
    file = imagenet_file("tf_efficientnet_lite2")
    keys = {"NETWORK": "tf_efficientnet_lite2", "OUT_FEATURE": "stage4"}
    keys = {f"MODEL__DISTILL__FOUNDATION_MODEL__{key}": value for key, value in keys.items()}
    losses = build(file, **keys)(make_inputs(), iteration=0)
    assert 0 < losses["loss_distill_feature"] < 2


@pytest.mark.parametrize(
    ("weights", "keys", "error", "words"),
    [
        ("", {}, ConfigError, "WEIGHTS is empty; FoundationModel takes the weights of test_vit"),
        ("absent.pth", {}, ConfigError, "TEACHER.WEIGHTS.*absent.pth"),
        (None, {"NETWORK": "test_vitt"}, ConfigError, r"FOUNDATION_MODEL.NETWORK.*test_vitt is not a model.*test_vit"),
        (None, {"NETWORK": "test_resnet"}, CheckpointError, r"FOUNDATION_MODEL.NETWORK[\s\S]*does not fit"),
        (None, {"OUT_FEATURE": "stage9"}, ConfigError, r"FOUNDATION_MODEL.*OUT_FEATURES is \['stage9'\]"),
        (None, {"SCALE": 0.0}, ConfigError, r"FOUNDATION_MODEL.SCALE"),
    ],
)
def test_bad_settings_are_named(weights, keys, error, words, vit):
    keys = {f"MODEL__DISTILL__FOUNDATION_MODEL__{key}": value for key, value in keys.items()}
    with pytest.raises(error, match=words):
        build(vit[1] if weights is None else weights, **keys)
