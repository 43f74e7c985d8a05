"""ImageNet weights under another library's names are read in their order, where that can be believed."""

from __future__ import annotations

from detr_distill.detr.backbones.in_order import rename_in_order
from detr_distill.detr.backbones.timm import TimmBackbone
from detr_distill.errors import CheckpointError

import cv2
import pytest
import timm
import torch
from helpers.builders import randomise
from helpers.imagenet import imagenet_file
from sklearn.datasets import load_sample_images

NETWORK = "test_efficientnet"
PALACE = 698  # ImageNet's class


def renamed(weights: dict) -> dict:
    """The same tensors under names as another library might give them."""
    return {f"_layer{number}.{name.rpartition('.')[2]}": value for number, (name, value) in enumerate(weights.items())}


@pytest.mark.parametrize("counters", [True, False])
def test_tensors_are_paired_in_their_order(tmp_path, counters):
    source = randomise(timm.create_model(NETWORK))
    weights = {name: value for name, value in source.state_dict().items() if counters or "num_batches" not in name}
    torch.save(renamed(weights), tmp_path / "other.pth")
    ours = TimmBackbone(name=NETWORK, out_features=["stage4"], pretrained=str(tmp_path / "other.pth")).state_dict()
    assert torch.equal(ours["network.conv_stem.weight"], source.conv_stem.weight)
    assert torch.equal(ours["network.blocks.3.0.bn1.running_var"], source.state_dict()["blocks.3.0.bn1.running_var"])


@pytest.mark.parametrize("fault", ["shape", "kind", "fewer", "more"])
def test_what_only_looks_alike_is_refused(tmp_path, fault):
    weights = renamed(timm.create_model(NETWORK).state_dict())
    first, second = list(weights)[:2]
    if fault == "shape":
        weights[first] = torch.zeros(1)
    elif fault == "kind":  # a mean where the network has a weight, of the same shape
        weights = {name.replace(second, "_layer1.running_mean"): value for name, value in weights.items()}
    elif fault == "fewer":
        del weights[list(weights)[-4]]  # the last variance, before its counter and the classifier
    else:
        weights["_layer.more.weight"] = torch.zeros(1)
    assert rename_in_order(weights, timm.create_model(NETWORK, num_classes=0)) is weights
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth does not fit MODEL\.TIMM\.NAME"):
        TimmBackbone(name=NETWORK, out_features=["stage4"], pretrained=str(tmp_path / "other.pth"))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
def test_the_packages_weights_know_a_photo(name):
    """scikit-learn's photo of the Summer Palace."""
    weights = torch.load(imagenet_file(name), map_location="cpu", weights_only=True)
    network = timm.create_model(name).eval()
    trunk = rename_in_order(weights, timm.create_model(name, num_classes=0))
    head = {f"classifier.{kind}": weights[f"_fc.{kind}"] for kind in ("weight", "bias")}
    missing, unexpected = network.load_state_dict({**trunk, **head}, strict=False)
    assert not unexpected and all("num_batches" in key for key in missing)
    photo = load_sample_images().images[0][:, 106:533]
    photo = cv2.resize(photo, (240, 240), interpolation=cv2.INTER_AREA)
    image = (torch.from_numpy(photo).permute(2, 0, 1)[None].float() - 127) / 128
    with torch.no_grad():
        assert network(image).argmax() == PALACE


def test_the_packages_mobilenet_is_read(caplog):
    file = imagenet_file("mobilenetv2_100")
    with caplog.at_level("INFO"):
        TimmBackbone(name="mobilenetv2_100", out_features=["stage4"], pretrained=str(file))
    assert "260 tensors are taken in their order" in caplog.text
