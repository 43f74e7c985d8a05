"""DN-DETR and DINO of their authors, and all families of detrex, become weights and a configuration that fit.

The names are written down twice: here from ours to theirs (tests/parity.py, tests/parity_detrex.py).
"""

from __future__ import annotations

import argparse

from detr_distill.checkpoint.importing import import_checkpoint
from detr_distill.checkpoint.importing.names_detrex import RULES
from detr_distill.errors import CheckpointError

import pytest
import torch
from builders import randomise, small_cfg
from detectron2.modeling import build_model

pytest.importorskip("transformers")

from checkpoint.imported_detectors import build_imported, last_layer
from parity import to_official
from parity_detrex import FAMILIES as DETREX
from parity_detrex import to_detrex

LEVELS = {"NECK__NAME": "MultiLevelNeck", "NUM_LEVELS": 4, "ENCODER__NAME": "DeformableEncoder"}
DAB = {"DECODER__NAME": "DabDecoder", "ENCODER__NAME": "DabEncoder", "POSITION_TEMPERATURE": 20.0}
DN = {"QUERIES__NAME": "UnknownLabelQueries", "TRAINING_GROUPS": ["DenoisingQueries"]}
DINO = {
    **LEVELS,
    "DECODER__NAME": "DinoDecoder",
    "QUERIES__NAME": "MixedQueries",
    "TRAINING_GROUPS": ["ContrastiveDenoisingQueries"],
}
SETTINGS = {
    "detr": {"DECODER__NAME": "DetrDecoder", "LOSS__CLASSIFICATION": "softmax"},
    "conditional_detr": {},
    "dab_detr": {**DAB, "QUERIES__NAME": "AnchorBoxQueries"},
    "dn_detr": {**DAB, **DN},
    "deformable_detr": {**LEVELS, "DECODER__NAME": "DeformableDecoder", "QUERIES__NAME": "LearnedContentQueries"},
    "two_stage": {
        **LEVELS,
        "DECODER__NAME": "DeformableBoxDecoder",
        "DECODER__BOX_REFINEMENT": True,
        "QUERIES__NAME": "TwoStageQueries",
    },
    "dn_deformable_detr": {
        **LEVELS,
        **DN,
        "DECODER__NAME": "DabDeformableDecoder",
        "QUERIES__NAME": "MarkedAnchorQueries",
    },
    "dino": {**DINO, "POSITION_TEMPERATURE": 20.0, "NECK__POSITION_OFFSET": 0.0},
    "dino_separate": {
        **DINO,
        "POSITION_TEMPERATURE": 20.0,
        "NECK__POSITION_OFFSET": 0.0,
        "DECODER__SHARED_HEADS": False,
    },
    "dino_of_detrex": {**DINO, "DECODER__SHARED_HEADS": False},
}
NUM_QUERIES, HEADS = 9, ["MODEL.DETR.NUM_HEADS", "4"]


def build_ours(name: str, num_classes: int = 5):
    """A small randomised detector on an R18, with the settings that the sources have."""
    keys = {"POSITION_TEMPERATURE": 10_000.0, **SETTINGS[name], "NUM_CLASSES": num_classes, "NUM_QUERIES": NUM_QUERIES}
    cfg = small_cfg(**{f"MODEL__DETR__{key}": value for key, value in keys.items()})
    cfg.MODEL.BACKBONE.NAME = "build_detr_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = 18, 64, False
    levels = "NUM_LEVELS" in SETTINGS[name]
    cfg.MODEL.DETR.IN_FEATURES = ["res3", "res4", "res5"] if levels else ["res5"]
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.DETR.IN_FEATURES
    cfg.MODEL.DETR.DECODER.POINT_TEMPERATURE, cfg.MODEL.DETR.DECODER.POSITION_GAIN = 10_000.0, 0.0
    cfg.MODEL.DETR.HIDDEN_DIM, cfg.MODEL.DETR.NUM_HEADS, cfg.MODEL.DETR.FFN_DIM = 32, 4, 48
    cfg.MODEL.DETR.ENCODER.NUM_LAYERS, cfg.MODEL.DETR.DECODER.NUM_LAYERS = 2, 3
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    return randomise(build_model(cfg), seed=4).eval()


def assert_round_trip(imported, model, tmp_path) -> None:
    """The same weights under the same names, and a configuration that makes the same of them."""
    weights = model.state_dict()
    assert set(imported.weights) == set(weights)
    assert all(torch.equal(imported.weights[key], value) for key, value in weights.items())
    (_, logits, boxes), (_, *expected) = last_layer(build_imported(imported, tmp_path)), last_layer(model)
    assert expected[0].std() > 0.01 and expected[1].std() > 0.01, "a constant output would prove nothing"
    assert (logits - expected[0]).abs().max() < 1e-4 and (boxes - expected[1]).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["dn_detr", "dn_deformable_detr", "dino", "dino_separate"])
def test_a_checkpoint_of_the_authors_comes_back_exactly(name, tmp_path):
    family, model = name.removesuffix("_separate"), build_ours(name)
    stored = argparse.Namespace(nheads=4, pe_temperatureH=20, pe_temperatureW=20, num_queries=NUM_QUERIES)
    torch.save({"model": to_official(model.state_dict(), family), "args": stored}, tmp_path / "theirs.pth")
    imported = import_checkpoint(family, tmp_path / "theirs.pth")
    assert_round_trip(imported, model, tmp_path)
    assert imported.config["TEST"]["DETECTIONS_PER_IMAGE"] == 300


@pytest.mark.parametrize("name", [*DETREX, "two_stage"])
def test_a_checkpoint_of_detrex_comes_back_exactly(name, tmp_path):
    family = "deformable_detr" if name == "two_stage" else name
    model = build_ours("dino_of_detrex" if name == "dino" else name)
    torch.save({"model": to_detrex(model.state_dict(), family), "iteration": 90_000}, tmp_path / "theirs.pth")
    queries = ["MODEL.DETR.NUM_QUERIES", str(NUM_QUERIES)] if name == "two_stage" else []
    imported = import_checkpoint("detrex", tmp_path / "theirs.pth", [*HEADS, *queries])
    assert_round_trip(imported, model, tmp_path)


def test_every_family_of_detrex_is_tried():
    assert set(RULES) == set(DETREX)


def test_a_setting_of_detrex_that_the_file_does_not_tell_is_given_by_hand(tmp_path):
    """DINO for 24 epochs has the authors' position embedding there, for 12 another."""
    model = build_ours("dino_separate")
    torch.save({"model": to_detrex(model.state_dict(), "dino")}, tmp_path / "theirs.pth")
    position = ["MODEL.DETR.POSITION_TEMPERATURE", "20.0", "MODEL.DETR.NECK.POSITION_OFFSET", "0.0"]
    imported = import_checkpoint("detrex", tmp_path / "theirs.pth", [*HEADS, *position])
    assert_round_trip(imported, model, tmp_path)


@pytest.mark.parametrize(("classes", "rows"), [(91, 92), (80, 81), (91, 101)])
def test_label_books_may_be_longer_than_the_classes(classes, rows, tmp_path):
    """The released networks count COCO's category ids: 91 classes, of which 80 are in use, and a book of 92 rows."""
    model = build_ours("dino", num_classes=classes)
    theirs = to_official(model.state_dict(), "dino")
    theirs["label_enc.weight"] = torch.cat([theirs["label_enc.weight"], torch.zeros(rows - classes - 1, 32)])
    assert len(theirs["label_enc.weight"]) == rows
    torch.save({"model": theirs, "args": argparse.Namespace(nheads=4)}, tmp_path / "theirs.pth")
    imported = import_checkpoint("dino", tmp_path / "theirs.pth")
    assert imported.config["MODEL"]["DETR"]["NUM_CLASSES"] == classes
    book = imported.weights["training_groups.ContrastiveDenoisingQueries.label_embedding.weight"]
    assert torch.equal(book, model.state_dict()["training_groups.ContrastiveDenoisingQueries.label_embedding.weight"])
    assert (len(imported.class_names), imported.class_names[1:2]) == ((91, ("person",)) if classes == 91 else (0, ()))


def test_checkpoints_of_other_sources_are_refused(tmp_path):
    model = build_ours("dn_detr")
    torch.save({"model": to_official(model.state_dict(), "dn_detr")}, tmp_path / "dn.pth")
    with pytest.raises(CheckpointError, match="of dn_detr, not of dab_detr: use --source dn_detr"):
        import_checkpoint("dab_detr", tmp_path / "dn.pth")
    with pytest.raises(CheckpointError, match="of dn_detr, not of detrex: use --source dn_detr"):
        import_checkpoint("detrex", tmp_path / "dn.pth")
    torch.save({"model": to_detrex(model.state_dict(), "dn_detr")}, tmp_path / "detrex.pth")
    with pytest.raises(CheckpointError, match="of detrex, not of dn_detr: use --source detrex"):
        import_checkpoint("dn_detr", tmp_path / "detrex.pth")
    torch.save({"model": {"layer.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(
        CheckpointError, match="those are conditional_detr, dab_detr, deformable_detr, detr, dino, dn_detr"
    ):
        import_checkpoint("detrex", tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        import_checkpoint("detrex", tmp_path)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"two_stage_learn_wh": True}, "two_stage_learn_wh is True"),
        ({"transformer_activation": "prelu"}, "transformer_activation is 'prelu'; only 'relu'"),
        ({"embed_init_tgt": False}, "embed_init_tgt is False"),
    ],
)
def test_parts_that_do_not_exist_here_are_named(setting, message, tmp_path):
    theirs = to_official(build_ours("dino").state_dict(), "dino")
    torch.save({"model": theirs, "args": argparse.Namespace(nheads=4, **setting)}, tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint("dino", tmp_path / "theirs.pth")
