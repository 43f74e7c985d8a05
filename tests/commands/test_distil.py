"""``detr-distill distil``: the table of methods, the file that it writes, and the same command a second time."""

import json
import re
import shlex

from detr_distill.commands import distil, evaluate, train
from detr_distill.commands.recipe.compose import FILE, compose
from detr_distill.commands.recipe.methods import METHODS, choose_method, given_by
from detr_distill.commands.recipe.schedule import checkpoint_period, epochs_keys
from detr_distill.commands.recipe.students import find_student, student_names
from detr_distill.config.build import build_config
from detr_distill.engine import launch
from detr_distill.engine.folder.lock import locked
from detr_distill.engine.run_folder import differences
from detr_distill.hugging_face.folder import save_folder
from detr_distill.options.recipes import distil_parser

import pytest
from detectron2.modeling import build_model
from helpers.builders import ROOT, make_inputs
from helpers.data.layouts import coco, picture, voc
from helpers.engine.toy import untouched_loggers  # noqa: F401
from helpers.hugging_face import build_student, student_cfg
from helpers.make_golden import teachers_without_weights

pytestmark = pytest.mark.usefixtures("untouched_loggers")
SMALL = ["SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TRAIN", "(40,)"]
KINDS = {
    "dense": "configs/detr/conditional_r50.yaml",
    "sampling": "configs/detr/dino_r50.yaml",
    "rtdetr": "configs/transformers/rtdetr_v2_r18.yaml",
    "dfine": "configs/transformers/dfine_n.yaml",
    "convolutional": "configs/convolutional/fcos_r50.yaml",
}


@pytest.fixture
def files(tmp_path):
    """A set of pictures, a tiny student's configuration and a tiny teacher of transformers."""
    coco(tmp_path / tmp_path.name, "train.json", ".", names="abcdefgh")
    text = f"_BASE_: {ROOT}/configs/digits/conditional_student.yaml\nINPUT: {{MIN_SIZE_TEST: 40}}\n"
    (tmp_path / "student.yaml").write_text(f"{text}MODEL: {{CONV_BACKBONE: {{CHANNELS: [8, 8, 8]}}}}\n")
    save_folder(build_student(tmp_path, "rt_detr_v2", MODEL__DETR__NUM_CLASSES=1), tmp_path / "teacher", ["cat"])
    return tmp_path


def command(files, *words):
    student = ["--student", str(files / "student.yaml"), "--teacher", str(files / "teacher")]
    given = ["--train", str(files / files.name), "--output", str(files / "run"), "--num-gpus", "0"]
    return [*student, *given, *words, *SMALL]


def finished(argv, capsys):
    """What a call printed that ended well."""
    distil.main(argv)
    return capsys.readouterr().out


def test_a_run_is_one_command_and_the_same_command_again(files, capsys):
    argv = command(files, "--epochs", "1", "--hold-out", "0.25")
    text = finished(argv, capsys)
    assert "teacher: rt_detr_v2 of transformers" in text and "AdaptiveMatcher + FixedMatcher + PredictionLoss" in text
    assert "2 of the 8 images, held out" in text
    run = files / "run"
    solver = build_config(str(run / "config.yaml"), []).SOLVER
    assert (solver.MAX_ITER, solver.CHECKPOINT_PERIOD) == (3, 1)
    assert (run / "student_final.pth").is_file() and json.loads((run / "results.json").read_text())["iteration"] == 2
    before = (run / "metrics.json").read_text()
    assert "is finished: AP" in finished(argv, capsys)
    # As if it had been stopped behind its second step.
    (run / "last_checkpoint").write_text("model_0000001.pth")
    weights = (run / "student_final.pth").read_bytes()
    for name in ("model_final.pth", "model_0000002.pth", "student_final.pth"):
        (run / name).unlink()
    assert "is finished" not in finished(argv, capsys)
    assert (run / "student_final.pth").read_bytes() == weights and (run / "metrics.json").read_text() != before
    with pytest.raises(SystemExit):
        distil.main(command(files, "--epochs", "2", "--hold-out", "0.25"))
    assert "--output" in (error := capsys.readouterr().err) and "SOLVER.EPOCHS: 1.0 there, 2.0 now" in error
    # The file runs to the same model in train_net.py, and a run's folder is a teacher and can be evaluated.
    again = launch.setup(launch.argument_parser().parse_args(["--config-file", str(run / FILE), "--num-gpus", "0"]))
    assert differences(run, again) == {}
    evaluate.main(["--weights", str(run), "--num-gpus", "0", "DATALOADER.NUM_WORKERS", "0"])
    found = json.loads((run / "evaluation" / "evaluation.json").read_text())["datasets"]
    assert found == json.loads((run / "results.json").read_text())["datasets"]


def test_a_start_that_fails_leaves_no_folder(files, capsys):
    (files / files.name / "a.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit) as done:
        distil.main(command(files, "--epochs", "1"))
    assert done.value.code == 1 and "a.png" in capsys.readouterr().err
    assert not (files / "run").exists()


def test_a_folder_in_use_is_left_alone(files, capsys):
    with locked(files / "run"), pytest.raises(SystemExit) as done:
        distil.main(command(files, "--epochs", "1"))
    assert done.value.code == 1 and re.search("run is in use by process", capsys.readouterr().err)
    assert [file.name for file in (files / "run").iterdir()] == ["run.lock"]


def test_a_dry_run_shows_the_file_and_leaves_nothing(files, capsys):
    text = finished(command(files, "--dry-run", "MODEL.DISTILL.LOSSES", "QueryRelationLoss"), capsys)
    assert "LOSSES: [QueryRelationLoss]" in text and "EPOCHS: 50.0" in text and not (files / "run").exists()


def test_parts_of_voc_have_all_classes_of_both(tmp_path):
    folder = voc(tmp_path / tmp_path.name, train="a", val="b")
    argv = ["--train", str(folder), "--student", "conditional_r18", "--output", "run", "SOLVER.MAX_ITER", "20"]
    recipe = compose(distil_parser().parse_args(argv), "conditional_r18", "--student", shlex.join(argv))
    (tmp_path / "recipe.yaml").write_text(recipe.yaml)
    cfg = build_config(str(tmp_path / "recipe.yaml"), [])
    assert list(cfg.DATASETS.CLASS_NAMES) == ["a", "b"] and cfg.MODEL.DETR.NUM_CLASSES == 0
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.TEST.EVAL_PERIOD) == (20, (16,), 2)
    assert cfg.MODEL.META_ARCHITECTURE == "DetrDetector"
    arguments = distil_parser().parse_args([*argv[:-2], "SOLVER.MAX_ITER", "1"])
    assert "STEPS: []" in compose(arguments, "conditional_r18", "--student", "").yaml


@pytest.mark.parametrize("unlabelled", [False, True])
def test_images_without_labels_have_the_teachers_boxes(unlabelled, files):
    picture(files / "more" / "x.png", 200)
    argv = command(files, *(["--unlabeled", str(files / "more")] if unlabelled else []))
    recipe = compose(distil_parser().parse_args(argv), str(files / "student.yaml"), "--student", "")
    (files / "recipe.yaml").write_text(recipe.yaml)
    cfg = build_config(str(files / "recipe.yaml"), [])
    images = cfg.MODEL.DISTILL.PSEUDO_LABELS.IMAGES
    assert images == ("unlabeled" if unlabelled else "none")
    assert bool(cfg.DATALOADER.UNLABELED_PER_BATCH) is unlabelled


def test_the_length_of_a_run_moves_its_drop_and_its_warm_up():
    base = build_config("configs/lgd/fcos_r50_plain.yaml", [])
    given = epochs_keys(base, None, {"SOLVER.EPOCHS": 20.0})
    assert given == epochs_keys(base, 20, {})
    assert (given["SOLVER.EPOCH_STEPS"], given["SOLVER.WARMUP_EPOCHS"], given["TEST.EVAL_EPOCHS"]) == ([16.0], 1.0, 2.0)
    assert [checkpoint_period(length, 50) for length in (3, 200, 10_000)] == [1, 20, 50]


@pytest.mark.parametrize(
    ("teacher", "student", "losses"),
    [
        ("dfine", "dfine", ("PredictionLoss", "LocalizationLoss")),
        ("dense", "dense", ("PredictionLoss", "AttentionLoss")),
        ("sampling", "sampling", ("PredictionLoss", "AttentionLoss", "SampledAttentionLoss")),
        ("rtdetr", "dfine", ("PredictionLoss",)),
        ("dense", "rtdetr", ("PredictionLoss",)),
        ("convolutional", "dfine", ("PredictionLoss",)),
        ("rtdetr", "convolutional", ("PredictionLoss",)),
    ],
)
def test_the_table(teacher, student, losses):
    given = {name: given_by(build_config(str(ROOT / KINDS[name]), [])) for name in (teacher, student)}
    method = choose_method(given[teacher], given[student])
    assert method.losses == losses
    expected = ("OverlapMatcher",) if student == "convolutional" else ("AdaptiveMatcher",)
    assert method.matchers[:1] == expected
    assert ("FixedMatcher" in method.matchers) == ("convolutional" not in (teacher, student))


@pytest.mark.parametrize(("teacher", "student"), [("deformable", "dino"), ("retinanet", "smca"), ("adamixer", "fcos")])
def test_what_the_table_chooses_builds_and_trains_a_step(teacher, student):
    files = [f"configs/digits/{name}_student.yaml" for name in (teacher, student)]
    cfgs = [build_config(file, ["MODEL.DEVICE", "cpu"]) for file in files]
    method = choose_method(*map(given_by, cfgs))
    cfg, node = cfgs[1], "MODEL.DISTILL"
    keys = {
        "MODEL.META_ARCHITECTURE": "DistillDetector",
        f"{node}.STUDENT_ARCHITECTURE": cfg.MODEL.META_ARCHITECTURE,
        f"{node}.TEACHER.CONFIG_FILE": files[0],
        f"{node}.MATCHERS": method.matchers,
        f"{node}.LOSSES": method.losses,
        **method.keys,
    }
    cfg.merge_from_list([word for pair in keys.items() for word in pair])
    with teachers_without_weights():
        losses = build_model(cfg).train()(make_inputs(), iteration=0)
    assert any(name.startswith("loss_distill_") for name in losses)
    assert all(value.isfinite() for value in losses.values())


def test_every_row_of_the_table_is_reached():
    kinds = [given_by(build_config(str(ROOT / file), [])) for file in KINDS.values()]
    reached = [choose_method(teacher, student) for teacher in kinds for student in kinds]
    assert [row for row in METHODS if row not in reached] == []


def test_every_name_is_a_plain_detector():
    names = student_names()
    assert {
        "rtdetr_v2_r18",
        "rtdetr_v2_r50",
        "dfine_n",
        "dfine_s",
        "dfine_m",
        "dfine_l",
        "dino_r50",
        "fcos_r50",
    } <= set(names)
    assert not [name for name, file in names.items() if "DistillDetector" in file.read_text()]


def test_a_folder_of_transformers_is_trained_further(tmp_path):
    detr = build_model(student_cfg(tmp_path, "detr"))
    save_folder(detr, tmp_path / "detr")
    student = find_student(str(tmp_path / "detr"), "--student")
    cfg = build_config(student.base, [])
    cfg.merge_from_list([word for pair in student.keys.items() for word in pair])
    assert str(tmp_path / "detr") == cfg.MODEL.TRANSFORMERS.FOLDER and list(cfg.MODEL.TRANSFORMERS.SIZE) == []
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.DETR.NUM_CLASSES", 5])
    assert build_model(cfg).size is None


def test_a_plain_training_by_a_name(files, capsys):
    argv = ["--detector", str(files / "student.yaml"), "--train", str(files / files.name), "--num-gpus", "0"]
    train.main([*argv, "--output", str(files / "plain"), "SOLVER.MAX_ITER", "1", *SMALL])
    cfg = build_config(str(files / "plain" / "config.yaml"), [])
    assert cfg.MODEL.META_ARCHITECTURE == "DetrDetector" and (files / "plain" / "model_final.pth").is_file()
    assert "method" not in capsys.readouterr().out
