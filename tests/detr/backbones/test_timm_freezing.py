"""Which parts of timm's and torchvision's networks are frozen, and what drops out of those that are not."""

from __future__ import annotations

from detr_distill.detr.backbones.timm import TimmBackbone
from detr_distill.detr.backbones.torchvision import TorchvisionBackbone

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from helpers.detr.small_networks import SMALL, STAGES, SWIN, picture
from torch import nn


def test_frozen_parts_get_no_gradient_and_never_move():
    """Batch normalisation of the stem and stage1 stays, that of stage2 moves: FREEZE_AT counts as detectron2 does."""
    for ours in (
        TimmBackbone(name=SMALL, out_features=["stage2"], freeze_at=2, frozen_norm=False),
        TorchvisionBackbone(name="resnet18", out_features=["stage2"], freeze_at=2, frozen_norm=False),
    ):
        before = {key: value.clone() for key, value in ours.train().state_dict().items()}
        ours(picture())["stage2"].sum().backward()
        frozen = tuple(f"network.{part}." for part in ("conv1", "bn1", "layer1"))
        for name, parameter in ours.named_parameters():
            assert (parameter.grad is None) == name.startswith(frozen), name
        moved = {key for key, value in ours.state_dict().items() if not torch.equal(value, before[key])}
        norms = {key for key in moved if key.startswith("network.layer2.") and ".bn" in key}
        assert moved and all("downsample" in key for key in moved - norms)


@pytest.mark.parametrize("freeze_at", range(6))
def test_stages_are_frozen_one_by_one(freeze_at):
    ours = TimmBackbone(name="test_convnext", out_features=STAGES, freeze_at=freeze_at).train()
    parts = ["stem", *(f"stages.{n}" for n in range(4))]
    for index, part in enumerate(parts):
        module = ours.network.get_submodule(part)
        frozen = index < freeze_at
        assert all(p.requires_grad != frozen for p in module.parameters()), part
        assert all(m.training != frozen for m in module.modules()), part
    assert ours.training and all(not m.training for m in ours.eval().modules())


def test_frozen_norm_leaves_no_statistics_and_other_norms_alone():
    ours = TimmBackbone(name="test_efficientnet", out_features=["stage4"]).train()
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    ours(picture())["stage4"].sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())
    assert not [m for m in ours.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not [name for name, _ in ours.named_parameters() if ".bn" in name]
    norms = [m for m in TimmBackbone(name=SWIN, out_features=["stage1"]).modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 5 and all(m.weight.requires_grad for m in norms)
    # What detectron2's detectors do to a backbone changes nothing more.
    converted = FrozenBatchNorm2d.convert_frozen_batchnorm(ours).eval()
    assert torch.equal(converted(picture())["stage4"], ours.eval()(picture())["stage4"])


def test_stochastic_depth_is_asked_for_and_ends_at_frozen_parts():
    def twice(**options):
        ours = TimmBackbone(name=SWIN, out_features=["stage1", "stage4"], **options).train()
        images = picture().repeat(16, 1, 1, 1)
        return [ours(images) for _ in range(2)]

    torch.manual_seed(0)
    first, second = twice()  # timm's own default is 0.1
    assert torch.equal(first["stage4"], second["stage4"])
    first, second = twice(drop_path=0.6, freeze_at=3)
    assert torch.equal(first["stage1"], second["stage1"]) and not torch.equal(first["stage4"], second["stage4"])
