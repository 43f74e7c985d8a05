"""What an imported checkpoint's tensors do not tell: number of heads, dilation, temperature, normalisation, names."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from ...config.ranges import COUNT
from ...errors import CheckpointError
from ..transformers_folder import Preprocessing, read_class_names, read_preprocessing
from .families import FAMILIES, families_of, recognise
from .family import DETREX, OFFICIAL, PIXEL_MEAN, PIXEL_STD, TRANSFORMERS, Family, Settings

logger = logging.getLogger(__name__)

OPTION = "--weights"  # of tools/import_checkpoint.py


def transformers_family(config: Mapping[str, Any]) -> Family:
    """The family that a ``config.json`` names.

    Raises:
        CheckpointError: another kind of model.
    """
    found = str(config.get("model_type"))
    family = recognise(TRANSFORMERS, {found})
    if family is None:
        known = [FAMILIES[name].forms[TRANSFORMERS].has[0] for name in families_of(TRANSFORMERS)]
        raise CheckpointError(
            f"config.json describes a model of type {found!r}. Those that can be imported: {', '.join(known)}."
        )
    return family


def transformers_settings(config: Mapping[str, Any], folder: Path) -> Settings:
    """Settings from a folder's ``config.json`` and, where it is there, ``preprocessor_config.json``.

    Raises:
        CheckpointError: the network has a part that ours has not; names it. Also what its readers raise.
    """
    form = transformers_family(config).forms[TRANSFORMERS]
    expected = {
        "activation_function": "relu",
        "position_embedding_type": "sine",
        "num_patterns": 0,
        "keep_query_pos": False,
        "normalize_before": False,
        "sine_position_embedding_scale": None,
        "decoder_attention_heads": config.get("encoder_attention_heads", 8),
        "temperature_width": config.get("temperature_height", 20),
        **form.expected,
    }
    _check(expected, config, f"{folder / 'config.json'}")
    backbone = {**(config.get("backbone_config") or {}), **(config.get("backbone_kwargs") or {})}
    images = read_preprocessing(folder, OPTION)
    if images is None:
        logger.warning(
            "%s %s has no preprocessor_config.json: images are taken to be normalised as ImageNet's.", OPTION, folder
        )
        images = Preprocessing(PIXEL_MEAN, PIXEL_STD, None)
    for name in ("encoder_attention_heads", "two_stage_num_proposals"):
        COUNT.check(f"{folder / 'config.json'}: {name}", config.get(name, 1))
    return Settings(
        num_heads=config.get("encoder_attention_heads", 8),
        dilation=bool(config.get("dilation")) or backbone.get("output_stride") == 16,
        num_queries=config.get("two_stage_num_proposals", 300),
        refinement=config.get("with_box_refine"),
        temperature=form.stored_temperature(config),
        position_offset=form.position_offset,
        logit_epsilon=form.logit_epsilon,
        pixel_mean=images.mean,
        pixel_std=images.std,
        class_names=read_class_names(config, folder, OPTION),
    )


def official_settings(arguments: Mapping[str, Any], family: Family) -> Settings:
    """Settings from the command line that the authors' code stores beside the weights; its defaults without one.

    Raises:
        CheckpointError: the network has a part that ours has not; names it.
    """
    form = family.forms[OFFICIAL]
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
        **form.expected,
    }
    _check(expected, arguments, "The command line stored in the checkpoint")
    return Settings(
        num_heads=arguments.get("nheads", 8),
        dilation=bool(arguments.get("dilation", False)),
        num_queries=arguments.get("num_queries", 300),
        refinement=arguments.get("with_box_refine"),
        temperature=form.stored_temperature(arguments),
        position_offset=form.position_offset,
        logit_epsilon=form.logit_epsilon,
    )


def detrex_settings(family: Family) -> Settings:
    """What detrex builds a family with; its checkpoints do not tell."""
    form = family.forms[DETREX]
    return Settings(
        temperature=form.temperature, position_offset=form.position_offset, logit_epsilon=form.logit_epsilon
    )


def coco_names_by_id() -> tuple[str, ...]:
    """Names of COCO's category ids 0 to 90, "N/A" where an id is not in use: the classes of a 91-class head."""
    names = {entry["id"]: entry["name"] for entry in COCO_CATEGORIES if entry["isthing"]}
    return tuple(names.get(index, "N/A") for index in range(91))


def _check(expected: Mapping[str, Any], found: Mapping[str, Any], where: str) -> None:
    for key, value in expected.items():
        if found.get(key, value) not in (value, None):
            raise CheckpointError(f"{where}: {key} is {found[key]!r}; only {value!r} exists here.")
