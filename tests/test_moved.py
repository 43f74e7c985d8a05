"""Modules and names under which the package was used before: they go on working, and say what they are called now."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types
import unittest.mock
import warnings
from pathlib import Path

from detr_distill import moved

import pytest

PACKAGE = "detr_distill"


@pytest.fixture
def imported_anew():
    """Imports an earlier module as if for the first time, and has it forgotten."""
    before = {name: module for name, module in sys.modules.items() if isinstance(module, moved.MovedModule)}

    def load(name: str) -> types.ModuleType:
        sys.modules.pop(f"{PACKAGE}.{name}", None)
        return importlib.import_module(f"{PACKAGE}.{name}")

    for name in before:
        del sys.modules[name]
    yield load
    for name, module in list(sys.modules.items()):
        if isinstance(module, moved.MovedModule):
            del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.parametrize("name", moved.MOVED)
def test_an_earlier_module_is_found_warns_and_hands_out_what_moved(name, imported_anew):
    modules = moved.MOVED[name]
    with pytest.warns(FutureWarning, match=f"^{PACKAGE}.{name} has moved: import from {PACKAGE}.{modules[0]}"):
        module = imported_anew(name)
    contents = [vars(importlib.import_module(f"{PACKAGE}.{now}")) for now in modules]
    for now, content in zip(modules, contents, strict=True):
        own = [key for key, value in content.items() if is_defined_in(f"{PACKAGE}.{now}", value)]
        assert own, f"{now} has nothing of its own"
        for key in own:
            first = next(content for content in contents if key in content)
            assert getattr(module, key) is first[key]
    with pytest.raises(AttributeError, match=f"{PACKAGE}.{name} is now {modules[0]}.*, and none of these has nothing"):
        module.nothing  # noqa: B018


def is_defined_in(module: str, value: object) -> bool:
    return isinstance(value, type | types.FunctionType) and value.__module__ == module


def test_no_module_stands_under_an_earlier_name():
    """It would be found first, and its entry in the table be dead."""
    for name in moved.MOVED:
        assert isinstance(importlib.util.find_spec(f"{PACKAGE}.{name}").loader, moved.MovedFinder), name


def test_an_attribute_that_is_set_reaches_the_module_that_has_it_now(imported_anew):
    """So that who replaces a function under its earlier name replaces the one that runs."""
    from detr_distill.distill.teachers import frozen as now

    with pytest.warns(FutureWarning):
        frozen = imported_anew("distill.frozen")
    original = now.match_classes
    frozen.match_classes = "replaced"
    assert now.match_classes == frozen.match_classes == "replaced" and "match_classes" not in vars(frozen)
    del frozen.match_classes
    assert now.match_classes is original
    with pytest.raises(AttributeError, match="none of these has nothing"):
        frozen.nothing = 1
    with pytest.raises(AttributeError, match="was not given EmaTeacher"):
        del frozen.EmaTeacher


def test_tests_may_replace_under_the_earlier_name(imported_anew):
    from detr_distill.distill.teachers import frozen as now

    original = now.match_classes
    with pytest.warns(FutureWarning):
        frozen = imported_anew("distill.frozen")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen, "match_classes", "first")
        patch.setattr(frozen, "match_classes", "second")
        assert now.match_classes == "second"
    assert now.match_classes is original
    with unittest.mock.patch(f"{PACKAGE}.distill.frozen.match_classes", "third"):
        assert now.match_classes == "third"
    assert now.match_classes is original


def test_an_import_of_a_name_is_one_warning(imported_anew):
    from detr_distill.detr.supervision.assignment import Cost as now

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        imported_anew("detr.assignment")
        from detr_distill.detr.assignment import Cost
    assert Cost is now
    assert [warning.category for warning in warned] == [FutureWarning]


def test_a_name_that_was_changed_besides_is_found_and_warns(imported_anew):
    from detr_distill.distill.losses.map_pairs import MapPair
    from detr_distill.distill.matchers.layer_pairs import pair_layers

    with pytest.warns(FutureWarning, match="layer_pairs.layer_map is now called pair_layers"):
        assert imported_anew("distill.layers").layer_map is pair_layers
    with pytest.warns(FutureWarning, match="map_pairs.FeaturePair is now called MapPair"):
        assert imported_anew("distill.feature_pairs").FeaturePair is MapPair


@pytest.mark.parametrize(
    ("module", "earlier", "now"),
    [
        ("structures", "Targets", "GroundTruth"),
        ("detr.queries", "AnchorQueries", "AnchorBoxQueries"),
        ("config.defaults", "add_distill_config", "add_detr_distill_config"),
        ("config", "count_classes", "num_classes_key"),
        ("distill.matchers.layer_pairs", "layer_map", "pair_layers"),
        ("distill.losses.map_pairs", "FeaturePair", "MapPair"),
        ("checkpoint.matching", "first_names", "first"),
    ],
)
def test_an_earlier_name_in_a_module_that_stays(module, earlier, now):
    found = importlib.import_module(f"{PACKAGE}.{module}")
    with pytest.warns(FutureWarning, match=f"^{PACKAGE}.{module}.{earlier} is now called {now}"):
        assert getattr(found, earlier) is vars(found)[now]
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        found.nothing  # noqa: B018


def test_every_renaming_is_tried():
    package = {name for name in moved._RENAMED if name.startswith(f"{PACKAGE}.")}
    mark = next(m for m in test_an_earlier_name_in_a_module_that_stays.pytestmark if m.name == "parametrize")
    tried = {(f"{PACKAGE}.{module}", earlier) for module, earlier, _ in mark.args[1]}
    assert tried == {(module, earlier) for module in package for earlier in moved._RENAMED[module]}


def test_a_program_may_start_with_an_earlier_module():
    """In a process that has imported nothing: the package puts the finder up first."""
    code = "from detr_distill.ranges import COUNT; import detr_distill.fcos as f; print(COUNT.in_words(), f.__name__)"
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert result.stdout.split("\n")[0] == "1 or more detr_distill.fcos"


def test_the_finder_is_put_up_once():
    moved.install()
    assert len([finder for finder in sys.meta_path if isinstance(finder, moved.MovedFinder)]) == 1


EARLIER = [line.split() for line in (Path(__file__).parent / "earlier_names.txt").read_text().splitlines()]


@pytest.mark.parametrize("line", EARLIER, ids=lambda line: line[0])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_functions_and_classes_are_found_under_their_earlier_names(line):
    module = importlib.import_module(f"{PACKAGE}.{line[0]}")
    assert not [name for name in line[1:] if not callable(getattr(module, name))]


@pytest.mark.parametrize("name", moved._GONE)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_is_gone_says_what_takes_its_place(name):
    module, _, attribute = name.rpartition(".")
    with pytest.raises(AttributeError, match=f"{attribute} is gone. Use "):
        getattr(importlib.import_module(f"{PACKAGE}.{module}"), attribute)


def test_everything_of_an_earlier_module_at_once(imported_anew):
    with pytest.warns(FutureWarning):
        module = imported_anew("detr.decoder")
    found: dict[str, object] = {}
    exec("from detr_distill.detr.decoder import *", found)
    assert found["Decoder"] is module.Decoder and "Decoder" in dir(module)
