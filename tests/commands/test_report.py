"""``detr-distill report``: runs compared by what their folders hold."""

import json

from detr_distill.commands.report import main

from helpers.engine.toy import toy_config


def run(folder, ap, best=None, **changes):
    folder.mkdir()
    (folder / "config.yaml").write_text(toy_config(folder, **changes).dump())
    (folder / "results.json").write_text(json.dumps({"iteration": 7, "datasets": {"val": {"bbox": {"AP": ap}}}}))
    if best is not None:
        (folder / "model_best.json").write_text(json.dumps({"metric": "bbox/AP", "value": best, "iteration": 3}))
    return str(folder)


def test_a_line_for_each_run_and_the_gain_over_the_first(tmp_path, capsys):
    distilled = {"MODEL.META_ARCHITECTURE": "DistillDetector", "MODEL.DISTILL.TEACHER.WEIGHTS": "my.pth"}
    main([run(tmp_path / "plain", 40.25), run(tmp_path / "taught", 43.5, 44.0, **distilled)])
    what, reached = capsys.readouterr().out.split("\n\n")
    assert "FrozenDetector my.pth" in what and "PredictionLoss AttentionLoss" in what
    lines = [line.split() for line in reached.splitlines()[2:]]
    assert lines[0] == [str(tmp_path / "plain"), "val", "8", "40.25"]
    assert lines[1] == [str(tmp_path / "taught"), "val", "8", "43.50", "3.25", "44.00", "at", "4"]
