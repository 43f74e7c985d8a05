"""A DETR of this project as the detector of transformers that is the same network, where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from torch import Tensor

from ..checkpoint.export import detecting_weights
from ..checkpoint.importing.describe import RESNETS, describe
from ..checkpoint.importing.families import FAMILIES, families_of
from ..checkpoint.importing.family import TRANSFORMERS, Family, Settings
from ..checkpoint.importing.reversing import restore_transformers
from ..config.keys import flatten, read_key
from ..detr import DetrDetector
from ..errors import CheckpointError
from .network import import_transformers, name_classes

PARTS = tuple(f"MODEL.DETR.{part}.NAME" for part in ("ENCODER", "DECODER", "QUERIES"))
BACKBONES = ("build_detr_resnet_backbone", "build_resnet_backbone")
CLASSIFICATION, EPSILON = "MODEL.DETR.LOSS.CLASSIFICATION", "MODEL.DETR.LOGIT_EPSILON"
# Of what the import describes: what no detection depends on, what the image processor says, what is compared below.
NOT_COMPARED = (
    *("MODEL.DETR.LOSS.", "MODEL.DETR.MATCHER.", "MODEL.DETR.TRAINING_GROUPS", "MODEL.DETR.DECODER.POSITION_GAIN"),
    *("MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.", "MODEL.RESNETS.OUT_FEATURES", "MODEL.PIXEL_"),
    *("INPUT.", "TEST.", "VERSION", EPSILON),
)
# What the library has one form of, and the import need not say.
FIXED = {
    "MODEL.DETR.SIZE_DIVISIBILITY": 1,
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": (False, False, False, False),
}
STEM = "backbone.stem.conv1.weight"  # (channels, those of an image, 7, 7)


@dataclass(frozen=True)
class LibraryForm:
    """The library's detector that a detector of ours is.

    Attributes:
        family: of both. refinement: boxes are refined from layer to layer; None where the family has no such choice.
        settings: of the library's configuration, but for the classes.
    """

    family: Family
    refinement: bool | None
    settings: Mapping[str, Any]

    @property
    def model_type(self) -> str:
        """The library's name of the family."""
        return self.family.forms[TRANSFORMERS].has[0]


def find_library_form(cfg: CfgNode, detector: DetrDetector) -> LibraryForm | str:
    """The same network in transformers, or why there is none.

    They are the same where the import would give the library's network the configuration that ours has.
    """
    if cfg.MODEL.BACKBONE.NAME not in BACKBONES:
        return f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME}, and the library's detectors have a ResNet"
    weights = detecting_weights(detector.state_dict())
    for name in families_of(TRANSFORMERS):
        family = FAMILIES[name]
        settings = _settings(cfg, family)
        try:
            described = flatten(describe(weights, family, settings))
        except CheckpointError:  # it is of another family
            continue
        if all(described.get(key) == read_key(cfg, key) for key in PARTS):
            different = _difference(cfg, described, detector)
            refinement = settings.refinement if family.has_levels else None
            return different or LibraryForm(family, refinement, _library_settings(cfg, family, weights))
    return "it has no network of " + ", ".join(str(read_key(cfg, key)) for key in PARTS)


def build_library_model(form: LibraryForm, detector: DetrDetector, names: Sequence[str]) -> Any:
    """The library's model with our weights, in eval mode; it takes RGB images.

    Args:
        detector: trained. names: of its classes.

    Raises:
        ConfigError: transformers is not installed.
    """
    transformers = import_transformers("--format transformers")
    config = name_classes(transformers.AutoConfig.for_model(form.model_type, **form.settings), names)
    model = transformers.AutoModelForObjectDetection.from_config(config)
    weights = detecting_weights(detector.state_dict())
    if detector.input_format == "BGR":
        weights[STEM] = weights[STEM].flip(1)
    state = restore_transformers(weights, model.state_dict(), form.family.name, form.refinement)
    model.load_state_dict(state)
    return model.eval()


def _settings(cfg: CfgNode, family: Family) -> Settings:
    """What the import would read of the library's configuration, which lets only some of it be chosen."""
    form, node = family.forms[TRANSFORMERS], cfg.MODEL.DETR
    return Settings(
        num_heads=node.NUM_HEADS,
        num_queries=node.NUM_QUERIES,
        refinement=node.DECODER.BOX_REFINEMENT,
        temperature=node.POSITION_TEMPERATURE if form.temperature_key else form.temperature,
        position_offset=form.position_offset,
        logit_epsilon=form.logit_epsilon,
    )


def _difference(cfg: CfgNode, described: Mapping[str, Any], detector: DetrDetector) -> str:
    """The first way in which a detector is another than the described one; empty where there is none."""
    wanted = described[CLASSIFICATION]
    if (read_key(cfg, CLASSIFICATION) == "softmax") != (wanted == "softmax"):
        return f"{CLASSIFICATION} is {read_key(cfg, CLASSIFICATION)}, and its class heads are for {wanted}"
    compared = {key: value for key, value in described.items() if not key.startswith(NOT_COMPARED)}
    for key, value in {"MODEL.DETR.NECK.NAME": "SingleLevelNeck", **compared, **FIXED}.items():
        found, expected = read_key(cfg, key), tuple(value) if isinstance(value, list) else value
        if found != expected:
            return f"{key} is {found}, and there it is {expected}"
    epsilon = described.get(EPSILON, detector.decoder.epsilon)
    if detector.decoder.epsilon != epsilon:
        return (
            f"{EPSILON} is {detector.decoder.epsilon:g}, and there it is {epsilon:g} (append {EPSILON} {epsilon:g} "
            "to take its form: boxes nearer to a border than that may differ)"
        )
    return ""


def _library_settings(cfg: CfgNode, family: Family, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    node, form = cfg.MODEL.DETR, family.forms[TRANSFORMERS]
    settings: dict[str, Any] = {
        "hidden_size" if family.name == "dab_detr" else "d_model": node.HIDDEN_DIM,
        "num_queries": node.NUM_QUERIES,
        "dropout": node.DROPOUT,
        "auxiliary_loss": False,
        "backbone_config": _backbone_settings(cfg, weights),
        # Earlier versions take timm's network unless they are told.
        "use_timm_backbone": False,
        "backbone": None,
        "use_pretrained_backbone": False,
    }
    for part in ("encoder", "decoder"):
        settings[f"{part}_layers"] = node[part.upper()].NUM_LAYERS
        settings[f"{part}_attention_heads"] = node.NUM_HEADS
        settings[f"{part}_ffn_dim"] = node.FFN_DIM
        if family.has_levels:
            settings[f"{part}_n_points"] = node[part.upper()].NUM_POINTS
    if form.temperature_key:
        settings |= dict.fromkeys(("temperature_height", "temperature_width"), int(node.POSITION_TEMPERATURE))
    if family.has_levels:
        is_two_stage = node.QUERIES.NAME == "TwoStageQueries"
        settings |= {"num_feature_levels": node.NUM_LEVELS, "with_box_refine": node.DECODER.BOX_REFINEMENT}
        settings |= {"two_stage": is_two_stage, "two_stage_num_proposals": node.NUM_QUERIES}
    return settings


def _backbone_settings(cfg: CfgNode, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    depths, is_bottleneck = next(form for form, depth in RESNETS.items() if depth == cfg.MODEL.RESNETS.DEPTH)
    last = "conv3" if is_bottleneck else "conv2"
    return {
        "model_type": "resnet",
        "embedding_size": len(weights[STEM]),
        "hidden_sizes": [len(weights[f"backbone.res{stage}.0.{last}.weight"]) for stage in range(2, 6)],
        "depths": list(depths),
        "layer_type": "bottleneck" if is_bottleneck else "basic",
        "out_features": [f"stage{int(name.removeprefix('res')) - 1}" for name in cfg.MODEL.DETR.IN_FEATURES],
    }
