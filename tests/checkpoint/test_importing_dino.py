"""DN-DETR and DINO of their authors, and all families of detrex, become weights and a configuration that fit.

The names are written down twice: here from ours to theirs (tests/parity.py, tests/parity_detrex.py).
"""

from __future__ import annotations

import argparse

from detr_distill.checkpoint.importing import import_checkpoint
from detr_distill.errors import CheckpointError

import pytest
import torch

pytest.importorskip("transformers")

from helpers.checkpoint.our_detectors import AUTHORS, HEADS, NUM_QUERIES, assert_round_trip, build_ours
from helpers.parity import to_official
from helpers.parity_detrex import FAMILIES as DETREX
from helpers.parity_detrex import to_detrex


@pytest.mark.parametrize("name", AUTHORS)
def test_a_checkpoint_of_the_authors_comes_back_exactly(name, tmp_path):
    family, model = AUTHORS[name], build_ours(name)
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


def test_a_setting_of_detrex_that_the_file_does_not_tell_is_given_by_hand(tmp_path):
    """DINO for 24 epochs has the authors' position embedding there, for 12 another."""
    model = build_ours("dino_separate")
    torch.save({"model": to_detrex(model.state_dict(), "dino")}, tmp_path / "theirs.pth")
    position = ["MODEL.DETR.POSITION_TEMPERATURE", "20.0", "MODEL.DETR.NECK.POSITION_OFFSET", "0.0"]
    imported = import_checkpoint("detrex", tmp_path / "theirs.pth", [*HEADS, *position])
    assert_round_trip(imported, model, tmp_path)


@pytest.mark.parametrize(("classes", "rows"), [(91, 92), (80, 81), (91, 101)])
def test_label_embeddings_may_be_longer_than_the_classes(classes, rows, tmp_path):
    """The released networks count COCO's category ids: 91 classes, of which 80 are in use, and 92 rows."""
    model = build_ours("dino", num_classes=classes)
    theirs = to_official(model.state_dict(), "dino")
    theirs["label_enc.weight"] = torch.cat([theirs["label_enc.weight"], torch.zeros(rows - classes - 1, 32)])
    assert len(theirs["label_enc.weight"]) == rows
    torch.save({"model": theirs, "args": argparse.Namespace(nheads=4)}, tmp_path / "theirs.pth")
    imported = import_checkpoint("dino", tmp_path / "theirs.pth")
    assert imported.config["MODEL"]["DETR"]["NUM_CLASSES"] == classes
    name = "training_groups.ContrastiveDenoisingQueries.label_embedding.weight"
    assert torch.equal(imported.weights[name], model.state_dict()[name])
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
