"""Every shipped configuration has keys that exist, a folder of its own, and builds as it is."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from unittest import mock

from detr_distill.engine import build_config, build_optimizer

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers.builders import ROOT
from helpers.make_golden import NO_DOWNLOAD, teachers_without_weights
from helpers.structures import BUILDABLE, CONFIGS, short_name

ALL_FILES = sorted((ROOT / "configs").rglob("*.yaml"))


@cache
def read(file: Path) -> CfgNode:
    """A shipped configuration, not to be changed."""
    return build_config(str(file), [])


def test_the_shipped_configurations_are_found():
    assert {"detr", "d3etr", "digits"} <= {file.parent.name for file in CONFIGS}


@pytest.mark.parametrize("file", ALL_FILES, ids=short_name)
def test_all_keys_are_known(file):
    """Merging refuses unknown keys; a key of a file that did not arrive would be one that a base overrides."""
    own = yaml.safe_load(file.read_text())
    own.pop("_BASE_", None)

    def check(node, expected, path):
        for key, value in expected.items():
            if isinstance(value, dict):
                check(node[key], value, f"{path}{key}.")
            else:
                found = list(node[key]) if isinstance(value, list) else node[key]
                assert found == value, f"{path}{key}"

    check(read(file), own, "")


def test_every_run_has_a_folder_of_its_own():
    """Two configurations that write to one folder would refuse, or continue, each other's run."""
    owners: dict[str, list[str]] = {}
    for file in CONFIGS:
        owners.setdefault(read(file).OUTPUT_DIR, []).append(short_name(file))
    shared = {folder: names for folder, names in owners.items() if len(names) > 1 and folder != "./output"}
    assert not shared


TAUGHT = [file for file in CONFIGS if file.parent.name in ("lgd", "sssd") and not file.stem.endswith("_plain")]


@pytest.mark.parametrize("file", TAUGHT, ids=short_name)
def test_the_recipes_of_lgd_and_sssd_clip_and_clamp_as_published(file):
    """Each entry of a gradient at 1, of the student and of the label encoder; corners at the last pixel."""
    cfg = read(file)
    clip = cfg.SOLVER.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE) == (True, "value", 1.0)
    assert cfg.MODEL.DISTILL.LABEL_ENCODER.CLAMP_CORNERS


def test_fcos_weighs_its_boxes_where_the_published_numbers_are_quoted():
    names = {f"{folder}/fcos_{depth}" for folder in ("lgd", "sssd") for depth in ("r50", "r101")}
    names |= {"lgd/fcos_r50_plain", "lgd/fcos_r101_plain"}
    assert {short_name(file) for file in CONFIGS if read(file).MODEL.FCOS.CENTERNESS_WEIGHTS} == names


@pytest.mark.parametrize("file", BUILDABLE, ids=short_name)
def test_it_builds(file):
    """At full size, without the drawing of random weights, which takes most of the time."""
    cfg = read(file).clone()
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *NO_DOWNLOAD])
    undrawn = {name: lambda values, *_arguments, **_keys: values for name in ("uniform_", "normal_")}
    with teachers_without_weights(), mock.patch.multiple(torch.Tensor, **undrawn):
        model = build_model(cfg)
    trainable = [values for values in model.parameters() if values.requires_grad]
    # This also checks that the learning-rate factors find what they name.
    optimized = [values for group in build_optimizer(cfg, model).param_groups for values in group["params"]]
    assert trainable and sorted(map(id, optimized)) == sorted(map(id, trainable))
