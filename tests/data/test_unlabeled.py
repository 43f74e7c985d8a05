"""The stream of images without labels, and what must not be in it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from detr_distill.data import build_train_loader, register_datasets
from detr_distill.data.strong import StrongAugmentation
from detr_distill.data.unlabeled import divide_labels
from detr_distill.errors import ConfigError, DataError

import pytest
import torch
from helpers.builders import small_cfg
from helpers.data.sets import COUNT, SIZE, write_set


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unlabeled")
    entries = [write_set(folder, "train", 1), write_set(folder, "others", 101), write_set(folder, "copies", 1, 3)]
    return [entry[0] for entry in entries]


def loader_cfg(train, unlabeled=(), per_batch=0, **keys):
    return small_cfg(
        **{
            "DATASETS__TRAIN": (train,),
            "DATASETS__TEST": (),
            "DATASETS__UNLABELED": tuple(unlabeled),
            "DATALOADER__UNLABELED_PER_BATCH": per_batch,
            "SOLVER__IMS_PER_BATCH": 2,
            "INPUT__MIN_SIZE_TRAIN": (SIZE,),
            **keys,
        }
    )


def take(loader, count):
    batches = iter(loader)
    return [next(batches) for _ in range(count)]


def ids(batch):
    return [entry["image_id"] for entry in batch]


def test_labelled_images_come_first_and_the_others_have_no_labels(sets):
    for batch in take(build_train_loader(loader_cfg(sets[0], [sets[1]], 3)), 4):
        assert ["instances" in entry for entry in batch] == [True, True, False, False, False]
        assert all(number <= COUNT for number in ids(batch)[:2]) and all(number > 100 for number in ids(batch)[2:])


def test_the_labelled_stream_is_that_of_a_run_without_others(sets):
    plain = take(build_train_loader(loader_cfg(sets[0])), 6)
    mixed = take(build_train_loader(loader_cfg(sets[0], [sets[1]], 1)), 6)
    for alone, both in zip(plain, mixed, strict=True):
        assert ids(alone) == ids(both)[:2]
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(alone, both[:2], strict=True))


def test_both_streams_start_anywhere(sets):
    cfg = loader_cfg(sets[0], [sets[1]], 2, INPUT__STRONG__IMAGES="unlabeled", INPUT__RANDOM_FLIP="horizontal")
    whole = take(build_train_loader(cfg), 8)
    loader = build_train_loader(cfg)
    loader.seed = cfg.SEED
    loader.start_from(5)
    for expected, found in zip(whole[5:], take(loader, 3), strict=True):
        assert ids(expected) == ids(found)
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(expected, found, strict=True))
    loader = build_train_loader(cfg)
    loader.seed = cfg.SEED + 1
    assert [ids(batch) for batch in take(loader, 8)] != [ids(batch) for batch in whole]


def test_a_share_of_labels_is_always_the_same_and_nested(sets):
    records = [{"file_name": str(n)} for n in range(40)]
    chosen = {}
    for share in (0.1, 0.25, 1.0):
        labelled, rest = divide_labels(loader_cfg(sets[0], DATASETS__LABELED_SHARE=share), records)
        assert len(labelled) == share * 40 and len(labelled) + len(rest) == 40
        chosen[share] = {record["file_name"] for record in labelled}
    assert chosen[0.1] < chosen[0.25] < chosen[1.0]
    other, _ = divide_labels(loader_cfg(sets[0], DATASETS__LABELED_SHARE=0.25, DATASETS__LABELED_SEED=1), records)
    assert {record["file_name"] for record in other} != chosen[0.25]


def test_the_rest_is_what_the_share_leaves(sets):
    cfg = loader_cfg(sets[0], ["rest"], 2, DATASETS__LABELED_SHARE=0.3)
    batches = take(build_train_loader(cfg), 20)
    labelled = {number for batch in batches for number in ids(batch)[:2]}
    others = {number for batch in batches for number in ids(batch)[2:]}
    assert len(labelled) == 3 and len(others) == 7 and not labelled & others


@pytest.mark.parametrize(
    ("unlabeled", "keys", "error", "words"),
    [
        ((), {}, ConfigError, r"DATASETS\.UNLABELED is empty"),
        (("rest",), {}, DataError, r"LABELED_SHARE leaves none"),
        (("nowhere",), {}, DataError, r"'nowhere', which is not registered"),
        (("copies",), {}, DataError, r"3 images whose content is trained on with its labels: .*1\.png is .*1\.png"),
        (("others",), {"DATASETS__TEST": "others"}, DataError, r"10 images whose content is of a test set"),
    ],
)
def test_wrong_sets_are_named(sets, unlabeled, keys, error, words):
    names = dict(zip(("train", "others", "copies"), sets, strict=True))
    keys = {key: (names[value],) for key, value in keys.items()}
    cfg = loader_cfg(sets[0], [names.get(name, name) for name in unlabeled], 1, **keys)
    with pytest.raises(error, match=words):
        build_train_loader(cfg)


@pytest.mark.parametrize(("images", "strong"), [("none", 0), ("unlabeled", 2), ("all", 4)])
def test_which_images_the_student_sees_in_other_colours(sets, images, strong):
    cfg = loader_cfg(sets[0], [sets[1]], 2, INPUT__STRONG__IMAGES=images)
    (batch,) = take(build_train_loader(cfg), 1)
    changed = [entry for entry in batch if "teacher_image" in entry]
    assert len(changed) == strong
    assert all(entry["image"].shape == entry["teacher_image"].shape for entry in changed)
    assert not changed or any(not torch.equal(entry["image"], entry["teacher_image"]) for entry in changed)


def test_colours_change_and_the_channel_order_does_not_matter():
    picture = torch.randint(0, 256, (3, 24, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for settings in ((0.4, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)):
        found = []
        for order, image in (("RGB", picture), ("BGR", picture.flip(0))):
            torch.manual_seed(1)
            found.append(StrongAugmentation(*settings, order)(image))
        assert found[0].dtype == torch.uint8 and not torch.equal(found[0], picture)
        assert torch.equal(found[0], found[1].flip(0))
    assert torch.equal(StrongAugmentation(0, 0, 0, 0, "RGB")(picture), picture)


def test_a_folder_of_images_is_a_set_without_labels(sets, tmp_path):
    entry = write_set(tmp_path, "pictures", 300, 4)
    name = f"folder_{tmp_path.name}"
    register_datasets([[name, "", entry[2]]])
    (batch,) = take(build_train_loader(loader_cfg(sets[0], [name], 4)), 1)
    assert sorted(ids(batch[2:])) == [1, 2, 3, 4] and not any("instances" in item for item in batch[2:])


def only_images(content):
    del content["categories"], content["annotations"]


def no_categories(content):
    content["categories"], content["annotations"] = [], []


def bad_labels(content):
    content["annotations"][0]["category_id"], content["annotations"][1]["bbox"] = 99, [0, 0, -5, 3]


@pytest.mark.parametrize("change", [only_images, no_categories, bad_labels])
def test_only_the_images_of_a_file_are_looked_at(sets, tmp_path, change, caplog):
    entry = write_set(tmp_path, "pictures", 300, 4)
    content = json.loads(Path(entry[1]).read_text())
    change(content)
    Path(entry[1]).write_text(json.dumps(content))
    with caplog.at_level(logging.INFO):
        (batch,) = take(build_train_loader(loader_cfg(sets[0], [entry[0]], 4)), 1)
    assert sorted(ids(batch[2:])) == [300, 301, 302, 303] and not any("instances" in item for item in batch[2:])
    assert ("its annotations are not looked at" in caplog.text) == (change is bad_labels)


def test_a_mapper_without_strong_augmentation_is_refused(sets):
    cfg = loader_cfg(sets[0], [sets[1]], 2, INPUT__STRONG__IMAGES="unlabeled", INPUT__MAPPER="detectron2")
    with pytest.raises(ConfigError, match=r"INPUT\.MAPPER 'detectron2' has no strong augmentation"):
        build_train_loader(cfg)
