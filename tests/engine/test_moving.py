"""--overwrite renames an earlier run, and nothing that the new one needs."""

from detr_distill.data import register_datasets
from detr_distill.engine.folder.moving import check_movable, free_name, move_aside
from detr_distill.engine.run_folder import claim_run_folder
from detr_distill.errors import ConfigError

import pytest
from bad_input.folder import run_in
from helpers.data.plain_sets import write_set
from helpers.engine.toy import toy_config


def claim(folder, **changes):
    return claim_run_folder(toy_config(folder, **changes), overwrite=True)


def test_the_old_run_is_renamed_and_the_new_one_keeps_the_folder(tmp_path):
    folder = run_in(tmp_path / "run")
    with claim(folder):
        assert (tmp_path / "run.old-1" / "model_0000002.pth").exists()
        assert [path.name for path in folder.iterdir()] == ["run.lock"]
        with pytest.raises(ConfigError, match="is in use by"), claim(folder):
            pass
        (folder / "model_0000005.pth").write_bytes(b"weights")
    assert free_name(folder).name == "run.old-2"


@pytest.mark.parametrize("error", [ConfigError("too little"), KeyboardInterrupt(), SystemExit(1)])
def test_a_start_that_fails_puts_the_old_run_back(tmp_path, error):
    folder = run_in(tmp_path / "run")
    before = sorted(path.name for path in folder.iterdir())

    def fail():
        for name in ("log.txt", "config.yaml"):
            (folder / name).write_text("of the new run")
        raise error

    with pytest.raises(type(error)), claim(folder):
        fail()
    assert sorted(path.name for path in folder.iterdir()) == [*before, "run.lock"]
    assert "VERSION" in (folder / "config.yaml").read_text() and not (tmp_path / "run.old-1").exists()


@pytest.mark.parametrize("kept", ["model_0000005.pth", "metrics.json"])
def test_a_run_that_fails_later_stays(tmp_path, kept):
    folder = run_in(tmp_path / "run")

    def fail():
        (folder / kept).write_text("{}")
        raise ConfigError("later")

    with pytest.raises(ConfigError), claim(folder):
        fail()
    assert (folder / kept).exists() and (tmp_path / "run.old-1").exists()


def test_a_run_in_use_is_not_renamed(tmp_path):
    folder = run_in(tmp_path / "run")
    with claim_run_folder(toy_config(folder), resume=True):
        with pytest.raises(ConfigError, match="is in use by"), claim(folder):
            pass
        assert not (tmp_path / "run.old-1").exists()


def test_of_a_link_what_it_points_to_is_renamed(tmp_path):
    real = run_in(tmp_path / "disk" / "run")
    link = tmp_path / "link"
    link.symlink_to(real)
    with claim(link):
        (link / "model_0000005.pth").write_bytes(b"weights")
    assert link.resolve() == real and (real / "model_0000005.pth").exists()
    assert (tmp_path / "disk" / "run.old-1" / "model_0000002.pth").exists()


def test_the_configuration_that_starts_the_run_may_lie_in_the_folder(tmp_path):
    """It has been read; so has what stands in keys that name nothing there."""
    folder = run_in(tmp_path / "run")
    check_movable(folder, toy_config(folder, **{"MODEL.WEIGHTS": tmp_path / "run" / "missing.pth"}))


def test_the_file_of_the_configuration_and_its_bases_stay(tmp_path):
    folder, outside = run_in(tmp_path / "run"), tmp_path / "mine.yaml"
    for name in ("base", "own", "config"):
        (folder / f"{name}.yaml").write_text("SEED: 3\n")
    outside.write_text("_BASE_: run/base.yaml\n")
    cfg = toy_config(folder)
    check_movable(folder, cfg, str(folder / "config.yaml"))  # the new run writes it again
    for file, named in ((outside, "base"), (folder / "own.yaml", "own")):
        with pytest.raises(ConfigError, match=rf"(?s)reads what is in it:.*--config-file or .*run/{named}\.yaml"):
            check_movable(folder, cfg, str(file))
    with pytest.raises(ConfigError, match=r"(?s)_BASE_ of the teacher's CONFIG_FILE: .*run/base\.yaml"):
        check_movable(folder, toy_config(folder, **{"MODEL.DISTILL.TEACHER.CONFIG_FILE": outside}))


def test_images_that_an_annotation_file_names_by_full_paths_stay(tmp_path):
    def use_full_paths(content):
        for image in content["images"]:
            image["file_name"] = str(folder / "pictures" / image["file_name"])

    folder, name = run_in(tmp_path / "run"), f"set_{tmp_path.name}"
    write_set(folder, "pictures")
    made = write_set(tmp_path, name, change=use_full_paths)
    register_datasets([made])
    for key in ("TRAIN", "UNLABELED"):
        with pytest.raises(ConfigError, match=rf"(?s)reads what is in it:\n  images of {name}: .*run/pictures"):
            check_movable(folder, toy_config(folder, **{f"DATASETS.{key}": f"('{name}',)"}))


def test_what_a_teacher_s_configuration_names_stays(tmp_path):
    folder = run_in(tmp_path / "run")
    (folder / "train.json").write_text("{}")
    teacher = tmp_path / "teacher.yaml"
    teacher.write_text(f"DATASETS: {{REGISTER: [[mine, {folder}/train.json, /images]]}}")
    cfg = toy_config(folder, **{"MODEL.DISTILL.TEACHER.CONFIG_FILE": teacher})
    with pytest.raises(ConfigError, match=r"(?s)DATASETS.REGISTER of the teacher: .*train.json"):
        check_movable(folder, cfg)


def test_a_mount_point_is_not_renamed(tmp_path, monkeypatch):
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path)
    with pytest.raises(ConfigError, match="a disk is mounted there"):
        check_movable(tmp_path, toy_config(tmp_path))


def test_home_is_not_renamed(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    with pytest.raises(ConfigError, match="is or contains your home folder"):
        check_movable(tmp_path, toy_config(tmp_path))


def test_what_the_system_refuses_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"none cannot be renamed to .*none.old-1: No such file"):
        move_aside(tmp_path / "none")
