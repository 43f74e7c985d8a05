"""Named files: the user's own come first, the project's are found from any folder."""

from detr_distill.config.build import build_config
from detr_distill.config.files import SHIPPED, find_file
from detr_distill.errors import ConfigError

import pytest

TEACHER = "weights/digits_teacher.pth"


def test_the_projects_files_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_file(TEACHER, "KEY") == str(SHIPPED / TEACHER)
    cfg = build_config("configs/digits/d3etr_conditional.yaml", [])
    assert cfg.MODEL.DISTILL.TEACHER.WEIGHTS == TEACHER


def test_a_file_of_the_current_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "configs" / "digits" / "d3etr_conditional.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("SEED: 77\n")
    assert find_file("configs/digits/d3etr_conditional.yaml", "KEY") == "configs/digits/d3etr_conditional.yaml"
    assert build_config("configs/digits/d3etr_conditional.yaml", []).SEED == 77


def test_a_file_that_is_nowhere_is_named():
    with pytest.raises(ConfigError, match=r"KEY names nowhere.pth, which does not exist"):
        find_file("nowhere.pth", "KEY")
    with pytest.raises(ConfigError, match="--config-file configs: there is no such file"):
        build_config("configs", [])


@pytest.mark.parametrize("address", ["", "https://example.org/weights.pth"])
def test_addresses_and_nothing_stay_as_they_are(address):
    assert find_file(address, "KEY") == address


def test_the_home_folder_may_be_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.pth").touch()
    assert find_file("~/mine.pth", "KEY") == str(tmp_path / "mine.pth")
    with pytest.raises(ConfigError, match=r"KEY names ~/other\.pth, which does not exist"):
        find_file("~/other.pth", "KEY")
