"""Everything that a run needs is looked at before its folder is touched and its first iteration."""

from __future__ import annotations

import json
import re

from detr_distill.config.build import build_config
from detr_distill.engine import launch
from detr_distill.engine.starting import check
from detr_distill.engine.starting.check import check_start
from detr_distill.errors import ConfigError, DataError

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.builders import ROOT
from helpers.data.plain_sets import write_set
from helpers.engine.toy import untouched_loggers  # noqa: F401

pytestmark = pytest.mark.usefixtures("untouched_loggers")


@pytest.fixture
def made(tmp_path):
    """Writes sets under names of this test alone; what a test registers is forgotten."""
    before = set(DatasetCatalog)
    yield lambda name, **keys: write_set(tmp_path, f"{name}_{tmp_path.name}", **keys)
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def words_for(train=(), test=(), **keys):
    """KEY VALUE pairs of a run on some entries of DATASETS.REGISTER."""
    entries = {entry[0]: entry for entry in (*train, *test)}
    keys = {"MODEL.DETR.NUM_CLASSES": 3, "TEST.EVAL_PERIOD": 0, **keys}
    pairs = [str(word) for pair in keys.items() for word in pair]
    names = [repr(tuple(entry[0] for entry in some)) for some in (train, test)]
    register = json.dumps(list(entries.values()))
    return [*pairs, "DATASETS.REGISTER", register, "DATASETS.TRAIN", names[0], "DATASETS.TEST", names[1]]


def settings(*sets, **keys):
    file = str(ROOT / "configs/digits/conditional_student.yaml")
    return build_config(file, words_for(*sets, **{"MODEL.DEVICE": "cpu", **keys}))


def test_sets_without_fault_say_nothing(made):
    assert check_start(settings([made("a")], [made("b")]), training=True) == []


def test_a_test_set_is_read_before_the_run(made, tmp_path):
    val = made("val")
    (tmp_path / val[0] / "2.png").unlink()
    with pytest.raises(DataError, match=r"lacks 1 of the 4 images .*: 2\.png"):
        check_start(settings([made("a")], [val]), training=True)


def test_a_training_set_is_not_read_to_evaluate(made, tmp_path):
    train = made("train")
    (tmp_path / train[0] / "2.png").unlink()
    assert check_start(settings([train], [made("val")]), training=False) == []


@pytest.mark.parametrize("classes", [3, 2])
def test_sets_that_differ_ask_for_no_number_of_classes(made, classes):
    sets = [made("train")], [made("val", classes=("red", "green"))]
    with pytest.raises(DataError, match=r"the second lacks 'blue'") as caught:
        check_start(settings(*sets, **{"MODEL.DETR.NUM_CLASSES": classes}), training=True)
    assert "NUM_CLASSES" not in str(caught.value)


def test_the_number_of_classes_is_checked(made):
    with pytest.raises(DataError, match=r"MODEL\.DETR\.NUM_CLASSES is 5, .* Set MODEL\.DETR\.NUM_CLASSES to 3"):
        check_start(settings([made("a")], **{"MODEL.DETR.NUM_CLASSES": 5}), training=True)


def crowds(content):
    for item in content["annotations"]:
        item["iscrowd"] = 1


@pytest.mark.parametrize("change", [lambda content: content["annotations"].clear(), crowds])
def test_nothing_to_learn_from_is_refused(made, change):
    bare = made("bare", change=change)
    with pytest.raises(DataError, match=r"TRAIN bare\w+: not one usable object in 4 images"):
        check_start(settings([bare]), training=True)
    assert check_start(settings([], [bare]), training=False) == [
        f"DATASETS.TEST {bare[0]} has no annotated object: predictions for it are written, and there is no AP."
    ]


def test_little_to_learn_from_is_said(made):
    def keep_three(content):
        del content["annotations"][3:]

    few, bare = (
        made("few", images=5, change=keep_three),
        made("bare", change=lambda content: content["annotations"].clear()),
    )
    warnings = check_start(settings([few, bare]), training=True)
    assert [re.search(r"\w+: \d+ of \d+ images", text)[0] for text in warnings] == [
        f"{few[0]}: 3 of 5 images", f"{bare[0]}: 4 of 4 images",
    ]  # fmt: skip
    assert check_start(settings([few], **{"DATALOADER.FILTER_EMPTY_ANNOTATIONS": True}), training=True) == []


def test_more_objects_than_queries_are_counted(made):
    train = made("train", objects=8, images=3, change=lambda content: content["annotations"].pop())
    sets = [train, made("small")]
    (warning,) = check_start(settings(sets, **{"MODEL.DETR.NUM_QUERIES": 7}), training=True)
    assert f"{train[0]}: 2 of 3 images have more than 7 objects, at most 8;" in warning
    assert "Set MODEL.DETR.NUM_QUERIES to 8 or more" in warning
    hybrid = {"MODEL.DETR.TRAINING_GROUPS": "('HybridQueries',)", "MODEL.DETR.HYBRID_QUERIES.NUM_QUERIES": 12}
    (warning,) = check_start(settings([train], **hybrid), training=True)
    assert "more than 2 objects" in warning and "Set MODEL.DETR.HYBRID_QUERIES.NUM_QUERIES to 48 or more" in warning
    (warning,) = check_start(settings([made("few")], [train], **{"MODEL.DETR.NUM_QUERIES": 7}), training=True)
    assert warning.startswith(f"DATASETS.TEST {train[0]}: 2 of 3 images have more than 7 objects")
    assert check_start(settings([train], **{"MODEL.META_ARCHITECTURE": "FCOS", "MODEL.RETINANET.NUM_CLASSES": 3}),
                       training=True) == []  # fmt: skip


def test_a_teacher_is_looked_for(made, tmp_path):
    file = str(ROOT / "configs/digits/d3etr_conditional.yaml")
    words = words_for([made("a")], **{"MODEL.DEVICE": "cpu"})
    for key, value in (("WEIGHTS", "none.pth"), ("CONFIG_FILE", "none.yaml")):
        cfg = build_config(file, [*words, f"MODEL.DISTILL.TEACHER.{key}", value])
        with pytest.raises(ConfigError, match=rf"MODEL.DISTILL.TEACHER.{key} names {value}, which does not exist"):
            check_start(cfg, training=True)


@pytest.mark.parametrize("metric", ["", "bbox/APs", "bbox/AP-green", "b/bbox/AP50", "b/bbox/AP-red"])
def test_a_metric_that_will_be_computed(made, metric):
    first, second = made("a"), made("b")
    metric = metric.replace("b/", f"{second[0]}/") if metric.startswith("b/") else metric
    check_start(settings([first], [first, second], **{"TEST.BEST_METRIC": metric}), training=True)


@pytest.mark.parametrize("metric", ["bbox/APP", "AP", "segm/AP", "bbox/AP-pink", "c/bbox/AP"])
def test_a_metric_that_will_not_be_computed(made, metric):
    cfg = settings([made("a")], [made("b")], **{"TEST.BEST_METRIC": metric})
    with pytest.raises(ConfigError, match=rf"TEST\.BEST_METRIC is '{metric}', which is not computed\..*bbox/APs"):
        check_start(cfg, training=True)


def test_the_checks_come_before_the_folder(made, tmp_path, capsys):
    train = made("train", objects=5)
    words = words_for([train], [["gone", str(tmp_path / "gone.json"), str(tmp_path)]])
    file = ["--config-file", str(ROOT / "configs/digits/conditional_student.yaml"), "--num-gpus", "0"]
    with pytest.raises(SystemExit):
        launch.main([*file, *words, "OUTPUT_DIR", str(tmp_path / "out")])
    assert "gone.json cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_warnings_are_in_the_log_of_the_run(tmp_path, monkeypatch, capsys):
    """Although they are known before there is one."""
    monkeypatch.setattr(launch, "check_start", lambda cfg, training: [f"training is {training}"])
    monkeypatch.setattr(launch, "evaluate_only", lambda cfg, resume: {})
    launch.main(["--eval-only", "--num-gpus", "0", "OUTPUT_DIR", str(tmp_path / "out"), "MODEL.DEVICE", "cpu"])
    assert "training is False" in (tmp_path / "out/log.txt").read_text()
    assert len(re.findall("WARN.*training is False", capsys.readouterr().out)) == 1


def test_preparing_alone_compares_the_lists(made):
    other = made("b", classes=("green", "red", "blue"))
    with pytest.raises(DataError, match="another order"):
        check.prepare_datasets(settings([made("a")], [other]))
