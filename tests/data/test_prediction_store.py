import dataclasses
import json

from detr_distill.data.predictions.description import DESCRIPTION, Description, StoredImage
from detr_distill.data.predictions.store import (
    NOTHING,
    PredictionStore,
    begin_store,
    missing_parts,
    part_file,
    write_part,
)
from detr_distill.errors import DataError, OutputError

import pytest
import safetensors.torch
import torch
from helpers.data.stores import forget_content

LAYERS, QUERIES, CLASSES = 2, 4, 5
DESCRIBED = Description(
    class_names=("a", "b", "c", "d", "e"),
    activation="sigmoid",
    layers=LAYERS,
    queries=QUERIES,
    best_classes=0,
    dtype="float32",
    images=5,
    part_images=2,
    data=("set",),
    teacher="2",
    dataset="7",
    settings={"INPUT.FORMAT": "BGR", "INPUT.MIN_SIZE_TEST": 96},
)


def values(first, count):
    generator = torch.Generator().manual_seed(first)
    return {
        "counts": torch.arange(count) + 1,
        "logits": torch.randn(count, LAYERS, QUERIES, CLASSES, generator=generator),
        "boxes": torch.rand(count, LAYERS, QUERIES, 4, generator=generator),
    }


def images(first, count):
    """Numbers as ids, and a text now and then."""
    return [StoredImage(10 * n if n < 4 else "four", f"{n}.jpg", 30, 20 + n) for n in range(first, first + count)]


def fill(folder, described=DESCRIBED, stop_after=None):
    described = begin_store(folder, described)
    for number in missing_parts(folder, described):
        if number == stop_after:
            return
        first = number * described.part_images
        count = min(described.part_images, described.images - first)
        write_part(folder, number, described, images(first, count), values(first, count))


@pytest.fixture(params=[0, 1_000_000], ids=["by rows", "as a whole"])
def in_memory(request, monkeypatch):
    """Stores too large to be read as a whole, and small ones."""
    monkeypatch.setattr("detr_distill.data.predictions.store.IN_MEMORY", request.param)


@pytest.mark.usefixtures("in_memory")
def test_images_are_read_in_any_order_as_they_were_written(tmp_path):
    fill(tmp_path)
    store = PredictionStore(tmp_path)
    assert [image.id for image in store.images] == [0, 10, 20, 30, "four"] and 10 in store and 11 not in store
    assert store.images[4] == ("four", "4.jpg", 30, 24, 0, "")
    found = store.read([30, 0])
    expected = values(2, 2)["logits"][1], values(0, 2)["logits"][0]
    assert torch.equal(found.logits, torch.stack(expected, dim=1))
    assert torch.equal(found.boxes[:, 1], values(0, 2)["boxes"][0])
    assert found.counts == [2, 1]


def test_a_stopped_writing_goes_on_and_an_unfinished_one_is_refused(tmp_path):
    fill(tmp_path, stop_after=1)
    before = part_file(tmp_path, 0).stat().st_mtime_ns
    with pytest.raises(DataError, match=r"has 1 of 3 parts.*same command"):
        PredictionStore(tmp_path)
    fill(tmp_path)
    assert part_file(tmp_path, 0).stat().st_mtime_ns == before
    assert len(PredictionStore(tmp_path).images) == 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "float16", "teacher": "3"}, "other predictions, which differ in dtype, teacher"),
        ({"dataset": "8"}, "differ in dataset"),
        ({"settings": {"INPUT.MIN_SIZE_TEST": 48}}, r"differ in INPUT\.MIN_SIZE_TEST \(96 there, 48 now\)"),
    ],
)
def test_another_store_is_not_written_over(tmp_path, changes, words):
    fill(tmp_path)
    with pytest.raises(DataError, match=words):
        fill(tmp_path, dataclasses.replace(DESCRIBED, **changes))


def test_the_same_images_under_another_name_go_on_and_so_does_a_version_with_another_key(tmp_path):
    fill(tmp_path, stop_after=1)
    fill(tmp_path, dataclasses.replace(DESCRIBED, data=("renamed",), settings={**DESCRIBED.settings, "MODEL.NEW": 1}))
    assert PredictionStore(tmp_path).description == DESCRIBED


def test_parts_of_another_store_are_not_taken(tmp_path):
    """Neither where the description is lost, nor where it is of others."""
    fill(tmp_path)
    (tmp_path / DESCRIPTION).unlink()
    other = dataclasses.replace(DESCRIBED, settings={"INPUT.MIN_SIZE_TEST": 48})
    with pytest.raises(DataError, match=r"part-00000\.safetensors is of other predictions"):
        fill(tmp_path, other)
    assert not (tmp_path / DESCRIPTION).exists()
    (tmp_path / DESCRIPTION).write_text(json.dumps(dataclasses.asdict(other)))
    with pytest.raises(DataError, match=r"part-00000\.safetensors is of other predictions"):
        PredictionStore(tmp_path)


def test_a_store_of_an_earlier_version_is_read_and_not_gone_on_with(tmp_path):
    fill(tmp_path)
    forget_content(tmp_path)
    store = PredictionStore(tmp_path)
    assert store.images[1] == (10, "1.jpg", 30, 21, 0, "") and store.read([10]).counts == [2]
    with pytest.raises(DataError, match=r"predictions of an earlier version.*still teaches"):
        fill(tmp_path)


def test_images_of_several_sets_may_share_ids(tmp_path):
    described = dataclasses.replace(DESCRIBED, images=4)
    begin_store(tmp_path, described)
    for number, folder in enumerate("ab"):
        stored = [StoredImage(n, f"{folder}{n}.jpg", 30, 20) for n in range(2)]
        write_part(tmp_path, number, described, stored, values(number, 2))
    store = PredictionStore(tmp_path)
    assert store.rows == {0: [0, 2], 1: [1, 3]}
    assert torch.equal(store.read_rows([2]).logits[:, 0], values(1, 2)["logits"][0])
    with pytest.raises(DataError, match="has 2 images of the id 1"):
        store.read([1])


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file cannot be written"):
        begin_store(tmp_path / "file", DESCRIBED)
    with pytest.raises(OutputError, match="cannot be written"):
        begin_store(tmp_path / "file" / "below", DESCRIBED)


@pytest.mark.usefixtures("in_memory")
def test_the_best_classes_are_kept_and_the_others_are_improbable(tmp_path):
    fill(tmp_path, dataclasses.replace(DESCRIBED, best_classes=2, dtype="float16"))
    found = PredictionStore(tmp_path).read([10]).logits[:, 0]
    expected = values(0, 2)["logits"][1]
    best = expected.topk(2, dim=-1)
    assert torch.allclose(found.gather(-1, best.indices), best.values, atol=2e-3)
    assert (found == NOTHING).sum() == found.numel() * 3 // 5


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "predictions.json").unlink(), r"holds no predictions\.json"),
        (lambda folder: (folder / "predictions.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "predictions.json").write_text("{}"), "is damaged"),
        (lambda folder: part_file(folder, 1).write_bytes(b"x"), r"part-00001\.safetensors is damaged"),
        (
            lambda folder: safetensors.torch.save_file(
                {"counts": torch.ones(2)}, part_file(folder, 1), {"store": DESCRIBED.digest}
            ),
            r"part-00001\.safetensors does not name its images.*another version",
        ),
    ],
)
def test_damage_is_named(tmp_path, damage, words):
    fill(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=words):
        PredictionStore(tmp_path)
