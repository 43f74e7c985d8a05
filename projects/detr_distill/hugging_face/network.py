"""A detector of transformers from a folder or from a configuration alone; nothing is downloaded."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint.contents import check_finite
from ..checkpoint.files import read_json
from ..checkpoint.matching import Fit
from ..checkpoint.transformers_folder import Preprocessing, read_class_names, read_config, read_preprocessing
from ..errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

# Model types, and how their logits become probabilities.
ACTIVATIONS = {
    "rt_detr": "sigmoid",
    "rt_detr_v2": "sigmoid",
    "d_fine": "sigmoid",
    "deimv2": "sigmoid",
    "deformable_detr": "sigmoid",
    "conditional_detr": "sigmoid",
    "dab-detr": "sigmoid",
    "detr": "softmax",
    "lw_detr": "sigmoid",
    "rf_detr": "sigmoid",
}
# Parts of the names of what has a row for each class.
CLASS_HEADS = ("class_embed", "enc_score_head", "class_labels_classifier")


def import_transformers(asker: str) -> Any:
    """The library.

    Args:
        asker: key and value that need it, for the message.

    Raises:
        ConfigError: it is not installed.
    """
    # Each layer of deformable attention would read the device to compare two shapes.
    os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"{asker}, which needs transformers: pip install transformers. DETR, Conditional, DAB and Deformable DETR "
            "can be imported without it: tools/import_checkpoint.py."
        ) from error
    return transformers


def load_model(folder: Path, key: str, asker: str) -> Any:
    """The detector of a folder, with every one of its weights.

    Args:
        key: that names the folder. asker: see :func:`import_transformers`.

    Raises:
        ConfigError: transformers is not installed, or a model of another type.
        CheckpointError: the weights cannot be read, are not finite, or do not fit the model of config.json.
    """
    transformers = import_transformers(asker)
    found = str(read_config(folder, key).get("model_type"))
    if found not in ACTIVATIONS:
        raise ConfigError(f"{key} {folder} holds a model of type {found!r}. Known: {', '.join(ACTIVATIONS)}.")
    try:
        model, report = transformers.AutoModelForObjectDetection.from_pretrained(
            str(folder),
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            # Refused below, where they can be named.
            ignore_mismatched_sizes=True,
        )
    # Damaged or foreign folders raise whatever transformers stumbles over first.
    except Exception as error:
        raise CheckpointError(f"{key} {folder} cannot be loaded: {str(error)[:300]}") from error
    misshaped = {name: (tuple(found), tuple(wanted)) for name, found, wanted in sorted(report["mismatched_keys"])}
    fit = Fit(matched={}, missing=sorted(report["missing_keys"]), unexpected=[], misshaped=misshaped)
    if not fit.is_complete:
        raise CheckpointError(
            f"{key} {folder}: the weights do not fit the model that config.json describes:\n{fit.problems()}\n"
            "Use the config.json that belongs to them; its id2label gives the number of classes."
        )
    check_finite(model.state_dict(), f"{key} {folder}")
    return model


def build_model(file: Path, key: str, asker: str, names: Sequence[str]) -> Any:
    """The detector that a configuration file of transformers describes, for some classes, with random weights.

    Args:
        file: JSON with ``model_type``, as ``config.json`` of a folder is. key, asker: see :func:`load_model`.

    Raises:
        ConfigError: transformers is not installed, the type is not known, or the settings do not go together.
    """
    transformers = import_transformers(asker)
    settings = read_json(file, key)
    found = str(settings.pop("model_type", None))
    if found not in ACTIVATIONS:
        raise ConfigError(f"{key} {file} is of the model type {found!r}. Known: {', '.join(ACTIVATIONS)}.")
    for replaced in ("id2label", "label2id", "num_labels"):
        settings.pop(replaced, None)
    # Settings that do not go together raise whatever the library stumbles over first.
    try:
        config = name_classes(transformers.AutoConfig.for_model(found, **settings), names)
        model = transformers.AutoModelForObjectDetection.from_config(config)
    except Exception as error:
        raise ConfigError(f"{key} {file}: transformers cannot build it: {str(error)[:300]}") from error
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # The library draws these factors around 0: a signal would vanish from layer to layer.
            nn.init.ones_(module.weight)
    return model


def with_classes(model: Any, names: Sequence[str], folder: Path, key: str) -> Any:
    """The model itself where it was trained on these classes, or one for these with new class heads.

    Args:
        names: of the classes, in their order. folder: of the model, key: that names it, for messages.
    """
    known = read_class_names({"id2label": model.config.id2label}, folder, key)
    if len(names) == model.config.num_labels and known in ((), tuple(names)):
        model.config = name_classes(model.config, names)
        return model
    changed = type(model)(name_classes(copy.deepcopy(model.config), names))
    kept = {name: x for name, x in model.state_dict().items() if not any(part in name for part in CLASS_HEADS)}
    missing, unexpected = changed.load_state_dict(kept, strict=False)
    assert not unexpected, unexpected
    logger.warning(
        "%s %s knows %d classes, and the training set has %d others: its class heads start anew (%d tensors).",
        key, folder, len(known or model.config.id2label), len(names), len(missing),
    )  # fmt: skip
    return changed


def name_classes(config: Any, names: Sequence[str]) -> Any:
    """Puts class names into a configuration of the library, which it returns."""
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    return config


def find_preprocessing(folder: Path, key: str) -> Preprocessing:
    """How the images of a folder's model are prepared, from its ``preprocessor_config.json``.

    Raises:
        ConfigError: it is not there; a guess would spoil the model silently.
        CheckpointError: it cannot be read, or tells what cannot be.
    """
    images = read_preprocessing(folder, key)
    if images is None:
        raise ConfigError(f"{key} {folder} lacks preprocessor_config.json, which says how its images are normalised.")
    return images
