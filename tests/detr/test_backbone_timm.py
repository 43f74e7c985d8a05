"""timm's and torchvision's networks: their own features, one set of weights under three libraries, what is frozen."""

from __future__ import annotations

import logging
import sys

from detr_distill.checkpoint.torchvision_resnet import rename_resnet
from detr_distill.detr.backbone_stages import grid_multiple
from detr_distill.detr.backbone_timm import TimmBackbone
from detr_distill.detr.backbone_torchvision import TorchvisionBackbone
from detr_distill.engine import build_optimizer
from detr_distill.errors import CheckpointError, ConfigError

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from builders import make_inputs, randomise, small_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.events import EventStorage
from distill.test_distiller import ReadCounter
from timm.models import swin_transformer
from torch import nn

STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN = "swin_small_test"
SMALL = "test_resnet"
# With activations inside the normalisation, without batch normalisation, channels last.
NETWORKS = [SMALL, "test_efficientnet", "test_convnext", SWIN]


def swin_small_test(pretrained=False, **options):
    """A registered Swin that is small enough to be built many times."""
    sizes = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 2), "window_size": 7}
    return swin_transformer._create_swin_transformer("swin_tiny_patch4_window7_224", pretrained, **sizes, **options)


swin_small_test.__module__ = swin_transformer.__name__
timm.models.register_model(swin_small_test)


def picture(height=64, width=96, channels=3):
    return torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0))


def random_weights(path, network):
    """Random weights of a classifier as a file."""
    torch.save(randomise(network).state_dict(), path)
    return str(path)


def assert_close(found, expected, tolerance):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def detector_cfg(name=SMALL, **keys):
    return small_cfg(
        **{
            "MODEL__BACKBONE__NAME": "TimmBackbone",
            "MODEL__BACKBONE__FREEZE_AT": 0,
            "MODEL__TIMM__NAME": name,
            "MODEL__DETR__IN_FEATURES": ["stage4"],
            **keys,
        }
    )


# ---- Numbers


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_features_are_timms_own(name, tmp_path):
    # As trained on larger images, where the windows of the last stage shift as well.
    options = {"img_size": 448, "strict_img_size": False} if name == SWIN else {}
    file = random_weights(tmp_path / "weights.pth", timm.create_model(name))
    ours = TimmBackbone(name=name, out_features=STAGES, pretrained=file).eval()
    stem = len(timm.create_model(SMALL).feature_info) - 4 if name in (SMALL, "test_efficientnet") else 0
    theirs = timm.create_model(
        name,
        features_only=True,
        out_indices=range(stem, stem + 4),
        pretrained=True,
        pretrained_cfg_overlay={"file": file},
        **options,
    ).eval()
    image = picture(60, 92) if name == SWIN else picture()  # no multiple of the window
    expected = [x.permute(0, 3, 1, 2) if name == SWIN else x for x in theirs(image)]
    found = ours(image)
    assert list(found) == STAGES
    for (key, feature), reference in zip(found.items(), expected, strict=True):
        assert_close(feature, reference, 1e-6)
        spec = ours.output_shape()[key]
        assert feature.shape == (1, spec.channels, -(-image.shape[2] // spec.stride), -(-image.shape[3] // spec.stride))
    assert [ours.output_shape()[key].stride for key in STAGES] == [4, 8, 16, 32]


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory):
    """Random weights of torchvision's ResNet-50 and a file of them."""
    source = torchvision.models.resnet50()
    file = random_weights(tmp_path_factory.mktemp("weights") / "resnet50.pth", source)
    return source.state_dict(), file


@pytest.mark.parametrize("stride", [32, 16])
@torch.no_grad()
def test_three_libraries_agree_on_a_resnet(stride, resnet50):
    """One file of torchvision's weights, plain and as DC5, whose weights are those of the plain network."""
    weights, file = resnet50
    cfg = small_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_detr_resnet_backbone"
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.RES5_DILATION = 32 // stride
    reference = build_backbone(cfg).eval()
    weights = rename_resnet(weights)
    reference.load_state_dict({key: weights[key] for key in reference.state_dict()})
    expected = reference(picture())
    for backbone in (TimmBackbone, TorchvisionBackbone):
        ours = backbone(name="resnet50", out_features=STAGES, output_stride=stride, pretrained=file).eval()
        found = ours(picture())
        for name, other in zip(STAGES, expected, strict=True):
            assert_close(found[name], expected[other], 1e-5)
            assert ours.output_shape()[name] == reference.output_shape()[other]
        assert ours.output_shape()["stage4"].stride == stride


# ---- Freezing


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
        assert moved and all(key.startswith("network.layer2.") and ".bn" in key or "downsample" in key for key in moved)


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


# ---- Image sizes


@pytest.mark.parametrize(
    ("name", "multiple"), [(SMALL, 1), ("resnet14t", 1), ("test_convnext", 32), ("densenet121", 32), (SWIN, 4)]
)
def test_no_pixel_is_cut_off(name, multiple):
    """At a multiple of ``size_divisibility`` the last row and column reach the features, one pixel less is one cell."""
    ours = TimmBackbone(name=name, out_features=["stage4"]).eval()
    assert ours.size_divisibility == multiple
    size = 32 + multiple if multiple < 32 else 64
    image = picture(size, size).requires_grad_()
    ours(image)["stage4"].square().sum().backward()
    assert image.grad[..., -1, :].abs().sum() > 0 and image.grad[..., :, -1].abs().sum() > 0
    assert ours(image)["stage4"].shape[-1] == -(-size // 32)


def test_networks_that_cut_would_lose_pixels_otherwise():
    ours = TimmBackbone(name="test_convnext", out_features=["stage4"]).eval()
    image = picture(64, 67).requires_grad_()
    ours(image)["stage4"].square().sum().backward()
    assert image.grad[..., 64:].abs().sum() == 0


def test_strides_before_a_patch_count():
    pool = nn.AvgPool2d(2)
    assert grid_multiple(nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), pool, pool), 32) == 4  # a module counts once
    assert grid_multiple(nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), pool, nn.MaxPool2d(2)), 32) == 8
    assert grid_multiple(nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), nn.AvgPool2d(2, ceil_mode=True)), 32) == 1


@torch.no_grad()
def test_a_detector_pads_and_masks_what_the_backbone_needs():
    model = build_model(detector_cfg(SWIN, MODEL__TIMM__OUT_FEATURES=["stage2"], MODEL__DETR__IN_FEATURES=["stage2"]))
    (inputs,) = make_inputs(sizes=((41, 58),), counts=(1,))
    images = model.preprocess([inputs])
    assert images.tensor.shape[-2:] == (44, 60)
    assert (~images.mask).sum() == 41 * 58 and not images.mask[0, :41, :58].any()
    memory = model.encode(model.backbone(images.tensor), images)
    assert memory.shapes == [(6, 8)] and not memory.mask.any()  # each cell begins inside of the image
    cfg = detector_cfg("test_convnext", MODEL__DETR__SIZE_DIVISIBILITY=48)
    assert build_model(cfg).size_divisibility == 96


# ---- In detectors


@pytest.mark.parametrize("name", [SWIN, SMALL])
def test_a_training_step_of_a_detector(name):
    """Every parameter is reached, the expression "backbone\\." finds the backbone's, and the device is not read."""
    levels = ["stage2", "stage3", "stage4"]
    cfg = detector_cfg(
        name,
        MODEL__TIMM__OUT_FEATURES=levels,
        MODEL__TIMM__OUTPUT_NORM=True,
        MODEL__TIMM__DROP_PATH=0.1,
        MODEL__DETR__HIDDEN_DIM=32,
        MODEL__DETR__IN_FEATURES=levels,
        MODEL__DETR__NUM_LEVELS=4,
        MODEL__DETR__NECK__NAME="MultiLevelNeck",
        MODEL__DETR__ENCODER__NAME="DeformableEncoder",
        MODEL__DETR__DECODER__NAME="DeformableDecoder",
        MODEL__DETR__QUERIES__NAME="LearnedContentQueries",
        SOLVER__LR_FACTORS=[["backbone\\.", 0.1]],
    )
    model = build_model(cfg).train()
    counter = ReadCounter()
    with counter:
        sum(model(make_inputs()).values()).backward()
    assert counter.reads == []
    assert not [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None]
    slow = [g for g in build_optimizer(cfg, model).param_groups if g["lr"] == pytest.approx(0.1 * cfg.SOLVER.BASE_LR)]
    backbone = {p for p in model.backbone.parameters() if p.requires_grad}
    assert {p for group in slow for p in group["params"]} == backbone
    assert (
        len(backbone) > 6 and {f"norms.{n}.weight" for n in range(3)} <= dict(model.backbone.named_parameters()).keys()
    )


def test_output_norm_normalises_the_channels():
    ours = TimmBackbone(name=SMALL, out_features=["stage2", "stage4"], output_norm=True)
    for feature in ours(picture()).values():
        assert torch.allclose(feature.mean(1), torch.zeros(()), atol=1e-5)
        assert torch.allclose(feature.var(1, unbiased=False), torch.ones(()), atol=1e-2)


def test_checkpointing_changes_no_gradient():
    plain = TimmBackbone(name="test_convnext", out_features=["stage4"])
    sparing = TimmBackbone(name="test_convnext", out_features=["stage4"], checkpointing=True)
    sparing.load_state_dict(plain.state_dict())
    assert any(getattr(m, "grad_checkpointing", False) for m in sparing.modules())
    for ours in (plain, sparing):
        ours.train()(picture())["stage4"].square().sum().backward()
    for first, second in zip(plain.parameters(), sparing.parameters(), strict=True):
        assert torch.allclose(first.grad, second.grad, atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "name", "features", "levels"),
    [
        ("GeneralizedRCNN", "build_timm_fpn_backbone", STAGES, ["p2", "p3", "p4", "p5", "p6"]),
        ("RetinaNet", "build_retinanet_timm_fpn_backbone", STAGES[1:], ["p3", "p4", "p5", "p6", "p7"]),
    ],
)
def test_detectron2s_detectors_train_on_a_pyramid(architecture, name, features, levels):
    cfg = small_cfg()
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.TIMM.NAME = SMALL
    cfg.MODEL.TIMM.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = features
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    cfg.MODEL.RETINANET.IN_FEATURES = cfg.MODEL.RPN.IN_FEATURES = levels
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = levels[:-1]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 3
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    model = build_model(cfg).train()
    assert list(model.backbone.output_shape()) == levels and model.backbone.size_divisibility == 32
    with EventStorage():
        losses = model(make_inputs())
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    trainable = {key: value for key, value in model.backbone.named_parameters() if value.requires_grad}
    assert not [key for key, value in trainable.items() if value.grad is None]
    assert not [key for key in trainable if key.startswith("bottom_up.network.layer1")]  # MODEL.BACKBONE.FREEZE_AT is 2


# ---- Weights


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
        "detr_distill.detr.backbone_torchvision.local_file", lambda *arguments: asked.append(arguments) or file
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


# ---- Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "swin_tiny"}, "MODEL.TIMM.NAME swin_tiny is not .* Near: swin_tiny_patch4_window7_224"),
        ({"name": "resnet50.foo"}, r"resnet50.foo is not .* Near: resnet50\.\w+"),
        ({"name": "xyzzy"}, "xyzzy is not a model of timm .* lists them all"),
        ({"out_features": ["res5"]}, r"MODEL.TIMM.OUT_FEATURES is \['res5'\]. Name one or more of stage1, stage2"),
        ({"out_features": []}, r"OUT_FEATURES is \[\]"),
        ({"output_stride": 4}, "MODEL.TIMM.OUTPUT_STRIDE is 4. Known: 32"),
        ({"name": SWIN, "output_stride": 16}, "OUTPUT_STRIDE 16 .*'output_stride'"),
        ({"name": "vgg11", "drop_path": 0.1}, "DROP_PATH 0.1 .*'drop_path_rate'"),
        ({"name": "maxvit_rmlp_pico_rw_256"}, "takes images of one size"),
        ({"freeze_at": 6}, "MODEL.BACKBONE.FREEZE_AT is 6, .* with 4 stages"),
        ({"name": "hrnet_w18_small", "freeze_at": 1}, "MODEL.BACKBONE.FREEZE_AT is 1"),
    ],
)
def test_what_timm_does_not_offer_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        TimmBackbone(**{"name": SMALL, "out_features": ["stage4"], **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet51"}, "MODEL.TORCHVISION.NAME resnet51 is not a ResNet of torchvision. Near: resnet50"),
        ({"output_stride": 16}, "resnet18 has no dilated form"),
        ({"output_stride": 64}, "MODEL.TORCHVISION.OUTPUT_STRIDE is 64"),
        ({"out_features": ["layer4"]}, "MODEL.TORCHVISION.OUT_FEATURES is"),
    ],
)
def test_what_torchvision_does_not_offer_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        TorchvisionBackbone(**{"name": "resnet18", "out_features": ["stage4"], **options})


def test_without_timm_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ConfigError, match="MODEL.BACKBONE.NAME asks for .* timm, which cannot be imported .*: pip install timm"
    ):
        build_model(detector_cfg())
