"""The parts of a :class:`TransformersStudent`, as the configuration names them; and the keys that name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..checkpoint.transformers_folder import Preprocessing, open_folder
from ..config.files import find_file
from ..config.keys import Key, declare
from ..config.ranges import COUNT
from ..data import training_class_names
from ..detr.build import known_class_count
from ..detr.supervision.criterion import SetCriterion
from ..errors import ConfigError
from .distribution import DistributionLoss
from .halves import Network
from .kinds import NETWORKS
from .network import ACTIVATIONS, build_model, find_preprocessing, import_transformers, load_model, with_classes
from .rt_detr import has_distributions

NODE = "MODEL.TRANSFORMERS"
ASKER = "The detector is a TransformersStudent"

declare(
    __name__,
    {
        f"{NODE}.FOLDER": Key(
            "",
            "a folder of transformers with `config.json`, weights and `preprocessor_config.json`, which the detector "
            "starts from; other classes than its own give it new class heads",
        ),
        f"{NODE}.CONFIG": Key(
            "", "in place of a folder, a `config.json` alone: the detector starts from random weights"
        ),
        f"{NODE}.SIZE": Key(
            (),
            "(height, width) to which images are stretched; empty: as the folder says. RT-DETR, D-FINE and DEIMv2 need "
            "one, in multiples of 32",
            COUNT,
        ),
    },
)


def build_parts(cfg: CfgNode) -> dict[str, Any]:
    """The network, its losses, and how it wants its images.

    Raises:
        ConfigError: neither or both of folder and configuration are named, a model of another type, a head that does
            not fit the class loss, or an image size that it cannot have. CheckpointError: the folder cannot be read.
    """
    model, images = _build_model(cfg)
    kind = model.config.model_type
    network = NETWORKS[kind](model)
    criterion = SetCriterion(cfg)
    has_softmax = ACTIVATIONS[kind] == "softmax"
    if has_softmax != (criterion.classification == "softmax"):
        wanted = "softmax" if has_softmax else "varifocal, matchability or focal"
        raise ConfigError(
            f"MODEL.DETR.LOSS.CLASSIFICATION is {criterion.classification!r}, and the class heads of a {kind} are for "
            f"another loss. Set it to {wanted}."
        )
    return {
        "network": network,
        "criterion": criterion,
        "distribution": _build_distribution(cfg, model),
        "mean": images.mean,
        "std": images.std,
        "size": _check_size(images.size, network, kind),
    }


def _build_model(cfg: CfgNode) -> tuple[Any, Preprocessing]:
    folder, file = cfg.MODEL.TRANSFORMERS.FOLDER, cfg.MODEL.TRANSFORMERS.CONFIG
    if bool(folder) == bool(file):
        raise ConfigError(
            f"{ASKER}: {NODE}.FOLDER is {folder!r} and {NODE}.CONFIG is {file!r}. Name one of them: a folder with "
            "weights to start from, or a config.json alone for random weights."
        )
    size = tuple(cfg.MODEL.TRANSFORMERS.SIZE) or None
    names = _class_names(cfg)
    if folder:
        place = open_folder(folder, f"{NODE}.FOLDER")
        images = find_preprocessing(place, f"{NODE}.FOLDER")
        model = with_classes(load_model(place, f"{NODE}.FOLDER", ASKER), names, place, f"{NODE}.FOLDER")
        return model, Preprocessing(images.mean, images.std, size or images.size)
    step = -1 if cfg.INPUT.FORMAT == "BGR" else 1  # their order is that of the images
    mean, std = (tuple(values[::step]) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    model = build_model(Path(find_file(file, f"{NODE}.CONFIG")), f"{NODE}.CONFIG", ASKER, names)
    return model, Preprocessing(mean, std, size)


def _class_names(cfg: CfgNode) -> list[str]:
    """Of the training set; numbers where nothing tells them, as in tests."""
    count = known_class_count(cfg)
    names = training_class_names(cfg)
    return list(names) if names and len(names) == count else [f"LABEL_{number}" for number in range(count)]


def _check_size(size: tuple[int, ...] | None, network: Network, kind: str) -> tuple[int, int] | None:
    if size is None and network.stretches:
        raise ConfigError(
            f"{NODE}.SIZE is empty, and a {kind} does not look at the mask of padded images, so that it needs one size "
            "for all. Give [height, width], such as [640, 640]."
        )
    if size is not None and (len(size) != 2 or any(side % network.size_multiple for side in size)):
        raise ConfigError(
            f"{NODE}.SIZE is {list(size)}, and a {kind} takes [height, width] in multiples of {network.size_multiple}."
        )
    return None if size is None else (size[0], size[1])


def _build_distribution(cfg: CfgNode, model: Any) -> DistributionLoss | None:
    if not has_distributions(model):
        return None
    config = model.config
    library = import_transformers(ASKER).loss.loss_d_fine
    up, scale = (library.torch.tensor([float(value)]) for value in (config.up, config.reg_scale))
    bins = library.weighting_function(config.max_num_bins, up, scale)
    return DistributionLoss(**DistributionLoss.read_keys(cfg), bins=bins, scale=abs(float(config.reg_scale)))
