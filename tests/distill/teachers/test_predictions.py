"""A file of predictions teaches as the detector that made it; boxes follow the augmentation."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

from detr_distill.commands.predict import main as predict
from detr_distill.data import DetrDatasetMapper, register_datasets
from detr_distill.data.predictions.store import PredictionStore, StoredPredictions
from detr_distill.data.records import load_records
from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.distill.students.base import StudentStep
from detr_distill.distill.teachers.predictions import PredictionsFile, move
from detr_distill.errors import ConfigError, DataError

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import randomise, small_cfg
from helpers.data.stores import forget_content

NAMES = ["a", "b", "c", "d", "e"]
COUNT, WIDTH, HEIGHT = 4, 64, 48
TEACHER = {"MODEL__DETR__NUM_QUERIES": 9, "MODEL__DETR__DECODER__NUM_LAYERS": 3}
SIZES = {"INPUT__MIN_SIZE_TRAIN": (HEIGHT,), "INPUT__MIN_SIZE_TEST": HEIGHT, "INPUT__RANDOM_FLIP": "none"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """An entry of DATASETS.REGISTER: four noisy pictures with two objects each."""
    folder = tmp_path_factory.mktemp("predictions")
    generator = np.random.default_rng(0)
    images = [{"id": 5 + n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in range(COUNT)]
    for image in images:
        cv2.imwrite(str(folder / image["file_name"]), generator.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    objects = [
        {
            "id": n + 1,
            "image_id": 5 + n // 2,
            "category_id": 10 + n % 5,
            "bbox": [4 + n, 6, 20, 24],
            "area": 480,
            "iscrowd": 0,
        }
        for n in range(2 * COUNT)
    ]
    categories = [{"id": 10 + n, "name": name} for n, name in enumerate(NAMES)]
    (folder / "set.json").write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
    entry = [f"predictions_{folder.name}", str(folder / "set.json"), str(folder)]
    register_datasets([entry])
    return entry


@pytest.fixture(scope="module")
def teacher(dataset, tmp_path_factory):
    """Configuration file and weights of a detector, and the folder of its predictions."""
    folder = tmp_path_factory.mktemp("teacher")
    cfg = small_cfg(**TEACHER, **SIZES, DATASETS__TRAIN=(dataset[0],), DATASETS__TEST=())
    cfg.DATASETS.REGISTER = [dataset]
    (folder / "teacher.yaml").write_text(cfg.dump())
    torch.save({"model": randomise(build_model(cfg), seed=1).state_dict()}, folder / "teacher.pth")
    words = ["--config-file", str(folder / "teacher.yaml"), "--weights", str(folder / "teacher.pth")]
    predict([*words, "--output", str(folder / "store"), "--batch", "2"])
    predict([*words, "--output", str(folder / "results.json"), "--score", "0.0"])
    return folder


def distiller_cfg(dataset, weights, **keys):
    cfg = small_cfg(
        **{
            **SIZES,
            "MODEL__META_ARCHITECTURE": "DistillDetector",
            "MODEL__DISTILL__TEACHER__NAME": "PredictionsFile",
            "MODEL__DISTILL__TEACHER__WEIGHTS": str(weights),
            "MODEL__DISTILL__MATCHERS": ["AdaptiveMatcher"],
            "MODEL__DISTILL__LOSSES": ["PredictionLoss"],
            "DATASETS__TRAIN": (dataset[0],),
            **keys,
        }
    )
    cfg.DATASETS.REGISTER = [dataset]
    return cfg


def step_of(cfg, count=2):
    batch = [DetrDatasetMapper(cfg)(record) for record in load_records(cfg)[:count]]
    return StudentStep(batch, ground_truth=read_ground_truth(batch, "cpu"), iteration=0)


def test_what_was_checked_before_the_run_is_not_read_again(dataset, teacher, monkeypatch):
    compared = []
    monkeypatch.setattr(
        "detr_distill.data.predictions.training_images.check_content", lambda pairs, key: compared.append(len(pairs))
    )
    cfg = distiller_cfg(dataset, teacher / "store")
    PredictionsFile.check_files(cfg)
    kept = build_model(cfg).teacher
    assert compared == [COUNT]
    again = build_model(cfg).teacher  # no check came before
    assert compared == [COUNT, COUNT]
    step = step_of(cfg)
    assert torch.equal(kept(step, frozenset()).output.boxes, again(step, frozenset()).output.boxes)
    PredictionsFile.check_files(cfg)
    build_model(distiller_cfg(dataset, shutil.copytree(teacher / "store", teacher / "moved")))
    assert compared == [COUNT] * 4


MAP_LOSS = {
    "MODEL__DISTILL__MATCHERS": [],
    "MODEL__DISTILL__LOSSES": ["FeatureLoss"],
    "MODEL__DISTILL__FEATURE_LOSS__IN_FEATURES": ["level0", "memory0"],
}


@pytest.fixture(scope="module")
def store_of_maps(teacher):
    words = ["--config-file", str(teacher / "teacher.yaml"), "--weights", str(teacher / "teacher.pth")]
    keys = ["TEST.DETECTIONS_PER_IMAGE", "100"]  # behind names, as a user types them
    predict([*words, "--output", str(teacher / "maps"), "--batch", "2", "--maps", "level0", "memory0", *keys])
    return teacher / "maps"


def test_stored_maps_are_the_live_ones(dataset, teacher, store_of_maps):
    cfg = distiller_cfg(dataset, store_of_maps, **MAP_LOSS)
    stored, step = build_model(cfg), step_of(cfg)
    live = distiller_cfg(
        dataset,
        teacher / "teacher.pth",
        **MAP_LOSS,
        MODEL__DISTILL__TEACHER__NAME="FrozenDetector",
        MODEL__DISTILL__TEACHER__CONFIG_FILE=str(teacher / "teacher.yaml"),
    )
    expected = build_model(live)
    expected.load_state_dict(stored.state_dict())
    found = stored.teacher(step, frozenset()).features
    assert found.keys() == {"level0", "memory0"} and found["level0"].std() > 0.1
    for name, value in expected.teacher(step, frozenset()).maps.items():
        assert torch.allclose(found[name], value, atol=1e-4), name
    loss, other = (
        model.train()(step.batched_inputs, iteration=0)["loss_distill_feature"] for model in (stored, expected)
    )
    assert torch.allclose(loss, other, rtol=1e-4)
    loss.backward()
    assert all(parameter.grad is not None for parameter in stored.losses.parameters())


def test_maps_follow_a_flip(dataset, store_of_maps):
    keys = {**MAP_LOSS, "INPUT__RANDOM_FLIP": "horizontal"}
    plain = distiller_cfg(dataset, store_of_maps, **MAP_LOSS)
    flipped = distiller_cfg(dataset, store_of_maps, **keys)
    still = build_model(plain).teacher(step_of(plain), frozenset()).features["level0"]
    for seed in range(20):
        torch.manual_seed(seed)
        np.random.seed(seed)  # detectron2 draws its flips from it
        step = step_of(flipped)
        if all(entry["placement"][0] > entry["placement"][2] for entry in step.batched_inputs):
            break
    found = build_model(flipped).teacher(step, frozenset()).features["level0"]
    assert torch.allclose(found, still.flip(-1), atol=1e-4)


def test_maps_of_the_mirror_image_are_the_live_ones(dataset, teacher):
    words = ["--config-file", str(teacher / "teacher.yaml"), "--weights", str(teacher / "teacher.pth")]
    predict([*words, "--output", str(teacher / "mirrored"), "--batch", "2", "--maps", "level0", "--mirrored"])
    keys = {**MAP_LOSS, "MODEL__DISTILL__FEATURE_LOSS__IN_FEATURES": ["level0"], "INPUT__RANDOM_FLIP": "horizontal"}
    cfg = distiller_cfg(dataset, teacher / "mirrored", **keys)
    live = distiller_cfg(
        dataset,
        teacher / "teacher.pth",
        **keys,
        MODEL__DISTILL__TEACHER__NAME="FrozenDetector",
        MODEL__DISTILL__TEACHER__CONFIG_FILE=str(teacher / "teacher.yaml"),
    )
    np.random.seed(0)
    step = step_of(cfg, COUNT)
    flipped = [entry["placement"][0] > entry["placement"][2] for entry in step.batched_inputs]
    assert True in flipped and False in flipped
    found = build_model(cfg).teacher(step, frozenset()).features
    assert found.keys() == {"level0"}
    assert torch.allclose(found["level0"], build_model(live).teacher(step, frozenset()).maps["level0"], atol=1e-4)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["more", "--mirrored"], "--mirrored is of maps"),
        (["more", "--maps", "level7"], "--maps names level7; this detector has level0, memory0"),
        (["more.json", "--maps", "level0"], "more.json holds detections alone"),
        (["store", "--maps", "level0"], "holds other predictions, which differ in.* maps"),
    ],
)
def test_maps_that_cannot_be_kept_are_refused(words, expected, teacher, capsys):
    given = ["--config-file", str(teacher / "teacher.yaml"), "--weights", str(teacher / "teacher.pth")]
    with pytest.raises(SystemExit):
        predict([*given, "--output", str(teacher / words[0]), *words[1:]])
    assert re.search(expected, capsys.readouterr().err)


def test_a_file_without_maps_teaches_none(dataset, teacher):
    with pytest.raises(ConfigError, match=r"FeatureLoss asks for feature maps.*tools/predict.py --maps"):
        build_model(distiller_cfg(dataset, teacher / "store", **MAP_LOSS))


def test_a_stored_teacher_is_the_live_one(dataset, teacher):
    cfg = distiller_cfg(dataset, teacher / "store")
    stored = build_model(cfg).teacher
    live = distiller_cfg(
        dataset,
        teacher / "teacher.pth",
        MODEL__DISTILL__TEACHER__NAME="FrozenDetector",
        MODEL__DISTILL__TEACHER__CONFIG_FILE=str(teacher / "teacher.yaml"),
    )
    step = step_of(cfg)
    found, expected = stored(step, frozenset()), build_model(live).teacher(step, frozenset())
    assert torch.equal(found.output.logits, expected.output.logits)
    assert torch.equal(found.output.boxes, expected.output.boxes)
    assert found.output.logits.shape == (3, 2, 9, 5) and found.output.logits.std() > 0.01
    assert torch.equal(found.matching_cost(), expected.matching_cost())


def test_a_results_file_teaches_its_last_layer(dataset, teacher):
    cfg = distiller_cfg(dataset, teacher / "results.json")
    step = step_of(cfg)
    found = build_model(cfg).teacher(step, frozenset()).output
    expected = build_model(distiller_cfg(dataset, teacher / "store")).teacher(step, frozenset()).output
    assert found.logits.shape == (1, 2, 9, 5)
    assert torch.allclose(found.boxes[0], expected.boxes[-1], atol=1e-5)
    assert torch.allclose(found.logits[0].sigmoid(), expected.logits[-1].sigmoid(), atol=1e-5)


@pytest.mark.parametrize("form", ["store", "results.json"])
def test_a_student_learns_from_it(dataset, teacher, form):
    cfg = distiller_cfg(dataset, teacher / form)
    model = build_model(cfg).train()
    losses = model(step_of(cfg).batched_inputs, iteration=0)
    assert any(name.startswith("loss_distill") for name in losses)
    sum(losses.values()).backward()
    assert not [name for name, value in model.named_parameters() if value.grad is None]


def predictions(*boxes):
    boxes = torch.tensor(boxes).reshape(1, 1, -1, 4)
    logits = torch.arange(boxes.shape[2]).float().reshape(1, 1, -1, 1)
    return StoredPredictions(logits, boxes, [boxes.shape[2]])


def test_boxes_follow_a_flip():
    moved = move(predictions([0.25, 0.5, 0.2, 0.4]), [(80.0, 0.0, 0.0, 60.0)], [(60, 80)])
    assert torch.allclose(moved.boxes.flatten(), torch.tensor([0.75, 0.5, 0.2, 0.4])) and moved.counts == [1]


def test_boxes_are_cut_to_a_crop_and_what_is_left_out_comes_last():
    """An image of 100 x 100 of which x 50 to 100 and y 0 to 50 are kept."""
    found = predictions([0.1, 0.1, 0.1, 0.1], [0.5, 0.25, 0.4, 0.1], [0.75, 0.5, 0.1, 0.4])
    moved = move(found, [(-50.0, 0.0, 50.0, 100.0)], [(50, 50)])
    assert moved.counts == [2]
    assert moved.logits.flatten().tolist() == [1, 2, 0]
    expected = torch.tensor([[0.2, 0.5, 0.4, 0.2], [0.5, 0.8, 0.2, 0.4]])
    assert torch.allclose(moved.boxes[0, 0, :2], expected, atol=1e-6)


def test_boxes_move_as_the_objects_do(dataset):
    """The annotations' own boxes, taken for predictions, lie on the ground truth after every augmentation."""
    cfg = distiller_cfg(dataset, "unused", INPUT__RANDOM_FLIP="horizontal", INPUT__CROP__ENABLED=True)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP.SIZE, cfg.INPUT.CROP.TYPE = (40, 56), [0.7, 0.7], "relative_range"
    record = load_records(cfg)[0]
    x, y, width, height = np.array([item["bbox"] for item in record["annotations"]], dtype=np.float32).T
    boxes = np.stack([(x + width / 2) / WIDTH, (y + height / 2) / HEIGHT, width / WIDTH, height / HEIGHT], axis=1)
    placements = set()
    for seed in range(12):
        np.random.seed(seed)
        entry = DetrDatasetMapper(cfg)(record)
        placements.add(entry["placement"])
        truth = read_ground_truth([entry], "cpu")
        moved = move(predictions(*boxes.tolist()), [entry["placement"]], [tuple(entry["image"].shape[-2:])])
        assert moved.counts == truth.counts
        assert torch.allclose(moved.boxes[0, 0, : moved.counts[0]], truth.boxes[0], atol=1e-4)
    assert len(placements) > 6


def test_what_a_file_cannot_give_is_refused(dataset, teacher):
    with pytest.raises(ConfigError, match=r"AttentionLoss asks for .*attention"):
        build_model(distiller_cfg(dataset, teacher / "store", MODEL__DISTILL__LOSSES=["AttentionLoss"]))
    with pytest.raises(ConfigError, match="DETR-type queries"):
        build_model(
            distiller_cfg(
                dataset,
                teacher / "store",
                MODEL__DISTILL__MATCHERS=["FixedMatcher"],
                MODEL__DISTILL__LOSSES=["PredictionLoss"],
            )
        )


def test_images_that_are_missing_are_named(dataset, teacher, tmp_path):
    content = json.loads(Path(dataset[1]).read_text())
    content["images"][0]["id"] = 99
    for item in content["annotations"]:
        item["image_id"] = 99 if item["image_id"] == 5 else item["image_id"]
    (tmp_path / "other.json").write_text(json.dumps(content))
    other = [f"other_{tmp_path.name}", str(tmp_path / "other.json"), dataset[2]]
    register_datasets([other])
    with pytest.raises(DataError, match=r"nothing of 1 of the 4 images of other_.*\(ids 99\)"):
        build_model(distiller_cfg(other, teacher / "store"))


def test_another_set_of_the_same_ids_is_told_from_it(dataset, teacher, tmp_path):
    content = json.loads(Path(dataset[1]).read_text())
    content["images"][2]["file_name"], content["images"][3]["file_name"] = "3.png", "2.png"
    (tmp_path / "other.json").write_text(json.dumps(content))
    other = [f"same_{tmp_path.name}", str(tmp_path / "other.json"), dataset[2]]
    register_datasets([other])
    words = r"another data set: 2 of the 4 images.*id 7: 2\.png of 64 x 48 pixels instead of 3\.png"
    with pytest.raises(DataError, match=words):
        build_model(distiller_cfg(other, teacher / "store"))


def test_loose_images_and_folders_are_looked_at(dataset, teacher):
    """Numbered from 1, as a set that is a folder numbers them; the same scores as in the data set's own order."""
    paths = [str(Path(dataset[2], "1.png")), dataset[2]]
    words = ["--config-file", str(teacher / "teacher.yaml"), "--weights", str(teacher / "teacher.pth")]
    predict([*words, "--output", str(teacher / "loose"), "--images", *paths])
    loose, own = PredictionStore(teacher / "loose"), PredictionStore(teacher / "store")
    assert [(image.id, image.file_name) for image in loose.images] == [
        (1, "1.png"), (2, "0.png"), (3, "1.png"), (4, "2.png"), (5, "3.png")
    ]  # fmt: skip
    assert torch.allclose(loose.read([1, 5]).logits, own.read([6, 8]).logits, atol=1e-4)
    with pytest.raises(SystemExit):
        predict([*words, "--output", str(teacher / "both"), "--images", *paths, "--dataset", dataset[0]])


def test_settings_that_cannot_work(dataset, teacher):
    with pytest.raises(ConfigError, match="WEIGHTS is empty"):
        build_model(distiller_cfg(dataset, ""))
    with pytest.raises(ConfigError, match=r"Set INPUT\.MAPPER detr"):
        build_model(distiller_cfg(dataset, teacher / "store", INPUT__MAPPER="detectron2"))
    model = build_model(distiller_cfg(dataset, teacher / "store")).train()
    batch = [{**entry} for entry in step_of(distiller_cfg(dataset, "unused")).batched_inputs]
    del batch[0]["placement"]
    with pytest.raises(DataError, match="has no placement"):
        model(batch, iteration=0)


def test_images_without_labels_are_looked_for_too(dataset, teacher, tmp_path):
    """A folder's images are numbered from 1; the file knows 5 to 8."""
    keys = {"DATASETS__UNLABELED": (f"pictures_{tmp_path.name}",), "DATALOADER__UNLABELED_PER_BATCH": 1}
    for number in range(2):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((8, 8, 3), np.uint8))
    register_datasets([[f"pictures_{tmp_path.name}", "", str(tmp_path)]])
    with pytest.raises(DataError, match=r"nothing of 2 of the 6 images of .*pictures_.*\(ids 1, 2\)"):
        build_model(distiller_cfg(dataset, teacher / "store", **keys))
    for number in range(2, 5):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DataError, match=r"nothing of 4 of the 9 images of .*\(ids 1, 2, 3, 4\)"):
        build_model(distiller_cfg(dataset, teacher / "store", **keys))


@pytest.fixture(scope="module")
def folder_of_same_ids(dataset, teacher, tmp_path_factory):
    """A folder numbered from 1 beside a set of the same ids, names and sizes; one store of both, one of results."""
    folder = tmp_path_factory.mktemp("twins")
    content = json.loads(Path(dataset[1]).read_text())
    for item in (*content["images"], *content["annotations"]):
        item["image_id" if "image_id" in item else "id"] -= 4
    (folder / "set.json").write_text(json.dumps(content))
    generator = np.random.default_rng(5)
    (folder / "pictures").mkdir()
    for number in range(COUNT):
        picture = generator.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "pictures" / f"{number}.png"), picture)
    labelled = [f"from_one_{folder.name}", str(folder / "set.json"), dataset[2]]
    pictures = [f"twins_{folder.name}", "", str(folder / "pictures")]
    register_datasets([labelled, pictures])
    words = ["--config-file", str(teacher / "teacher.yaml"), "--weights", str(teacher / "teacher.pth")]
    words += ["--dataset", labelled[0], pictures[0], "--output"]
    register = ["DATASETS.REGISTER", json.dumps([dataset, labelled, pictures])]
    predict([*words, str(folder / "store"), *register])
    return labelled, pictures, folder, [*words, str(folder / "both.json"), *register]


def test_images_of_equal_ids_are_told_apart(teacher, folder_of_same_ids):
    """Those of a folder and of a set, both from 1, with equal names and sizes: their content tells."""
    labelled, pictures, folder, _ = folder_of_same_ids
    keys = {"DATASETS__UNLABELED": (pictures[0],), "DATALOADER__UNLABELED_PER_BATCH": 1}
    cfg = distiller_cfg(labelled, folder / "store", **keys)
    stored = build_model(cfg).teacher
    store = PredictionStore(folder / "store")
    records = [*load_records(cfg)[:1], {"file_name": f"{pictures[2]}/0.png", "image_id": 1}]
    assert records[0]["image_id"] == 1 and Path(records[0]["file_name"]).name == "0.png"
    batch = [DetrDatasetMapper(cfg)(record) for record in records]
    truth = read_ground_truth(batch, "cpu", needs_labels=False)
    found = stored(StudentStep(batch, ground_truth=truth, iteration=0), frozenset()).output
    assert torch.equal(found.logits[:, 0], store.read_rows([0]).logits[:, 0])
    assert torch.equal(found.logits[:, 1], store.read_rows([COUNT]).logits[:, 0])
    assert not torch.equal(found.logits[:, 0], found.logits[:, 1])
    batch[1]["file_name"] = "elsewhere.png"
    with pytest.raises(DataError, match=r"elsewhere\.png of the id 1 is in the batch and no image of from_one"):
        stored(StudentStep(batch, ground_truth=truth, iteration=0), frozenset())


def test_a_results_file_of_equal_ids_is_refused(teacher, folder_of_same_ids, capsys):
    labelled, pictures, _, words = folder_of_same_ids
    with pytest.raises(SystemExit):
        predict(words)
    assert "knows images by id alone, and 1 is the id of" in " ".join(capsys.readouterr().err.split())
    keys = {"DATASETS__UNLABELED": (pictures[0],), "DATALOADER__UNLABELED_PER_BATCH": 1}
    with pytest.raises(DataError, match=r"image id 1 is of .*a \.json file knows images by id alone"):
        build_model(distiller_cfg(labelled, teacher / "results.json", **keys))


def test_replaced_pictures_are_noticed(dataset, teacher, tmp_path):
    """Under the same name, of the same size; the file's length tells, or its content."""
    pictures = tmp_path / "pictures"
    shutil.copytree(dataset[2], pictures)
    other = [f"replaced_{tmp_path.name}", dataset[1], str(pictures)]
    register_datasets([other])
    build_model(distiller_cfg(other, teacher / "store"))
    content = bytearray((pictures / "1.png").read_bytes())
    content[-20] ^= 1
    (pictures / "1.png").write_bytes(content)
    with pytest.raises(DataError, match=r"made of other pictures: 1 image files hold something else.*1\.png"):
        build_model(distiller_cfg(other, teacher / "store"))
    (pictures / "2.png").write_bytes(b"longer" * 9999)
    with pytest.raises(DataError, match=r"1 image files hold something else.*2\.png"):
        build_model(distiller_cfg(other, teacher / "store"))


def test_a_store_of_an_earlier_version_teaches_and_says_what_it_does_not_know(dataset, teacher, tmp_path, caplog):
    shutil.copytree(teacher / "store", tmp_path / "store")
    forget_content(tmp_path / "store")
    with caplog.at_level(logging.WARNING):
        found = build_model(distiller_cfg(dataset, tmp_path / "store")).teacher
    assert "written by an earlier version" in caplog.text
    step = step_of(distiller_cfg(dataset, "unused"))
    expected = build_model(distiller_cfg(dataset, teacher / "store")).teacher(step, frozenset()).output
    assert torch.equal(found(step, frozenset()).output.logits, expected.logits)


def test_predictions_are_of_one_setting(teacher, tmp_path, capsys):
    """Neither is a finished folder returned for another input, nor a part of it added."""
    words = ["--config-file", str(teacher / "teacher.yaml"), "--weights", str(teacher / "teacher.pth")]
    words += ["--output", str(tmp_path / "store")]
    shutil.copytree(teacher / "store", tmp_path / "store")
    predict([*words, "--batch", "3"])
    for remove in (False, True):
        if remove:
            next((tmp_path / "store").glob("part-*")).unlink()
        with pytest.raises(SystemExit):
            predict([*words, "INPUT.MIN_SIZE_TEST", "32", "INPUT.FORMAT", "RGB"])
        message = " ".join(capsys.readouterr().err.split())
        assert "differ in INPUT.FORMAT (BGR there, RGB now), INPUT.MIN_SIZE_TEST (48 there, 32 now)" in message


def results_of(teacher, tmp_path, names, *words, keys=()):
    """COCO's results of the same weights, whose classes have these names; and what was printed."""
    content = torch.load(teacher / "teacher.pth", weights_only=True)
    torch.save({**content, "class_names": names}, tmp_path / "named.pth")
    call = ["--config-file", str(teacher / "teacher.yaml"), "--weights", str(tmp_path / "named.pth"), "--score", "0"]
    predict([*call, *words, "--output", str(tmp_path / "results.json"), *keys])
    return json.loads((tmp_path / "results.json").read_text())


def test_results_have_the_categories_of_their_names(teacher, tmp_path, capsys):
    """The set's classes are a to e, of the ids 10 to 14; the detector lists them in reverse, and without b."""
    expected = json.loads((teacher / "results.json").read_text())
    found = results_of(teacher, tmp_path, NAMES[::-1])
    assert [item["category_id"] for item in found] == [24 - item["category_id"] for item in expected]
    assert [item["scores"] for item in found] == [item["scores"][::-1] for item in expected]
    found = results_of(teacher, tmp_path, ["e", "d", "c", "z", "a"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "no category for z: left out. The detector has no class for b: their scores are 0." in printed
    assert {item["category_id"] for item in found} <= {10, 12, 13, 14} and not any(item["scores"][1] for item in found)
    with pytest.raises(SystemExit):
        results_of(teacher, tmp_path, ["v", "w", "x", "y", "z"])
    assert "share no name" in capsys.readouterr().err


def test_results_of_loose_images_have_the_training_set_s_categories(dataset, teacher, tmp_path, capsys):
    found = results_of(teacher, tmp_path, NAMES, "--images", str(Path(dataset[2], "1.png")))
    assert {item["category_id"] for item in found} <= set(range(10, 15))
    found = results_of(
        teacher, tmp_path, NAMES, "--images", str(Path(dataset[2], "1.png")), keys=("DATASETS.TRAIN", "()")
    )
    assert {item["category_id"] for item in found} <= set(range(1, 6))
    assert "No set tells the categories: the detector's classes count from 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--score", "5"], "--score is 5.0"),
        (["--output", "/proc/none/store"], "cannot be written: "),
        (["--output", __file__ + "/store"], "no folder that can be written to"),
        (["--images", "/none"], "--images: there is no image folder /none"),
    ],
)
def test_calls_that_cannot_work(teacher, tmp_path, capsys, words, expected):
    call = ["--config-file", str(teacher / "teacher.yaml"), "--weights", str(teacher / "teacher.pth")]
    output = [] if "--output" in words else ["--output", str(tmp_path / "store")]
    with pytest.raises(SystemExit):
        predict([*call, *output, *words])
    assert expected in " ".join(capsys.readouterr().err.split())
