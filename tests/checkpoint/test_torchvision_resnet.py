"""torchvision's ResNets in detectron2's backbone give torchvision's features."""

from detr_distill.checkpoint import SafeCheckpointer
from detr_distill.checkpoint.torchvision_resnet import rename_parameter, rename_resnet, weights_url
from detr_distill.errors import CheckpointError

import pytest
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from torch import nn


def torchvision_model(depth):
    """Every parameter and statistic random, so that no two layers are alike."""
    torch.manual_seed(depth)
    model = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    for name, value in model.state_dict().items():
        if "bn" in name or "downsample.1" in name:
            value.copy_(torch.rand_like(value.float()) * 0.5 + 0.5)
    return model


def detectron2_backbone(depth, norm="FrozenBN"):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    return build_backbone(cfg).eval()


@pytest.mark.parametrize(("depth", "norm"), [(18, "FrozenBN"), (18, "BN"), (50, "FrozenBN")])
@torch.no_grad()
def test_features_agree(tmp_path, monkeypatch, depth, norm):
    source = torchvision_model(depth)
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    monkeypatch.setattr("detr_distill.checkpoint.checkpointer.local_file", lambda address: path)
    model = nn.ModuleDict({"backbone": detectron2_backbone(depth, norm)})
    SafeCheckpointer(model).load(f"torchvision://resnet{depth}")
    images = torch.randn(2, 3, 64, 96)
    values = source.maxpool(source.relu(source.bn1(source.conv1(images))))
    found = model["backbone"](images)
    for stage in range(1, 5):
        values = getattr(source, f"layer{stage}")(values)
        scale = values.abs().max()
        torch.testing.assert_close(found[f"res{stage + 1}"] / scale, values / scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize("depth", [34, 101])
def test_every_tensor_has_a_place(depth):
    with torch.device("meta"):
        source = getattr(torchvision.models, f"resnet{depth}")(weights=None).state_dict()
    renamed = rename_resnet(source)
    state = detectron2_backbone(depth).state_dict()
    assert {name for name in renamed if not name.endswith("num_batches_tracked")} == set(state)
    assert all(renamed[name].shape == value.shape for name, value in state.items())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.bn1.weight", "res2.0.conv1.norm.weight"),
        ("layer4.2.conv3.weight", "res5.2.conv3.weight"),
        ("layer2.0.downsample.0.weight", "res3.0.shortcut.weight"),
        ("layer2.0.downsample.1.bias", "res3.0.shortcut.norm.bias"),
    ],
)
def test_names(old, new):
    assert rename_parameter(old) == new


def test_addresses():
    assert weights_url("torchvision://resnet50").endswith("resnet50-0676ba61.pth")
    assert weights_url("torchvision://resnet50/IMAGENET1K_V2") != weights_url("torchvision://resnet50")
    with pytest.raises(CheckpointError, match=r"resnet18, .*resnet50"):
        weights_url("torchvision://resnet51")
    with pytest.raises(CheckpointError, match="resnet18 has IMAGENET1K_V1, not V9"):
        weights_url("torchvision://resnet18/V9")
