"""A resumed run learns from what its first part learned from, wherever that lies now."""

import json
import shutil

from detr_distill.data import build_digits
from detr_distill.data.registration import register_datasets
from detr_distill.engine.folder.contents import CONTENTS_FILE, describe_contents, hash_files, keep_contents
from detr_distill.errors import ConfigError

import pytest
from bad_input.folder import DISTILLING, run_in
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.data.plain_sets import write_set
from helpers.engine.toy import toy_config


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return build_digits(tmp_path_factory.mktemp("digits"), "val", 3)


@pytest.fixture
def configure(tmp_path, request, digits):
    """A configuration that trains on a copy of an annotation file, each time under the same name."""
    name = f"set_{request.node.name}"

    def make(content: str, folder: str, **changes):
        file = tmp_path / folder / "annotations.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(content)
        forget(name)
        register_datasets([[name, str(file), str(digits / "images")]])
        return toy_config(tmp_path / "run", **{"DATASETS.TRAIN": f"('{name}',)", **changes})

    yield make
    forget(name)


def forget(name):
    from detr_distill.data import registration

    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        registration._registered.pop(name)


def test_moved_files_are_the_same_and_changed_ones_are_named(digits, configure, tmp_path):
    content = (digits / "annotations" / "instances.json").read_text()
    run_in(tmp_path / "run")
    keep_contents(configure(content, "a"), resume=False)
    keep_contents(configure(content, "b"), resume=True)
    before = (tmp_path / "run" / CONTENTS_FILE).read_text()
    swapped = json.loads(content)
    swapped["categories"][0]["name"], swapped["categories"][1]["name"] = "1", "0"
    with pytest.raises(
        ConfigError, match=r"(?s)annotations of set_.*another content.*classes of set_.*from number 0 on"
    ):
        keep_contents(configure(json.dumps(swapped), "c"), resume=True)
    assert (tmp_path / "run" / CONTENTS_FILE).read_text() == before


def test_other_images_are_named(tmp_path):
    folder, bare = run_in(tmp_path / "run"), f"bare_{tmp_path.name}"
    (name, file, pictures), other = write_set(tmp_path, f"set_{tmp_path.name}"), write_set(tmp_path / "b", "b")
    shutil.copytree(pictures, tmp_path / "moved")

    def keep(images, unlabelled, *, resume):
        forget(name), forget(bare)
        entries = [[name, file, str(images)], [bare, "", str(unlabelled)]]
        words = {"DATASETS.TRAIN": f"('{name}',)", "DATASETS.UNLABELED": f"('{bare}', 'rest')"}
        words["DATALOADER.UNLABELED_PER_BATCH"] = "1"
        register_datasets(entries)
        keep_contents(toy_config(folder, **words), resume=resume)

    try:
        keep(pictures, other[2], resume=False)
        keep(tmp_path / "moved", other[2], resume=True)
        (tmp_path / "moved" / "2.png").write_bytes((tmp_path / "moved" / "2.png").read_bytes() + b" ")
        with pytest.raises(ConfigError, match=f"images of set_{tmp_path.name}: other names, or files of other sizes"):
            keep(tmp_path / "moved", other[2], resume=True)
        (tmp_path / "b" / "b" / "4.png").unlink()
        with pytest.raises(ConfigError, match=f"images of {bare}: other names"):
            keep(pictures, other[2], resume=True)
    finally:
        forget(name), forget(bare)


def test_a_fresh_start_writes_its_own(configure, digits, tmp_path):
    content = (digits / "annotations" / "instances.json").read_text()
    keep_contents(configure(content, "a"), resume=False)
    keep_contents(configure(content + "\n", "a"), resume=True)  # no checkpoint yet: nothing learned
    keep_contents(configure(content, "a"), resume=False)


@pytest.mark.parametrize("damage", [None, "{half", "[1]"])
def test_a_run_without_the_record_goes_on_with_a_warning(configure, digits, tmp_path, caplog, damage):
    run_in(tmp_path / "run")
    if damage is not None:
        (tmp_path / "run" / CONTENTS_FILE).write_text(damage)
    content = (digits / "annotations" / "instances.json").read_text()
    keep_contents(configure(content, "a"), resume=True)
    assert "are not compared" in caplog.text
    keep_contents(configure(content, "b"), resume=True)


def test_a_teacher_is_known_by_its_weights_and_settings(tmp_path):
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "weights.pth").write_bytes(b"weights")
        (folder / "base.yaml").write_text(f"MODEL: {{DETR: {{NUM_QUERIES: 20}}, WEIGHTS: {folder}}}\nSEED: 3\n")
        (folder / "teacher.yaml").write_text("_BASE_: base.yaml\nINPUT: {FORMAT: BGR}\n")

    def describe(folder, **changes):
        node = "MODEL.DISTILL.TEACHER"
        files = {f"{node}.WEIGHTS": folder / "weights.pth", f"{node}.CONFIG_FILE": folder / "teacher.yaml"}
        return describe_contents(toy_config(tmp_path, **files, **changes))

    first = describe(tmp_path / "a", **DISTILLING)
    assert set(first) == {"weights of the teacher", "configuration of the teacher"}
    assert describe(tmp_path / "a") == {} and describe(tmp_path / "b", **DISTILLING) == first
    (tmp_path / "b" / "base.yaml").write_text("MODEL: {DETR: {NUM_QUERIES: 30}}")
    (tmp_path / "a" / "weights.pth").write_bytes(b"others")
    changed = [describe(tmp_path / "a", **DISTILLING), describe(tmp_path / "b", **DISTILLING)]
    assert changed[0]["weights of the teacher"] != first["weights of the teacher"]
    assert changed[1]["configuration of the teacher"] != first["configuration of the teacher"]


def test_a_folder_is_known_by_all_its_files(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    before = hash_files(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert before != hash_files(tmp_path) == hash_files(tmp_path)
