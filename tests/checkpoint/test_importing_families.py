"""A family of detectors is one record: every record is complete, and a made-up one is enough."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace

from detr_distill.checkpoint.importing import SOURCES, import_checkpoint, importer
from detr_distill.checkpoint.importing.families import FAMILIES, families_of, recognise
from detr_distill.checkpoint.importing.family import DETREX, OFFICIAL, TRANSFORMERS, Form
from detr_distill.checkpoint.importing.names_official import rename_official
from detr_distill.checkpoint.importing.rules import read_rules
from detr_distill.checkpoint.importing.settings import official_settings, transformers_settings
from detr_distill.config.build import build_config
from detr_distill.errors import CheckpointError
from detr_distill.registry import DECODER_REGISTRY

import pytest
import torch
from helpers.builders import ROOT

pytest.importorskip("transformers")

import transformers
from helpers.checkpoint.imported_detectors import OFFICIAL_FAMILIES
from helpers.checkpoint.our_detectors import AUTHORS, HEADS, assert_round_trip, build_ours
from helpers.parity import FAMILIES as REFERENCES
from helpers.parity import to_official
from helpers.parity_detrex import FAMILIES as DETREX_NAMES
from helpers.parity_detrex import to_detrex

MODEL_TYPES = {family: configuration.model_type for configuration, _, family in REFERENCES.values()}
MODEL_TYPES["deformable_detr"] = transformers.DeformableDetrConfig.model_type


def their_signs(source: str, name: str) -> set[str]:
    """By what a source's checkpoint is recognised: the names of its parameters, or the type in its config.json."""
    if source == TRANSFORMERS:
        return {MODEL_TYPES[name]}
    weights = build_ours(name).state_dict()
    return set(to_detrex(weights, name) if source == DETREX else to_official(weights, name))


@pytest.mark.parametrize(("source", "name"), [(s, name) for name, family in FAMILIES.items() for s in family.forms])
def test_every_form_is_recognised_by_its_signs(source, name):
    signs, form = their_signs(source, name), FAMILIES[name].forms[source]
    assert form.has
    assert recognise(source, signs) is FAMILIES[name]
    for sign in form.has:
        assert recognise(source, signs - {sign}) is not FAMILIES[name], f"{sign} is not needed"


def test_every_form_is_imported_by_a_test():
    assert set(families_of(TRANSFORMERS)) == set(MODEL_TYPES)
    assert set(families_of(DETREX)) == set(DETREX_NAMES)
    assert set(families_of(OFFICIAL)) == {*OFFICIAL_FAMILIES.values(), *AUTHORS.values()}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_record_has_what_the_configuration_of_the_paper_has(name):
    family = FAMILIES[name]
    cfg = build_config(str(ROOT / "configs" / "detr" / f"{name.removesuffix('_detr')}_r50.yaml"), [])
    for part, keys in family.node().items():
        assert {key: cfg.MODEL.DETR[part][key] for key in keys} == keys, part
    assert family.name == name
    assert family.has_levels == (cfg.MODEL.DETR.NECK.NAME == "MultiLevelNeck")
    assert ([family.label_owner] if family.label_owner else []) == cfg.MODEL.DETR.TRAINING_GROUPS
    assert family.unknown_label == (family.queries == "UnknownLabelQueries")
    assert family.detections_per_image == cfg.TEST.DETECTIONS_PER_IMAGE
    if OFFICIAL in family.forms:
        assert family.forms[OFFICIAL].temperature == cfg.MODEL.DETR.POSITION_TEMPERATURE
        assert family.forms[OFFICIAL].position_offset == cfg.MODEL.DETR.NECK.POSITION_OFFSET
        absolute = cfg.MODEL.DETR.DECODER.NAME == "DetrDecoder"
        published = DECODER_REGISTRY.get(cfg.MODEL.DETR.DECODER.NAME).published_epsilon
        assert family.forms[OFFICIAL].logit_epsilon == (0 if absolute else published)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "detr"])
def test_every_source_has_its_limit_of_logits(name):
    """As read in their code: transformers 1e-5 for all, detrex 1e-3 for all, the authors either."""
    limits = {source: form.logit_epsilon for source, form in FAMILIES[name].forms.items()}
    authors = 1e-5 if name in ("conditional_detr", "deformable_detr") else 1e-3
    assert limits == {s: {TRANSFORMERS: 1e-5, DETREX: 1e-3, OFFICIAL: authors}[s] for s in limits}


@pytest.mark.parametrize("name", families_of(OFFICIAL))
def test_the_command_line_of_the_authors_is_read(name):
    """Those of DAB-DETR, DN-DETR and DINO tell a temperature and an activation."""
    tells, family = name in ("dab_detr", "dn_detr", "dino"), FAMILIES[name]
    settings = official_settings({"pe_temperatureH": 40, "pe_temperatureW": 40}, family)
    assert settings.temperature == (40.0 if tells else 10_000.0)
    with pytest.raises(CheckpointError, match="gelu") if tells else nullcontext():
        official_settings({"transformer_activation": "gelu"}, family)


def test_the_temperature_of_transformers_is_read(tmp_path):
    told = {"temperature_height": 40, "temperature_width": 40}
    for model_type, stored, temperature in (("dab-detr", told, 40.0), ("dab-detr", {}, 20.0), ("detr", told, 10_000.0)):
        assert transformers_settings({"model_type": model_type, **stored}, tmp_path).temperature == temperature


def test_a_head_that_a_file_keeps_once_is_that_of_every_layer():
    weights = build_ours("dn_deformable_detr").state_dict()
    once = {k: v for k, v in to_official(weights, "dn_deformable_detr").items() if not re.search(r"_embed\.[12]", k)}
    assert set(rename_official(once, "dn_deformable_detr")) == set(weights)


def test_a_relative_that_cannot_be_imported_is_not_recognised():
    """DAB-Deformable-DETR of detrex: levels as Deformable DETR has, anchors as DAB-DETR."""
    heads = {"transformer.level_embeds", "transformer.decoder.ref_point_head.layers.0.weight"}
    assert recognise(DETREX, heads) is None


def test_a_rule_has_two_columns():
    assert read_rules("a  b\n  c d") == (("a", "b"), ("c", "d"))
    with pytest.raises(ValueError, match="unpack"):
        read_rules("a b c")


@pytest.mark.parametrize("source", ["detrex", "made_up"])
def test_a_record_is_all_that_a_family_needs(source, tmp_path, monkeypatch):
    """DAB-DETR with another name for its anchors, by detrex and by made-up authors."""
    form = Form(has=("anchors.weight",), temperature=20.0)
    base = FAMILIES["dab_detr"]
    rules = (*base.rules, *read_rules(r"^anchors\. queries.position."))
    made_up = replace(base, name="made_up", rules=rules, detections_per_image=7, forms={DETREX: form, OFFICIAL: form})
    monkeypatch.setitem(FAMILIES, "made_up", made_up)
    monkeypatch.setattr(importer, "SOURCES", (*SOURCES, "made_up"))
    model = build_ours("dab_detr")
    convert, anchors = (to_detrex, "anchor_box_embed") if source == DETREX else (to_official, "refpoint_embed")
    theirs = convert(model.state_dict(), "dab_detr")
    theirs["anchors.weight"] = theirs.pop(f"{anchors}.weight")
    torch.save({"model": theirs}, tmp_path / "theirs.pth")
    imported = import_checkpoint(source, tmp_path / "theirs.pth", HEADS)
    assert_round_trip(imported, model, tmp_path)
    assert imported.config["TEST"]["DETECTIONS_PER_IMAGE"] == 7
