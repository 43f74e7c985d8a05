"""The command line: a user's error is one block on stderr and exit status 1."""

import json
import re
import subprocess
import sys

from detr_distill.config.build import build_config
from detr_distill.engine import launch
from detr_distill.engine.report import print_message_of, report_user_errors
from detr_distill.errors import ConfigError

import pytest
from helpers.builders import ROOT
from helpers.data.plain_sets import write_set
from helpers.engine.toy import ToyLoader, toy_config, untouched_loggers  # noqa: F401

pytestmark = pytest.mark.usefixtures("untouched_loggers")


@pytest.fixture
def toy_loaders(monkeypatch):
    monkeypatch.setattr("detr_distill.engine.trainer.build_train_loader", lambda cfg: ToyLoader())


def arguments_for(folder, *flags, **changes):
    """A command line that trains the toy model."""
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(toy_config(folder).dump())
    return ["--config-file", str(path), "--num-gpus", "0", *flags, *[str(x) for pair in changes.items() for x in pair]]


def failing(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        launch.main(arguments)
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.count("Error:") == 1
    return error


def test_the_program_itself_prints_a_block_without_stack_trace(tmp_path):
    command = [sys.executable, str(ROOT / "train_net.py"), "--num-gpus", "0", "OUTPUT_DIR", str(tmp_path / "run")]
    result = subprocess.run([*command, "SOLVER.BASE_RL", "1"], capture_output=True, text=True)
    assert result.returncode == 1
    assert "ConfigError: SOLVER.BASE_RL 1 on the command line: unknown key SOLVER.BASE_RL." in result.stderr
    assert "Did you mean SOLVER.BASE_LR" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_the_stack_trace_is_there_for_who_asks(tmp_path, monkeypatch):
    monkeypatch.setenv("DETR_DISTILL_TRACEBACK", "1")
    with pytest.raises(ConfigError, match=r"unknown key SOLVER\.BASE_RL"):
        launch.main(["--num-gpus", "0", "OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.BASE_RL", "1"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["SOLVER.BASE_LR"], "no partner"),
        (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER many"),
        (["BASE_LR", "1"], "Did you mean SOLVER.BASE_LR"),
        (["MODEL.DISTILL.MATCHERS", "None"], r"MODEL.DISTILL.MATCHERS is None. Give \(\) for none"),
    ],
)
def test_a_bad_override_is_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        build_config("", overrides)


def test_a_bad_file_is_named(tmp_path):
    path = tmp_path / "bad.yaml"
    with pytest.raises(ConfigError, match="no such file"):
        build_config(str(path), [])
    path.write_text("VERSION: 2\nSOLVER: {BASE_RATE: 1}")
    with pytest.raises(ConfigError, match=r"bad.yaml: unknown key SOLVER.BASE_RATE. Did you mean SOLVER.BASE_LR"):
        build_config(str(path), [])
    path.write_text("VERSION: 2\nSOLVER: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        build_config(str(path), [])
    path.write_text("VERSION: 2\nSOLVER: !!python/object/apply:os.getcwd []")
    with pytest.raises(ConfigError, match="not valid YAML"):
        build_config(str(path), [])


def test_an_unknown_architecture_is_named(tmp_path, capsys):
    error = failing(arguments_for(tmp_path / "run", **{"MODEL.META_ARCHITECTURE": "ToyDetecter"}), capsys)
    assert "Did you mean ToyDetector" in error
    assert error.strip() in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.LR_SCHEDULER_NAME", "Warmup", "LR_SCHEDULER_NAME.*Warmup"),
        ("SOLVER.ACCUMULATE", 0, "SOLVER.ACCUMULATE is 0"),
        ("SOLVER.OPTIMIZER", "Adam", "AdamW"),
        ("SOLVER.AMP.ENABLED", True, "bfloat16"),
    ],
)
def test_a_bad_setting_is_named(tmp_path, capsys, toy_loaders, key, value, message):
    assert re.search(message, failing(arguments_for(tmp_path / "run", **{key: value}), capsys))


def test_an_unknown_part_of_a_model_is_named(tmp_path, capsys, toy_loaders):
    changes = {"MODEL.META_ARCHITECTURE": "RetinaNet", "MODEL.BACKBONE.NAME": "build_nothing"}
    assert "build_nothing" in failing(arguments_for(tmp_path / "run", **changes), capsys)


def test_a_map_that_a_backbone_does_not_give_is_named(tmp_path, capsys, toy_loaders):
    changes = {"MODEL.META_ARCHITECTURE": "RetinaNet", "MODEL.BACKBONE.NAME": "build_conv_backbone"}
    error = failing(arguments_for(tmp_path / "run", **changes), capsys)
    assert "build_conv_backbone does not give the map 'p3'" in error and "MODEL.RETINANET.IN_FEATURES" in error


def test_train_resume_and_refuse(tmp_path, capsys, toy_loaders):
    folder = tmp_path / "run"
    steps = {"SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR", "SOLVER.STEPS": "(7,)"}
    launch.main(arguments_for(folder, **steps))
    assert (folder / "student_final.pth").exists() and (folder / "config.yaml").exists()
    assert "--resume" in failing(arguments_for(folder, **steps), capsys)
    launch.main(arguments_for(folder, "--resume", **steps, **{"SOLVER.MAX_ITER": 10}))
    assert (folder / "model_0000008.pth").exists()
    assert "SOLVER.BASE_LR: 0.01 there, 0.5 now" in failing(
        arguments_for(folder, "--resume", **steps, **{"SOLVER.BASE_LR": 0.5}), capsys
    )
    launch.main(arguments_for(folder, "--overwrite"))
    assert (tmp_path / "run.old-1" / "model_0000008.pth").exists() and not (folder / "model_0000008.pth").exists()


def test_evaluation_needs_weights_and_leaves_the_configuration(tmp_path, capsys, toy_loaders, monkeypatch):
    folder, val = tmp_path / "run", write_set(tmp_path, f"val_{tmp_path.name}")
    monkeypatch.setattr(launch.DistillTrainer, "test", lambda cfg, model: {})
    val = {"DATASETS.REGISTER": json.dumps([val]), "DATASETS.TEST": f"('{val[0]}',)"}
    launch.main(arguments_for(folder))
    before = (folder / "config.yaml").read_text()
    (folder / "results.json").write_text("of the training")
    assert "--eval-only needs trained weights" in failing(arguments_for(folder, "--eval-only", **val), capsys)
    launch.main(arguments_for(folder, "--eval-only", **val, **{"MODEL.WEIGHTS": folder / "student_final.pth"}))
    launch.main(arguments_for(folder, "--eval-only", "--resume", **val))
    assert (folder / "config.yaml").read_text() == before
    assert (folder / "results.json").read_text() == "of the training"
    assert (folder / "evaluation.json").exists()


def test_without_cuda_gpus_become_one_cpu_process(caplog, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cfg = build_config("", [])
    arguments = launch.argument_parser().parse_args(["--num-gpus", "8"])
    launch.choose_device(cfg, arguments)
    assert cfg.MODEL.DEVICE == "cpu" and arguments.num_gpus == 0
    assert caplog.text.count("one process on the CPU") == 1
    arguments = launch.argument_parser().parse_args(["--num-gpus", "8", "--num-machines", "2"])
    with pytest.raises(ConfigError, match="--num-machines 2"):
        launch.choose_device(cfg, arguments)


def test_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    arguments = launch.argument_parser().parse_args(["--num-gpus", "8"])
    with pytest.raises(ConfigError, match="--num-gpus 8: this machine has 2"):
        launch.choose_device(build_config("", []), arguments)


def test_of_several_processes_the_first_error_alone_is_printed(tmp_path, capsys):
    path = str(tmp_path / "message")
    for rank in range(3):
        with pytest.raises(SystemExit), report_user_errors(path):
            raise ConfigError(f"rank {rank}")
    assert capsys.readouterr().err == ""
    assert print_message_of(path)
    assert "ConfigError: rank 0" in capsys.readouterr().err
    assert not print_message_of(str(tmp_path / "other"))


def test_other_errors_keep_their_stack_trace():
    with pytest.raises(ZeroDivisionError), report_user_errors():
        1 / 0  # noqa: B018


def test_overrides_take_what_a_user_types():
    """A whole number for a decimal key, one bare name for a list."""
    cfg = build_config("", ["MODEL.DETR.DROPOUT", "0", "MODEL.DISTILL.MATCHERS", "FixedMatcher", "DATASETS.TEST", "x"])
    assert cfg.MODEL.DETR.DROPOUT == 0.0 and isinstance(cfg.MODEL.DETR.DROPOUT, float)
    assert cfg.MODEL.DISTILL.MATCHERS == ["FixedMatcher"] and cfg.DATASETS.TEST == ("x",)


def test_flags_may_stand_anywhere():
    parser = launch.argument_parser()
    argv = ["SOLVER.MAX_ITER", "5", "--resume", "SEED", "-1", "--num-gpus", "0", "--config-file=x.yaml"]
    arguments = parser.parse_args(launch.flags_first(parser, argv))
    assert arguments.resume and arguments.num_gpus == 0 and arguments.config_file == "x.yaml"
    assert arguments.opts == ["SOLVER.MAX_ITER", "5", "SEED", "-1"]


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path, capsys, toy_loaders):
    (tmp_path / "file").write_text("")
    arguments = arguments_for(tmp_path / "run", OUTPUT_DIR=tmp_path / "file" / "run")
    assert "OUTPUT_DIR" in failing(arguments, capsys)
    assert "MAX_ITER is 0" in failing(arguments_for(tmp_path / "run", **{"SOLVER.MAX_ITER": 0}), capsys)
