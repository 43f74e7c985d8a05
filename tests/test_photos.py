"""The study on real photos in miniature: its data, its runs, its intervals, its pages."""

from __future__ import annotations

import ast
import dataclasses
import json
import operator
import os
import time
from pathlib import Path

from detr_distill.engine.evaluation import evaluate_boxes
from detr_distill.errors import ConfigError

import cv2
import numpy as np
import pytest

from benchmarks import (
    advice,
    evidence,
    evidence_tables,
    paired,
    photo_labels,
    photo_places,
    photo_rows,
    photo_runs,
    photo_sets,
    workers,
)
from benchmarks import photos as study
from benchmarks.photo_rows import Collection, Row

ROOT = Path(__file__).resolve().parent.parent
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
SMALL = [
    *("MODEL.CONV_BACKBONE.CHANNELS", "[4, 4, 8, 8, 8]", "MODEL.DETR.HIDDEN_DIM", "32", "MODEL.DETR.FFN_DIM", "16"),
    *("MODEL.DETR.NUM_QUERIES", "6", "SOLVER.IMS_PER_BATCH", "2"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """BCCD's folders with a few pictures of 400x300 pixels, and the small copies of them."""
    folder = tmp_path_factory.mktemp("photos")
    source = folder / "data" / "bccd"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (source / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 1), ("test", 3)):
        names = [f"{part}{number}" for number in range(count)]
        (source / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names))
        for name in names:
            picture = random.integers(0, 255, (300, 400, 3), np.uint8)
            cv2.imwrite(str(source / "JPEGImages" / f"{name}.jpg"), picture)
            boxes = OBJECT.format("RBC", 0, 40, 200, 140) + OBJECT.format("WBC", 100, 100, 300, 300)
            boxes += OBJECT.format("Platelets", 10, 10, 10, 60)  # without area, as two of BCCD's
            (source / "Annotations" / f"{name}.xml").write_text(f"<annotation>{boxes}</annotation>")
    return photo_sets.prepare(folder / "data", folder / "sets", ["bccd"])["bccd"]


def test_copies_have_the_size_that_is_trained_on(photos):
    content = json.loads(Path(photos[0][1]).read_text())
    assert [name for name, *_ in photos] == ["bccd_train", "bccd_val", "bccd_test"]
    assert {(image["width"], image["height"]) for image in content["images"]} == {(256, 192)}
    picture = cv2.imread(str(Path(photos[0][2]) / content["images"][0]["file_name"]))
    assert picture.shape == (192, 256, 3)
    boxes = [item["bbox"] for item in content["annotations"][:2]]
    assert np.allclose(boxes, [[0, 25.6, 128, 64], [64, 64, 128, 128]])
    assert len(content["annotations"]) == 2 * len(content["images"])


@pytest.fixture(scope="module")
def miniature(photos, tmp_path_factory):
    """The set, and the places of a study whose teacher has trained for two iterations."""
    work = tmp_path_factory.mktemp("work")
    configs = {name: (f"configs/photos/{name}.yaml", list(SMALL)) for name in photo_rows.PHOTO_METHODS}
    for name in ("unlabeled", "self_training"):
        configs[name][1].extend(["DATALOADER.UNLABELED_PER_BATCH", "2"])
    teacher = work / "teacher.yaml"
    teacher.write_text(
        f"_BASE_: {ROOT}/configs/photos/student.yaml\nMODEL: {{CONV_BACKBONE: {{CHANNELS: [4, 4, 8, 8, 8]}}, "
        "DETR: {HIDDEN_DIM: 32, FFN_DIM: 16, NUM_QUERIES: 6}}\nSOLVER: {IMS_PER_BATCH: 2}\n"
    )
    tests = {"val": "bccd_val", "test": "bccd_test"}
    collection = Collection("bccd", 3, configs, str(teacher), tuple(photos), "bccd_train", tests, (2, 2))
    network = work / "imagenet.pth"  # of no use to this teacher, whose backbone is another
    network.touch()
    places = photo_places.Places(work, work / "runs", str(network), "cpu", "test")
    places.results.mkdir()
    photo_runs.make_teacher(collection, 1.0, places)
    return collection, places


ROWS = [
    (Row("live and start", "d3etr", "live", start=True), 1.0),
    (Row("maps", "maps_from_file", "maps"), 1.0),
    (Row("unlabelled", "unlabeled", "file"), 0.5),
    (Row(photo_rows.PLAIN), 0.5),
    (Row("own average", "self_training", goes_on=True), 0.5),
]


@pytest.mark.parametrize(("row", "share"), ROWS, ids=[row.slug for row, _ in ROWS])
def test_a_run_leaves_its_figures_and_detections(miniature, row, share):
    collection, places = miniature
    photo_runs.train_student(row.slug, collection, row, share, 1, 2, places)
    kept = json.loads(places.result(row.slug).read_text())
    assert kept["row"] == row.name and kept["iterations"] == 2 and kept["labels"] == share
    arrays = np.load(places.results / f"{row.slug}.npz")
    assert set(arrays["image_id"]) == {1, 2, 3} and arrays["bbox"].shape == (len(arrays["score"]), 4)


def test_hard_boxes_stand_where_there_are_no_labels(miniature, monkeypatch):
    collection, places = miniature
    monkeypatch.setattr(photo_labels, "HARD_SCORE", 0.0)
    keys = photo_labels.hard_labels(collection, 0.5, 1.0, places)
    entries = ast.literal_eval(keys[1])
    content = json.loads(Path(entries[-1][1]).read_text())
    own = json.loads(Path(collection.entries[0][1]).read_text())["annotations"]
    counts = {image["id"]: 0 for image in content["images"]}
    for item in content["annotations"]:
        counts[item["image_id"]] += 1
    assert sorted(counts.values()) == [2, 2, 2, 6, 6, 6]  # two objects, or six queries
    assert all(
        item["bbox"] in [other["bbox"] for other in own]
        for item in content["annotations"]
        if counts[item["image_id"]] == 2
    )


@pytest.fixture(scope="module")
def detected():
    """A test set of 12 images, and detections that are right to different degrees."""
    random = np.random.default_rng(1)
    images = [{"id": number, "width": 100, "height": 100} for number in range(1, 13)]
    boxes = random.uniform(5, 40, (60, 4))
    truth = [
        {"id": n + 1, "image_id": n % 12 + 1, "category_id": n % 3 + 1, "iscrowd": 0, "bbox": box.tolist()}
        for n, box in enumerate(boxes)
    ]
    categories = [{"id": number, "name": str(number)} for number in (1, 2, 3)]
    results = {
        spread: [
            {**item, "bbox": (np.array(item["bbox"]) + random.normal(0, spread, 4)).tolist(), "score": random.random()}
            for item in truth
        ]
        for spread in (1.0, 4.0)
    }
    return {"images": images, "annotations": truth, "categories": categories}, results


def test_the_resampled_metric_is_cocos(detected):
    dataset, results = detected
    stats = evaluate_boxes(dataset, results[4.0], fast=False).stats
    matched = paired.match_images(dataset, results[4.0])
    ours = paired.average_precision(matched, np.ones((1, 12), int))[0]
    assert np.allclose([ours.mean(), ours[0], ours[5]], 100 * np.array(stats[:3]))
    # An image that is drawn twice counts twice: the same as a set that holds it under two ids.
    weights = np.array([[2, *[1] * 10, 0]])
    kept = [item for item in dataset["annotations"] if item["image_id"] < 12]
    twice = [{**item, "image_id": 12, "id": item["id"] + 100} for item in kept if item["image_id"] == 1]
    again = [item for item in results[4.0] if item["image_id"] < 12]
    again += [{**item, "image_id": 12} for item in again if item["image_id"] == 1]
    expected = evaluate_boxes({**dataset, "annotations": kept + twice}, again, fast=False).stats[0]
    assert np.isclose(paired.average_precision(matched, weights)[0].mean(), 100 * expected)


def test_the_interval_is_of_the_difference(detected):
    dataset, results = detected
    weights = paired.resample(12, 100)
    near, far = (
        paired.average_precision(paired.match_images(dataset, results[s]), weights).mean(1) for s in (1.0, 4.0)
    )
    low, high = paired.interval((near - far)[1:])
    assert 0 < low < (near - far)[0] < high
    assert paired.interval((near - near)[1:]) == (0, 0)


def test_jobs_keep_order_needs_and_deadline():
    done: list[str] = []
    jobs = [
        workers.Job("needs b", time.sleep, (0.0,), 0.01, after=("b",)),
        workers.Job("b", time.sleep, (0.3,), 1.0),
        workers.Job("fails", operator.truediv, (1, 0), 0.01),
        workers.Job("needs fails", time.sleep, (0.0,), 0.01, after=("fails",)),
        workers.Job("long", time.sleep, (0.0,), 1e6),
    ]
    undone = workers.complete(jobs, 1, os.getpid, (), lambda job, _: done.append(job.name), time.monotonic() + 60)
    assert done == ["b", "needs b"]
    assert undone == {
        "fails": "ZeroDivisionError: division by zero",
        "needs fails": "fails is missing",
        "long": "no time",
    }


def test_an_interrupted_pool_waits_for_nothing():
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    jobs = [workers.Job("long", time.sleep, (60.0,), 1.0), workers.Job("short", time.sleep, (0.0,), 1.0)]
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        workers.complete(jobs, 2, os.getpid, (), interrupt)
    assert time.monotonic() - began < 50


def test_a_killed_worker_leaves_the_rest_undone():
    jobs = [workers.Job(name, os._exit, (9,), 1.0) for name in ("a", "b")]
    undone = workers.complete(jobs, 1, os.getpid, (), lambda *_: None)
    assert set(undone) == {"a", "b"} and all("abruptly" in reason for reason in undone.values())


def test_a_rival_takes_no_longer_and_knows_no_more():
    def entry(row: Row, ap: float, steps: float) -> evidence_tables.Entry:
        return evidence_tables.Entry(row, [{"AP": ap}], steps, steps)

    few = entry(Row("few", "unlabeled", "file", few=True), 50, 100)
    file = entry(Row("file", "from_file", "file"), 50, 100)
    plain, longer = entry(Row("plain", control=True), 30, 100), entry(Row("longer", control=True), 60, 200)
    boxes = entry(Row("boxes", teacher="boxes", control=True), 40, 100)
    table = evidence_tables.Table(None, 1.0, [few, file, plain, longer, boxes])
    assert table.rival(file) is boxes and table.rival(few) is plain


def test_the_pages_are_made_from_the_stored_files(tmp_path):
    results = ROOT / "benchmarks" / "results"
    if not (results / evidence.RUNS_FILE).is_file():
        pytest.skip("the study has not been stored")
    (tmp_path / "images").mkdir()
    evidence.write_pages(results, tmp_path)
    for name in ("evidence.md", "when-to-distil.md"):
        assert (tmp_path / name).read_text() == (ROOT / "docs" / name).read_text()


def test_what_is_missing_is_named(tmp_path, capsys):
    options = ["--work", str(tmp_path), "--results", str(tmp_path / "runs"), "--sets", "bccd", "--no-report"]
    with pytest.raises(SystemExit) as end:
        study.main(["--data", str(tmp_path / "absent"), *options])
    assert end.value.code == 1
    assert "absent" in capsys.readouterr().err


def test_a_teacher_is_not_trained_without_its_weights(miniature):
    collection, places = miniature
    with pytest.raises(ConfigError, match="--imagenet is not given"):
        photo_runs.make_teacher(collection, 0.5, dataclasses.replace(places, imagenet=""))


def test_every_row_that_distils_has_a_situation():
    rows = [row for table in (photo_rows.ALL_LABELS, photo_rows.FEW_LABELS) for row in table if not row.control]
    named = [name for names in advice.SITUATIONS.values() for name in names]
    assert sorted(named) == sorted(row.name for row in rows)


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.1, 2.0, "pays"), (-2.0, -0.1, "costs"), (-1.0, 1.0, "no difference")]
)
def test_a_verdict_follows_from_the_interval(low, high, word):
    gain = {
        "row": photo_rows.FILE,
        "rival": "plain",
        "seeds": 3,
        "AP": (low + high) / 2,
        "AP_low": low,
        "AP_high": high,
    }
    page = advice.advice_page([(gain, "Blood cells")])
    assert word in page and f"[{low:+.1f}, {high:+.1f}] over plain" in page and page.count("##") == 1
