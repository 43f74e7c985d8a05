"""Files that are read: several bases, one base twice, YAML's own way of joining blocks."""

from __future__ import annotations

from detr_distill.config.build import build_config


def test_a_base_may_be_reached_twice(tmp_path):
    """Two files that share a base are no circle."""
    (tmp_path / "root.yaml").write_text("SEED: 1\nSOLVER: {MOMENTUM: 0.5}\n")
    (tmp_path / "a.yaml").write_text("_BASE_: root.yaml\nSEED: 2\n")
    (tmp_path / "b.yaml").write_text("_BASE_: ./root.yaml\nSOLVER: {GAMMA: 0.5}\n")
    (tmp_path / "run.yaml").write_text("_BASE_: [a.yaml, b.yaml]\nVERSION: 2\n")
    cfg = build_config(str(tmp_path / "run.yaml"), [])
    assert (cfg.SOLVER.MOMENTUM, cfg.SOLVER.GAMMA) == (0.5, 0.5)


def test_a_merged_block_may_be_overridden(tmp_path):
    """``<<`` is YAML's own inheritance: a key beside it is meant to win."""
    file = tmp_path / "run.yaml"
    file.write_text("TEST: &a {EVAL_PERIOD: 5}\nVERSION: 2\nSOLVER: {GAMMA: 0.5}\n")
    assert build_config(str(file), []).TEST.EVAL_PERIOD == 5
    file.write_text("VERSION: 2\nMODEL:\n  RPN: &rpn {NMS_THRESH: 0.5, LOSS_WEIGHT: 2.0}\n  DETR: {}\n")
    assert build_config(str(file), []).MODEL.RPN.NMS_THRESH == 0.5
    file.write_text(
        "VERSION: 2\nMODEL:\n  ROI_MASK_HEAD: &head {NUM_CONV: 2, NORM: GN}\n  ROI_BOX_HEAD: {<<: *head, NUM_CONV: 3}\n"
    )
    node = build_config(str(file), []).MODEL.ROI_BOX_HEAD
    assert (node.NUM_CONV, node.NORM) == (3, "GN")


def test_a_home_folder_and_a_byte_order_mark(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "root.yaml").write_bytes(b"\xef\xbb\xbfSEED: 7\n")
    (tmp_path / "run.yaml").write_text("_BASE_: ~/root.yaml\n")
    assert build_config(str(tmp_path / "run.yaml"), []).SEED == 7
