"""What an imported checkpoint's tensors do not tell: number of heads, dilation, temperature, normalisation, names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from ...errors import CheckpointError
from ..files import read_json

OPTION = "--weights"  # of tools/import_checkpoint.py

# In the range 0 to 1, RGB: the ImageNet statistics with which all four projects train.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


@dataclass
class Settings:
    """How a network was built, as far as its weights do not say.

    Attributes:
        num_heads: of every attention. dilation: the backbone's last stage is dilated instead of strided (DC5).
        num_queries: of two-stage networks, which have none in their weights. refinement: Deformable DETR refines boxes
            from layer to layer; None: to be read from the weights. temperature: of the image cells' sine embedding.
        position_offset: of the cells in the sine embedding of networks with levels.
        image_mean, image_std: in the range 0 to 1, RGB. class_names: empty where unknown.
    """

    num_heads: int = 8
    dilation: bool = False
    num_queries: int = 300
    refinement: bool | None = None
    temperature: float = 10000.0
    position_offset: float = -0.5
    image_mean: tuple[float, ...] = IMAGE_MEAN
    image_std: tuple[float, ...] = IMAGE_STD
    class_names: tuple[str, ...] = ()


def transformers_family(config: Mapping[str, Any]) -> str:
    """The family that a ``config.json`` names, as a key of the rename rules.

    Raises:
        CheckpointError: another kind of model.
    """
    found = str(config.get("model_type"))
    family = found.replace("-", "_")
    if family not in ("detr", "conditional_detr", "dab_detr", "deformable_detr"):
        raise CheckpointError(
            f"config.json describes a model of type {found!r}. Those that can be imported: detr, conditional_detr, "
            "dab-detr and deformable_detr."
        )
    return family


def transformers_settings(config: Mapping[str, Any], folder: Path) -> Settings:
    """Settings from a folder's ``config.json`` and, where it is there, ``preprocessor_config.json``.

    Raises:
        CheckpointError: the network has a part that ours has not; names it.
    """
    family = transformers_family(config)
    expected = {
        "activation_function": "prelu" if family == "dab_detr" else "relu",
        "position_embedding_type": "sine",
        "num_patterns": 0,
        "keep_query_pos": False,
        "normalize_before": False,
        "sine_position_embedding_scale": None,
        "decoder_attention_heads": config.get("encoder_attention_heads", 8),
        "temperature_width": config.get("temperature_height", 20),
    }
    _check(expected, config, f"{folder / 'config.json'}")
    backbone = {**(config.get("backbone_config") or {}), **(config.get("backbone_kwargs") or {})}
    labels = config.get("id2label") or {}
    images_file = folder / "preprocessor_config.json"
    images = read_json(images_file, OPTION) if images_file.is_file() else {}
    names = tuple(labels[key] for key in sorted(labels, key=int))
    return Settings(
        num_heads=config.get("encoder_attention_heads", 8),
        dilation=bool(config.get("dilation")) or backbone.get("output_stride") == 16,
        num_queries=config.get("two_stage_num_proposals", 300),
        refinement=config.get("with_box_refine"),
        temperature=float(config.get("temperature_height", 20)) if family == "dab_detr" else 10000.0,
        image_mean=tuple(images.get("image_mean", IMAGE_MEAN)),
        image_std=tuple(images.get("image_std", IMAGE_STD)),
        class_names=() if all(name.startswith("LABEL_") for name in names) else names,
    )


def official_settings(arguments: Mapping[str, Any], family: str) -> Settings:
    """Settings from the command line that the authors' code stores beside the weights; its defaults without one.

    Raises:
        CheckpointError: the network has a part that ours has not; names it.
    """
    one_temperature = family in ("dab_detr", "dn_detr", "dino")
    expected = {
        "pre_norm": False,
        "position_embedding": "sine",
        "num_patterns": 0,
        "pe_temperatureW": arguments.get("pe_temperatureH", 20),
        "two_stage_add_query_num": 0,
        "two_stage_pat_embed": 0,
        "two_stage_learn_wh": False,
        "embed_init_tgt": True,
        "decoder_sa_type": "sa",
    }
    if one_temperature:
        expected["transformer_activation"] = "relu" if family == "dino" else "prelu"
    _check(expected, arguments, "The command line stored in the checkpoint")
    return Settings(
        num_heads=arguments.get("nheads", 8),
        dilation=bool(arguments.get("dilation", False)),
        num_queries=arguments.get("num_queries", 300),
        refinement=arguments.get("with_box_refine"),
        temperature=float(arguments.get("pe_temperatureH", 20)) if one_temperature else 10000.0,
        position_offset=0.0 if family == "dino" else -0.5,
    )


def detrex_settings(family: str) -> Settings:
    """What detrex builds a family with; its checkpoints do not tell.

    DINO's image cells are those of the 12-epoch settings; other settings have temperature 20 and offset 0 [C].
    """
    return Settings(temperature=20.0 if family in ("dab_detr", "dn_detr") else 10000.0)


def coco_names_by_id() -> tuple[str, ...]:
    """Names of COCO's category ids 0 to 90, "N/A" where an id is not in use: the classes of a 91-class head."""
    names = {entry["id"]: entry["name"] for entry in COCO_CATEGORIES if entry["isthing"]}
    return tuple(names.get(index, "N/A") for index in range(91))


def read_config(folder: Path) -> dict[str, Any]:
    """Content of a folder's ``config.json``.

    Raises:
        CheckpointError: it is not there or cannot be read.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder}: a folder of transformers holds config.json; this one does not.")
    return read_json(file, OPTION)


def _check(expected: Mapping[str, Any], found: Mapping[str, Any], where: str) -> None:
    for key, value in expected.items():
        if found.get(key, value) not in (value, None):
            raise CheckpointError(f"{where}: {key} is {found[key]!r}; only {value!r} exists here.")
