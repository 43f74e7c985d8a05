import dataclasses

from detr_distill.data.predictions.store import (
    NOTHING,
    Description,
    PredictionStore,
    StoredImage,
    missing_parts,
    part_file,
    write_part,
)
from detr_distill.errors import DataError

import pytest
import safetensors.torch
import torch

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
    for number in missing_parts(folder, described):
        if number == stop_after:
            return
        first = number * described.part_images
        count = min(described.part_images, described.images - first)
        write_part(folder, number, described, images(first, count), values(first, count))


def test_images_are_read_in_any_order_as_they_were_written(tmp_path):
    fill(tmp_path)
    store = PredictionStore(tmp_path)
    assert list(store.images) == [0, 10, 20, 30, "four"] and 10 in store and 11 not in store
    assert store.images["four"] == ("four", "4.jpg", 30, 24)
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


def test_another_store_is_not_written_over(tmp_path):
    fill(tmp_path)
    with pytest.raises(DataError, match="other predictions, which differ in dtype, teacher"):
        fill(tmp_path, dataclasses.replace(DESCRIBED, dtype="float16", teacher="3"))


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
            lambda folder: safetensors.torch.save_file({"counts": torch.ones(2)}, part_file(folder, 1)),
            r"part-00001\.safetensors does not name its images.*another version",
        ),
    ],
)
def test_damage_is_named(tmp_path, damage, words):
    fill(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=words):
        PredictionStore(tmp_path)
