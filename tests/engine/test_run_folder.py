"""Which runs may use a folder that is in use."""

from detr_distill.engine.run_folder import claim_run_folder, differences, output_folder, prepare_run_folder
from detr_distill.errors import ConfigError

import pytest
from helpers.engine.toy import toy_config


@pytest.fixture
def folder(tmp_path):
    """The folder of a run with one checkpoint."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.yaml").write_text(toy_config(path).dump())
    (path / "model_0000002.pth").write_bytes(b"weights")
    (path / "last_checkpoint").write_text("model_0000002.pth")
    return path


def test_a_new_or_empty_folder_is_free(tmp_path):
    for resume in (False, True):
        prepare_run_folder(toy_config(tmp_path / "none"), resume=resume)
        prepare_run_folder(toy_config(tmp_path), resume=resume)


def test_a_folder_with_checkpoints_is_taken(folder):
    with pytest.raises(ConfigError, match=r"(?s)run of this configuration.*--resume.*another OUTPUT_DIR.*run.old-1"):
        prepare_run_folder(toy_config(folder))
    (folder / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="with checkpoints"):
        prepare_run_folder(toy_config(folder))


def test_another_configuration_is_shown_key_by_key(folder):
    with pytest.raises(ConfigError, match=r"holds another run.\n  SOLVER.BASE_LR: 0.01 there, 0.5 now\n"):
        prepare_run_folder(toy_config(folder, **{"SOLVER.BASE_LR": 0.5}))


def test_a_start_that_failed_locks_nothing(folder):
    (folder / "model_0000002.pth").unlink()
    (folder / "last_checkpoint").unlink()
    prepare_run_folder(toy_config(folder, **{"SOLVER.BASE_LR": 0.5}))


def test_a_run_that_left_no_checkpoint_is_only_in_the_way_of_another(folder):
    (folder / "model_0000002.pth").unlink()
    (folder / "last_checkpoint").unlink()
    (folder / "metrics.json").write_text("{}")
    prepare_run_folder(toy_config(folder))
    with pytest.raises(ConfigError, match=r"SOLVER.BASE_LR"):
        prepare_run_folder(toy_config(folder, **{"SOLVER.BASE_LR": 0.5}))
    prepare_run_folder(toy_config(folder, **{"SOLVER.BASE_LR": 0.5}), resume=True)


def test_resuming_accepts_what_does_not_change_the_training(folder):
    steps = {"SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR"}
    (folder / "config.yaml").write_text(toy_config(folder, **steps).dump())
    harmless = {
        "SOLVER.MAX_ITER": 20,
        "DATALOADER.NUM_WORKERS": 0,
        "TEST.EVAL_PERIOD": 7,
        "SOLVER.CHECKPOINT_PERIOD": 2,
    }
    prepare_run_folder(toy_config(folder, **steps, **harmless), resume=True)
    # Stretching a cosine would make the learning rate jump.
    cosine = {"SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR"}
    (folder / "config.yaml").write_text(toy_config(folder, **cosine).dump())
    with pytest.raises(ConfigError, match=r"SOLVER.MAX_ITER"):
        prepare_run_folder(toy_config(folder, **cosine, **harmless), resume=True)
    (folder / "config.yaml").write_text(toy_config(folder, **steps).dump())
    with pytest.raises(ConfigError, match=r"(?s)--resume.*SOLVER.OPTIMIZER: 'AdamW' there, 'SGD' now"):
        prepare_run_folder(toy_config(folder, **{"SOLVER.OPTIMIZER": "SGD", **steps, **harmless}), resume=True)


def test_overwrite_moves_the_old_run_aside(folder):
    content = sorted(path.name for path in folder.iterdir())
    for number in (1, 2):
        prepare_run_folder(toy_config(folder), overwrite=True)
        moved = folder.with_name(f"run.old-{number}")
        assert sorted(path.name for path in moved.iterdir()) == content and not folder.exists()
        moved_copy = folder
        moved_copy.mkdir()
        for name in content:
            (moved_copy / name).write_bytes((moved / name).read_bytes())


def test_a_key_that_an_older_configuration_lacks_had_its_default(folder):
    text = (folder / "config.yaml").read_text()
    assert "  ACCUMULATE: 1\n" in text
    (folder / "config.yaml").write_text(text.replace("  ACCUMULATE: 1\n", ""))
    assert differences(folder, toy_config(folder)) == {}
    assert differences(folder, toy_config(folder, **{"SOLVER.ACCUMULATE": 2})) == {"SOLVER.ACCUMULATE": (1, 2)}


@pytest.mark.parametrize("damage", [b"a: [", b"\xff\xfe", b"", b"text", b"SOLVER: {BASE_LR: 0.5}\n", None])
def test_a_damaged_configuration_costs_a_warning(folder, caplog, damage):
    if damage is None:
        (folder / "config.yaml").unlink()
    else:
        (folder / "config.yaml").write_bytes(damage)
    prepare_run_folder(toy_config(folder), resume=True)
    assert "config.yaml cannot be read, so its settings are not compared" in caplog.text
    with pytest.raises(ConfigError, match="with checkpoints"):
        prepare_run_folder(toy_config(folder))


def test_an_aborted_start_is_in_nobody_s_way(tmp_path):
    cfg = toy_config(tmp_path / "run")
    with claim_run_folder(cfg):
        for name in ("log.txt", "metrics.json", "events.out.tfevents.1"):
            (tmp_path / "run" / name).write_text("")
        (tmp_path / "run" / "config.yaml").write_text(cfg.dump())
    for how in ({}, {"resume": True}, {"overwrite": True}):
        with claim_run_folder(toy_config(tmp_path / "run", **{"SOLVER.BASE_LR": 0.5}), **how):
            pass
    assert not (tmp_path / "run.old-1").exists()


def test_home_is_found_and_other_paths_stay_as_they_are(monkeypatch):
    monkeypatch.setenv("HOME", "/users/me")
    assert output_folder("~") == "/users/me" and output_folder("~/runs/a") == "/users/me/runs/a"
    for path in (".", "..", "output/x", "/a/b~", "./~x"):
        assert output_folder(path) == path


@pytest.mark.parametrize("name", [".", ".."])
def test_a_run_may_stand_where_the_program_was_started(tmp_path, monkeypatch, name):
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    with claim_run_folder(toy_config(name)):
        (here / name / "model_0000002.pth").write_bytes(b"weights")
    with (
        pytest.raises(ConfigError, match=r"--overwrite, which renames it to .*\.old-1"),
        claim_run_folder(toy_config(name)),
    ):
        pass
    with pytest.raises(ConfigError, match="is or contains"), claim_run_folder(toy_config(name), overwrite=True):
        pass
    with claim_run_folder(toy_config(name), resume=True):
        pass
