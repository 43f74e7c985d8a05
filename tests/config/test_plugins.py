"""The key PLUGINS: which modules it imports, which it refuses, and that no file but a run's own imports any."""

from __future__ import annotations

import re

from detr_distill import build_detector
from detr_distill.config.build import build_config
from detr_distill.errors import ConfigError
from detr_distill.registry import LOSS_REGISTRY

import pytest
import yaml
from detectron2.modeling import build_model
from helpers.builders import small_cfg
from helpers.plugins import MARK, MODULE, NODE, current_folder, save_detector, six_pictures, write_run  # noqa: F401
from helpers.registrations import forgotten_afterwards

pytestmark = pytest.mark.usefixtures("folder")


def test_the_written_configuration_is_a_runs_own(folder, pictures):
    """Whoever starts from it gets the same plug-ins; the command line comes before it."""
    (folder / "my_losses.py").write_text(MODULE)
    (folder / "others.py").write_text(MARK)
    write_run(folder / "run.yaml", pictures, PLUGINS=["my_losses.py"])
    assert build_config("run.yaml", [], plugins=True).MODEL.DISTILL.SIZE_LOSS.MARGIN == 0.25
    (folder / "run2.yaml").write_text("_BASE_: run.yaml\n")
    assert build_config("run2.yaml", [], plugins=True).PLUGINS == ["my_losses.py"]
    with forgotten_afterwards():
        cfg = build_config("run2.yaml", ["PLUGINS", "('my_losses.py', 'others.py')"], plugins=True)
    assert list(cfg.PLUGINS) == ["my_losses.py", "others.py"] and (folder / "others.imported").exists()


def test_keys_of_a_module_are_unknown_without_it(folder, pictures):
    write_run(folder / "run.yaml", pictures)
    with pytest.raises(ConfigError, match=f"run.yaml: unknown key {NODE}"):
        build_config("run.yaml", [], plugins=True)


def test_a_value_of_a_key_of_ones_own_is_checked(folder, pictures):
    (folder / "my_losses.py").write_text(MODULE)
    write_run(folder / "run.yaml", pictures, PLUGINS=["my_losses.py"])
    with pytest.raises(ConfigError, match=f"^{NODE}.MARGIN is -1.0. Give 0 or more.$"):
        build_config("run.yaml", [f"{NODE}.MARGIN", "-1.0"], plugins=True)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_file.py", r"names 'no_such_file.py'; there is no file /.*/no_such_file.py\. Give its path"),
        ("no_such_package.losses", "names 'no_such_package.losses'; it cannot be imported: ModuleNotFoundError: "),
        ("broken.py", r"names 'broken.py'; it cannot be imported: ZeroDivisionError: division by zero"),
        ("broken", "names 'broken'; it cannot be imported: ZeroDivisionError"),
        ("unparsable.py", "names 'unparsable.py'; it cannot be imported: SyntaxError"),
        ("json.py", "names 'json.py'; another module is already called json: give the file another name"),
        ("twice.py", "names 'twice.py'; MODEL.DISTILL.FEATURE_LOSS.WEIGHT is declared twice, by .* and by me"),
        ("nameless.py", "names 'nameless.py'; NamelessMatcher does not set name; see .*QueryMatcher"),
    ],
)
def test_what_cannot_be_imported_is_named(folder, value, message):
    """On the command line and in the run's own file."""
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "unparsable.py").write_text("def\n")
    (folder / "json.py").write_text("")
    (folder / "twice.py").write_text(
        "from detr_distill.config.keys import Key, declare\n"
        "declare('me', {'MODEL.DISTILL.FEATURE_LOSS.WEIGHT': Key(1.0, 'mine')})\n"
    )
    (folder / "nameless.py").write_text(
        "from detr_distill.distill.matchers.base import QueryMatcher\n"
        "from detr_distill.registry import MATCHER_REGISTRY\n\n\n"
        "@MATCHER_REGISTRY.register()\nclass NamelessMatcher(QueryMatcher):\n    pass\n"
    )
    (folder / "run.yaml").write_text(f"PLUGINS: [{value}]\n")
    for arguments in (("", ["PLUGINS", value]), ("run.yaml", [])):
        with pytest.raises(ConfigError, match=f"^PLUGINS {message}"):
            build_config(*arguments, plugins=True)


@pytest.mark.parametrize("value", ["(1, 2)", "('a', '')", "3", "[['a']]"])
def test_what_is_no_list_of_names_is_refused(value):
    with pytest.raises(ConfigError, match=rf"^PLUGINS is {re.escape(value)}\. Give a list of modules or .py files"):
        build_config("", ["PLUGINS", value], plugins=True)


def test_a_module_that_failed_may_be_mended(folder):
    """It is not kept half imported; one that is imported already is not run again."""
    (folder / "my_losses.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        build_config("", ["PLUGINS", "my_losses.py"], plugins=True)
    (folder / "my_losses.py").write_text(MODULE)
    build_config("", ["PLUGINS", "my_losses.py"], plugins=True)
    loss = LOSS_REGISTRY.get("SizeLoss")
    assert build_config("", ["PLUGINS", "my_losses.py"], plugins=True).MODEL.DISTILL.SIZE_LOSS.MARGIN == 0.5
    assert LOSS_REGISTRY.get("SizeLoss") is loss


@pytest.mark.parametrize("place", ["itself", "base", "OPTS"])
def test_a_teachers_configuration_imports_nothing(folder, place):
    """A configuration from elsewhere runs no code, wherever in it a module is named."""
    (folder / "spy.py").write_text(MARK)
    save_detector(folder)
    settings = yaml.safe_load((folder / "teacher.yaml").read_text())
    (folder / "named.yaml").write_text(yaml.safe_dump({**settings, "PLUGINS": [str(folder / "spy.py")]}))
    (folder / "above.yaml").write_text("_BASE_: named.yaml\n")
    file, opts = {
        "itself": ("named.yaml", []),
        "base": ("above.yaml", []),
        "OPTS": ("teacher.yaml", ["PLUGINS", f"('{folder / 'spy.py'}',)"]),
    }[place]
    cfg = small_cfg(
        MODEL__META_ARCHITECTURE="DistillDetector", MODEL__DISTILL__TEACHER__CONFIG_FILE=file,
        MODEL__DISTILL__TEACHER__WEIGHTS="teacher.pth", MODEL__DISTILL__TEACHER__OPTS=opts,
    )  # fmt: skip
    assert build_model(cfg).teacher.detector is not None
    assert not (folder / "spy.imported").exists()
    # The same file is a run's own where it is started; so the check above can fail.
    build_config(file, opts, plugins=True)
    assert (folder / "spy.imported").exists()


def test_a_detector_from_a_file_imports_nothing(folder):
    (folder / "spy.py").write_text(MARK)
    save_detector(folder)
    (folder / "named.yaml").write_text("_BASE_: teacher.yaml\nPLUGINS: [spy.py]\n")
    assert build_detector("named.yaml", "teacher.pth")
    assert not (folder / "spy.imported").exists()


def test_a_teacher_that_was_trained_with_a_module_needs_it_from_the_run(folder, pictures):
    """Its keys are unknown until the run itself names the module, which the error says."""
    (folder / "my_losses.py").write_text(MODULE)
    save_detector(folder)
    teacher = yaml.safe_load((folder / "teacher.yaml").read_text())
    teacher["MODEL"]["DISTILL"]["SIZE_LOSS"] = {"MARGIN": 0.25}
    (folder / "teacher.yaml").write_text(yaml.safe_dump({**teacher, "PLUGINS": ["my_losses.py"]}))
    keys = {"MODEL.META_ARCHITECTURE": "DistillDetector", "MODEL.DISTILL.TEACHER.WEIGHTS": "teacher.pth"}
    keys["MODEL.DISTILL.TEACHER.CONFIG_FILE"] = "teacher.yaml"
    (folder / "student.yaml").write_text(small_cfg().dump())
    words = [word for pair in keys.items() for word in pair]
    with pytest.raises(ConfigError, match=f"unknown key {NODE}.*known once PLUGINS of this run names their"):
        build_model(build_config("student.yaml", words, plugins=True))
    assert build_model(build_config("student.yaml", [*words, "PLUGINS", "my_losses.py"], plugins=True))
