"""A set is checked once, and again where a file, a setting or the checking code has changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from detr_distill.config.build import build_config
from detr_distill.data import DataError, check_cache, checks, register_datasets
from detr_distill.data.checks import CheckedSet, check_set

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.data.plain_sets import CLASSES, write_set

KEY = "DATASETS.TRAIN"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "detr_distill" / "checks"


@pytest.fixture
def entry(cache, tmp_path):
    """A registered set of four images with two objects each."""
    made = write_set(tmp_path, f"checked_{tmp_path.name}")
    register_datasets([made])
    yield made
    DatasetCatalog.remove(made[0])
    MetadataCatalog.remove(made[0])


@pytest.fixture
def reads(monkeypatch):
    """Names of the sets that were read anew."""
    found = []
    load = checks.load_set
    monkeypatch.setattr(checks, "load_set", lambda cfg, name, key: found.append(name) or load(cfg, name, key))
    return found


def test_what_is_found():
    found = CheckedSet("a", ("x",), {0: 3, 2: 4, 7: 1})
    assert (found.images, found.total, found.without, found.most) == (8, 15, 3, 7)
    assert (found.images_above(1), found.images_above(2), found.images_above(7)) == (5, 1, 0)
    assert CheckedSet("a", None, {}).most == 0


def test_a_set_is_read_once(entry, reads):
    cfg, name = build_config("", []), entry[0]
    first = check_set(cfg, name, KEY)
    assert first == CheckedSet(name, CLASSES, {2: 4}, first.files, (entry[2],)) and reads == [name]
    assert len(first.files) == 64
    MetadataCatalog.remove(name)
    DatasetCatalog.remove(name)
    register_datasets([entry])
    again = check_set(cfg, name, KEY)
    assert again == first and reads == [name]
    assert MetadataCatalog.get(name).thing_classes == list(CLASSES)


@pytest.mark.parametrize("what", ["image", "new file", "annotations", "setting", "code", "damage", "foreign"])
def test_a_change_counts(entry, reads, cache, what, monkeypatch, tmp_path):
    cfg = build_config("", [])
    check_set(cfg, entry[0], KEY)
    (kept,) = cache.glob("*.json")
    changes = {
        "image": lambda: os.utime(f"{entry[2]}/1.png", ns=(1, 1)),
        "new file": lambda: (tmp_path / entry[0] / "more.png").touch(),
        "annotations": lambda: Path(entry[1]).write_text(Path(entry[1]).read_text() + " "),
        "setting": lambda: setattr(cfg.DATASETS, "BAD_BOXES", "fix"),
        "code": lambda: monkeypatch.setattr(check_cache, "_code_of_checks", lambda: "other"),
        "damage": lambda: kept.write_bytes(kept.read_bytes()[:-20]),
        "foreign": lambda: kept.write_text(json.dumps({**json.loads(kept.read_text()), "found": {"objects": 3}})),
    }
    changes[what]()
    check_set(cfg, entry[0], KEY)
    assert reads == [entry[0]] * 2
    check_set(cfg, entry[0], KEY)
    assert reads == [entry[0]] * 2


def test_a_fault_is_never_kept(entry, cache, tmp_path):
    (tmp_path / entry[0] / "1.png").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(DataError, match=r"1 of its 4 image files cannot be used:\n.*1\.png is empty"):
            check_set(build_config("", []), entry[0], KEY)
    assert not list(cache.glob("*"))


def test_a_cache_that_cannot_be_written_is_done_without(entry, reads, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert check_set(build_config("", []), entry[0], KEY).images == 4
    assert len(reads) == 2


def test_crowds_are_no_objects_to_learn(tmp_path, cache):
    def change(content):
        content["annotations"][0]["iscrowd"] = 1

    made = write_set(tmp_path, f"crowded_{tmp_path.name}", change=change)
    register_datasets([made])
    assert check_set(build_config("", []), made[0], KEY).objects == {1: 1, 2: 3}


def test_a_set_of_a_program_is_checked_too(cache, tmp_path):
    name = f"program_{tmp_path.name}"
    DatasetCatalog.register(name, list)
    with pytest.raises(DataError, match=f"TRAIN: dataset {name} has no image"):
        check_set(build_config("", []), name, KEY)
    DatasetCatalog.remove(name)
    DatasetCatalog.register(
        name, lambda: [{"file_name": str(tmp_path / "a.png"), "width": 1, "height": 1, "annotations": []}]
    )
    with pytest.raises(DataError, match=r"1 of its 1 image files are not there: .*a\.png"):
        check_set(build_config("", []), name, KEY)
    DatasetCatalog.remove(name)
