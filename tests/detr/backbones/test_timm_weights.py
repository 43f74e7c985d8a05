"""Where the weights of timm's and torchvision's networks come from: files of either kind, downloads, a checkpoint."""

from __future__ import annotations

import logging

from detr_distill.detr.backbones.timm import TimmBackbone
from detr_distill.detr.backbones.torchvision import TorchvisionBackbone
from detr_distill.errors import CheckpointError

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from detectron2.modeling import build_model
from helpers.builders import randomise
from helpers.detr.small_networks import SMALL, SWIN, detector_cfg, random_weights


def test_weights_come_from_a_file_of_either_kind(tmp_path):
    source = randomise(timm.create_model(SMALL))
    torch.save({"model": source.state_dict()}, tmp_path / "weights.pth")
    safetensors.torch.save_file(source.state_dict(), tmp_path / "weights.safetensors")
    for file in tmp_path.iterdir():
        ours = TimmBackbone(name=SMALL, out_features=["stage4"], pretrained=str(file)).state_dict()
        assert torch.equal(ours["network.layer4.0.conv1.weight"], source.layer4[0].conv1.weight)
        assert torch.equal(ours["network.bn1.running_var"], source.bn1.running_var)


def test_swins_original_names_are_understood(tmp_path):
    """The authors' files merge patches at the end of a stage, timm at the start of the next."""
    weights = timm.create_model(SWIN).state_dict()
    original = {}
    for name, value in weights.items():
        stage = name.split(".")[1]
        name = (
            name.replace(f"layers.{stage}.downsample", f"layers.{int(stage) - 1}.downsample")
            if "down" in name
            else name
        )
        original[name.replace("head.fc", "head")] = value
    torch.save({"model": original}, tmp_path / "swin.pth")
    ours = TimmBackbone(name=SWIN, out_features=["stage2"], pretrained=str(tmp_path / "swin.pth"))
    key = "layers.1.downsample.reduction.weight"
    assert torch.equal(ours.network.state_dict()[key], weights[key])


@pytest.mark.parametrize("backbone", [TimmBackbone, TorchvisionBackbone])
def test_weights_of_another_network_are_refused(backbone, tmp_path):
    weights = {"bn1.weight": torch.ones(64)}
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"PRETRAINED .*weights.pth does not fit.*\n.*conv1.weight"):
        backbone(name="resnet18", out_features=["stage1"], pretrained=str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("library", ["Timm", "Torchvision"])
def test_a_detectors_checkpoint_replaces_the_classifiers(library, tmp_path):
    cfg = detector_cfg(MODEL__BACKBONE__NAME=f"{library}Backbone", MODEL__TORCHVISION__NAME="resnet18")
    cfg.MODEL[library.upper()].PRETRAINED = str(tmp_path / "absent.pth")
    with pytest.raises(
        CheckpointError, match=f"MODEL.{library.upper()}.PRETRAINED .*absent.pth: there is no such file"
    ):
        build_model(cfg)
    cfg.MODEL.WEIGHTS = "detector.pth"
    build_model(cfg)


def test_download_says_what_to_do_without_internet(monkeypatch):
    def refuse(*_arguments, **_options):
        raise OSError("no route")

    monkeypatch.setattr(timm.models, "load_state_dict_from_hf", refuse)
    with pytest.raises(
        CheckpointError, match=r"(?s)timm/resnet18.a1_in1k cannot be fetched.*no route.*MODEL.TIMM.PRET"
    ):
        TimmBackbone(name="resnet18", out_features=["stage1"], pretrained="download")


def test_download_takes_torchvisions_first_weights(monkeypatch, tmp_path):
    """Those of DETR; ``local_file`` finds, fetches or explains them as it does for MODEL.WEIGHTS."""
    file, asked = random_weights(tmp_path / "resnet18.pth", torchvision.models.resnet18()), []
    monkeypatch.setattr(
        "detr_distill.detr.backbones.torchvision.local_file", lambda *arguments: asked.append(arguments) or file
    )
    TorchvisionBackbone(name="resnet18", out_features=["stage1"], pretrained="download")
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    assert asked == [(weights.url, "MODEL.TORCHVISION.PRETRAINED")]


@pytest.mark.parametrize(("order", "warnings"), [("RGB", 0), ("BGR", 1)])
def test_other_colours_than_the_classifier_saw_are_told(order, warnings, tmp_path, caplog):
    file = random_weights(tmp_path / "weights.pth", timm.create_model(SMALL))
    cfg = detector_cfg(f"{SMALL}.r160_in1k", INPUT__FORMAT=order, MODEL__TIMM__PRETRAINED=file)
    settings = timm.get_pretrained_cfg(SMALL)
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = ([255 * x for x in v] for v in (settings.mean, settings.std))
    with caplog.at_level(logging.WARNING):
        build_model(cfg)
    assert len([r for r in caplog.records if "saw images with INPUT.FORMAT RGB" in r.message]) == warnings
