"""timm's networks as backbones: ResNets, ConvNeXt, Swin, EfficientNet and what else gives feature maps."""

from __future__ import annotations

import difflib
import importlib
import logging
import sys
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from ...checkpoint.files import read_checkpoint
from ...checkpoint.locate import local_file
from ...config.keys import key
from ...config.ranges import Range
from ...errors import CheckpointError, ConfigError
from .in_order import rename_in_order
from .stages import DOWNLOAD, OUTPUT_STRIDES, Stage, StagedBackbone, initial_state, load_complete

logger = logging.getLogger(__name__)

KEY = "MODEL.TIMM"
# What makes timm's networks of fixed image size take any size. Swin shifts its windows in every stage, however small
# the images of its classification training were (2103.14030, detection) [C].
ANY_SIZE: dict[str, dict[str, bool]] = {
    "swin_transformer": {"strict_img_size": False, "always_partition": True},
    "swin_transformer_v2": {"strict_img_size": False, "always_partition": True},
    "vision_transformer": {"dynamic_img_size": True},
    "eva": {"dynamic_img_size": True},
}


@runtime_checkable
class MapNetwork(Protocol):
    """What a network of timm that gives feature maps offers."""

    def forward_intermediates(self, x: Tensor, **options: Any) -> Any: ...
    def prune_intermediate_layers(self, indices: list[int], **options: Any) -> Any: ...


@BACKBONE_REGISTRY.register()
class TimmBackbone(StagedBackbone, node="MODEL.TIMM"):
    """A timm network; ``stage1`` is its first feature of stride 4 or more.

    Args:
        in_channels: of images. freeze_at: see :meth:`StagedBackbone.use`. last_norm: the network's own normalisation
            of its last features, which a classifier's head reads and detectors leave out.

    Attributes:
        name: timm's, with or without the tag of its weights ("resnet50", "resnet50.a1_in1k").
        out_features: names of the stages to return. frozen_norm: see :class:`StagedBackbone`.
        output_stride: 16 or 8 dilates the last stages instead of halving them.
        output_norm: a layer normalisation over the channels of each output, as Swin's and ConvNeXt's detectors have
            it (2103.14030) [C].
        drop_path: highest rate of stochastic depth. checkpointing: recomputes activations in the backward pass.
        pretrained: a file or address of weights, "download" for timm's own, or empty.

    Raises:
        ConfigError: timm is missing, or does not offer what is asked. CheckpointError: the weights do not fit.
    """

    name: str = key(
        "resnet50",
        "`TimmBackbone` (`MODEL.BACKBONE.NAME`; `pip install timm`): timm's name of the network, with or without the "
        "tag of its weights. `MODEL.BACKBONE.FREEZE_AT` freezes its parts: 1 the stem, 2 the first stage too, and so "
        "on",
    )
    out_features: tuple[str, ...] = key(
        ("stage4",), "the stages to return; `stage1` has stride 4, `stage4` stride 32 (`last`: the last)"
    )
    output_stride: int = key(
        32,
        "16 (DC5) or 8: the last stages are dilated instead of halved, where the network has that form",
        OUTPUT_STRIDES,
    )
    output_norm: bool = key(
        False, "a layer normalisation over the channels of each feature, as detectors on Swin and ConvNeXt have it"
    )
    frozen_norm: bool = key(
        True, "batch normalisation with fixed statistics and parameters; layer normalisation stays as it is"
    )
    drop_path: float = key(0.0, "highest rate of stochastic depth, reached in the last block", Range(0, below=1))
    pretrained: str = key(
        "",
        "weights of the classifier: a file or an address, or `\"download\"` for timm's own; other libraries' names are "
        "understood where order and shapes agree; not read where `MODEL.WEIGHTS` names a checkpoint of the detector",
    )
    checkpointing: bool = key(
        False,
        "recompute activations in the backward pass: less memory, more time",
        path="MODEL.TIMM.GRADIENT_CHECKPOINTING",
    )

    @configurable
    def __init__(self, *, in_channels: int = 3, freeze_at: int = 0, last_norm: bool = False, **settings: Any):
        super().__init__(**settings)
        self.last_norm = last_norm
        network = _create(self.name, in_channels, self.output_stride, self.drop_path)
        if self.pretrained:
            load_complete(network, _read_weights(network, self.pretrained), self.pretrained, KEY)
        entries = [(number, entry) for number, entry in enumerate(network.feature_info) if entry["reduction"] >= 4]
        stages = [Stage(entry["module"], entry["num_chs"], entry["reduction"]) for _, entry in entries]
        self.use(network, stages, freeze_at)
        self._numbers = [entries[index][0] for index in self.stage_index]  # as timm counts, stem included
        network.prune_intermediate_layers(self._numbers, prune_norm=not last_norm, prune_head=True)
        if self.checkpointing:
            network.set_grad_checkpointing()
        norm = importlib.import_module("timm.layers").LayerNorm2d if self.output_norm else None
        channels = self._out_feature_channels.values()
        self.norms = nn.ModuleList(norm(count, eps=1e-5) if norm else nn.Identity() for count in channels)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        state = initial_state(cfg, cls.node)
        if state["pretrained"]:
            _check_normalisation(cfg)
        return {**cls.read_keys(cfg), **state, "in_channels": input_shape.channels}

    def run_stages(self, images: Tensor) -> list[Tensor]:
        """See the base class."""
        network = self.network
        assert isinstance(network, MapNetwork)
        maps = network.forward_intermediates(
            images,
            indices=self._numbers,
            norm=self.last_norm,
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        return [norm(x) for norm, x in zip(self.norms, maps, strict=True)]


def _import_timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ConfigError(
            f"MODEL.BACKBONE.NAME asks for a network of the package timm, which cannot be imported ({error}): "
            "pip install timm, or choose TorchvisionBackbone or build_detr_resnet_backbone."
        ) from error


def _create(name: str, in_channels: int, output_stride: int, drop_path: float) -> Any:
    """The network with random weights and without its classifier, for images of any size."""
    timm = _import_timm()
    _check_name(timm, name)
    family = timm.model_entrypoint(name.partition(".")[0]).__module__.rpartition(".")[2]
    asked = {"output_stride": output_stride if output_stride < 32 else None, "drop_path_rate": drop_path or None}
    try:
        network = timm.create_model(name, num_classes=0, in_chans=in_channels, **ANY_SIZE.get(family, {}), **asked)
    except TypeError as error:
        raise ConfigError(
            f"{KEY}.NAME {name} does not take all of {KEY}.OUTPUT_STRIDE {output_stride} and {KEY}.DROP_PATH "
            f"{drop_path} ({error}). Set the one that it lacks to 32 or 0.0."
        ) from error
    gives_maps = isinstance(network, MapNetwork)
    if not gives_maps:
        raise ConfigError(f"{KEY}.NAME {name} gives no feature maps in timm {timm.__version__}. Choose another.")
    if network.pretrained_cfg.get("fixed_input_size") and family not in ANY_SIZE:
        raise ConfigError(f"{KEY}.NAME {name} takes images of one size; detectors need any. Choose another.")
    if not drop_path:  # some networks have a rate of their own
        for module in network.modules():
            if "drop_prob" in vars(module):
                module.drop_prob = 0.0
    return network


def _check_name(timm: Any, name: str) -> None:
    if timm.is_model(name.partition(".")[0]) and (name in timm.list_pretrained() or "." not in name):
        return
    known = timm.list_pretrained(f"{name.partition('.')[0]}.*") or timm.list_models()
    near = [other for other in known if other.startswith(name)] or difflib.get_close_matches(name, known, 5, 0.5)
    raise ConfigError(
        f"{KEY}.NAME {name} is not a model of timm {timm.__version__}. "
        + (f"Near: {', '.join(near[:5])}." if near else "timm.list_models() lists them all.")
    )


def _read_weights(network: Any, source: str) -> Mapping[str, Tensor]:
    """Weights under this network's names, whichever form they were published in."""
    if source == DOWNLOAD:
        weights = _download(network)
    else:
        weights = read_checkpoint(local_file(source, f"{KEY}.PRETRAINED"))["model"]
    rename = vars(sys.modules[type(network).__module__]).get("checkpoint_filter_fn")
    return rename_in_order(rename(weights, network) if rename else weights, network)


def _download(network: Any) -> dict[str, Tensor]:
    """timm's weights from the Hugging Face hub or from its cache."""
    settings: dict = network.pretrained_cfg
    if not settings.get("hf_hub_id"):
        raise CheckpointError(f"{KEY}.PRETRAINED is download; timm has no weights for this name on the hub.")
    try:
        from timm.models import load_state_dict_from_hf

        return load_state_dict_from_hf(settings["hf_hub_id"], weights_only=True)
    # The hub's client raises errors of several libraries.
    except Exception as error:
        raise CheckpointError(
            f"{KEY}.PRETRAINED is download; {settings['hf_hub_id']} cannot be fetched from huggingface.co ({error}).\n"
            f"Without internet: fetch that repository's model.safetensors elsewhere and name it in {KEY}.PRETRAINED."
        ) from error


def _check_normalisation(cfg: CfgNode) -> None:
    """Warns where the images will look different from those of the classification training."""
    settings = _import_timm().get_pretrained_cfg(cfg.MODEL.TIMM.NAME, allow_unregistered=True)
    if settings is None:
        return
    wanted = [[round(255 * x, 3) for x in values] for values in (settings.mean, settings.std)]
    found = [[round(x, 3) for x in values] for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)]
    if cfg.INPUT.FORMAT != "RGB" or not np.allclose(wanted, found, rtol=0, atol=0.5):
        logger.warning(
            "%s's weights saw images with INPUT.FORMAT RGB, MODEL.PIXEL_MEAN %s, MODEL.PIXEL_STD %s; here these keys "
            "are %s, %s, %s.",
            cfg.MODEL.TIMM.NAME,
            *wanted,
            cfg.INPUT.FORMAT,
            *found,
        )
