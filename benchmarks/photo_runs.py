"""What one worker of the study on real photos does: it makes a teacher's files, or trains and tests a student.

A run is that of the training program, called in the worker's own process: starting Python, torch and CUDA takes longer
than many of these small trainings.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

from detr_distill import engine
from detr_distill.checkpoint.files import read_checkpoint
from detr_distill.commands import predict
from detr_distill.engine.process import set_up_logs
from detr_distill.errors import ConfigError

import cv2
import numpy as np
import torch
from photo_labels import hard_labels
from photo_places import Places
from photo_rows import MAP_NAMES, PLAIN, START_PARTS, Collection, Row

METRICS = ("AP", "AP50", "AP75")
PLAIN_CONFIG = "student"
STUDENT_SIZE = "144"  # of an image's short side, configs/photos/student.yaml


def run_name(collection: Collection, row: Row, share: float, seed: int, iterations: int, part: str) -> str:
    """Of a run's files; ``part`` is the one that it is tested on."""
    return f"{collection.name}_{share:g}_{row.slug}_{iterations}_{seed}" + ("" if part == "test" else f"_{part}")


def start_worker(log_folder: Path) -> None:
    """Sends what the training program prints to a file, and keeps each worker to one thread."""
    log = os.open(log_folder / f"worker_{os.getpid()}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def run_program(config: str, keys: list[str], device: str) -> None:
    """The training program with these keys.

    Raises:
        RuntimeError: it ended with an error, which is in the worker's log.
    """
    gpus = "1" if device == "cuda" else "0"
    try:
        engine.main(["--config-file", config, "--num-gpus", gpus, "MODEL.DEVICE", device, *keys])
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{config} ended with {end.code}") from end
    finally:
        set_up_logs()  # closes the run's own log, whose folder goes


def make_teacher(collection: Collection, share: float, places: Places) -> dict:
    """Trains the teacher of a share of the labels and lets it predict, where either is missing; its figures."""
    weights, predictions = places.weights(collection, share), places.predictions(collection, share)
    figures = weights.with_suffix(".json")
    data = collection.keys(collection.iterations[1], places.part)
    if not weights.is_file():
        keys = [*data, "DATASETS.LABELED_SHARE", str(share), "SEED", "1"]
        if not collection.shipped and not Path(places.imagenet).is_file():
            raise ConfigError(
                f"--imagenet {places.imagenet or 'is not given'}: the teacher begins with weights of ImageNet. Name "
                "their file; docs/training.md says where it comes from."
            )
        with tempfile.TemporaryDirectory() as name:
            pretrained = [] if collection.shipped else ["MODEL.TIMM.PRETRAINED", places.imagenet]
            run_program(collection.teacher_config, [*keys, *pretrained, "OUTPUT_DIR", name], places.device)
            found = {**scores(Path(name), collection.tests[places.part]), "iterations": collection.iterations[1]}
            keep_half(Path(name), weights)
        figures.write_text(json.dumps(found))
    keys = [*data, "MODEL.DEVICE", places.device]
    named = ["--config-file", collection.teacher_config, "--weights", str(weights), "--dataset", collection.train]
    if not (predictions / "predictions.json").is_file():
        predict.main([*named, "--output", str(predictions), "--dtype", "float16", *keys])
    maps = places.maps(collection, share)
    if "maps_from_file" in collection.configs and share == 1 and not (maps / "predictions.json").is_file():
        wanted = ["--maps", *MAP_NAMES, "--mirrored", "--dtype", "float16"]
        predict.main([*named, "--output", str(maps), *wanted, *keys, "INPUT.MIN_SIZE_TEST", STUDENT_SIZE])
    return json.loads(figures.read_text()) if figures.is_file() else {}


def keep_half(folder: Path, file: Path) -> None:
    """Keeps the detector that a run left, in two bytes a number: it may travel."""
    content = read_checkpoint(folder / "student_final.pth")
    content["model"] = {key: v.half() if v.is_floating_point() else v for key, v in content["model"].items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file)


def rate_name(collection: Collection, rate: float, iterations: int) -> str:
    """Of the files of a plain run that helps to choose the learning rate."""
    return f"{collection.name}_rate_{rate:g}_{iterations}"


def try_rate(collection: Collection, rate: float, places: Places) -> dict:
    """Trains a plain student with all labels at a learning rate and keeps what it reaches on the validation part."""
    config, keys = collection.configs[PLAIN_CONFIG]
    own = collection.iterations[0]
    with tempfile.TemporaryDirectory() as name:
        data = [*keys, *collection.keys(own, "val"), "SOLVER.BASE_LR", str(rate), "SEED", "1"]
        run_program(config, [*data, "OUTPUT_DIR", name], places.device)
        result = {"set": collection.name, "rate": rate, "part": "val", **scores(Path(name), collection.tests["val"])}
    places.result(rate_name(collection, rate, own)).write_text(json.dumps(result))
    return result


def chosen_rate(collection: Collection, places: Places) -> float | None:
    """The learning rate of the best plain student on the validation part; None where none was tried."""
    files = places.results.glob(f"{collection.name}_rate_*_{collection.iterations[0]}.json")
    found = [json.loads(file.read_text()) for file in files]
    return max(found, key=lambda result: result["AP"])["rate"] if found else None


def train_student(
    name: str, collection: Collection, row: Row, share: float, seed: int, iterations: int, places: Places
) -> dict:
    """Trains and tests one student; keeps its figures and detections in the results folder.

    Args:
        name: of its files there. share: of the labels. iterations: how long it trains.
    """
    config, keys = student_keys(collection, row, share, iterations, places)
    rate = chosen_rate(collection, places)
    keys += ["SOLVER.BASE_LR", str(rate)] if rate else []
    keys += ["MODEL.WEIGHTS", str(places.student(collection, share, seed))] if row.goes_on else []
    test = collection.tests[places.part]
    with tempfile.TemporaryDirectory() as folder:
        start, cpu = time.perf_counter(), time.process_time()
        run_program(config, [*keys, "SEED", str(seed), "OUTPUT_DIR", folder], places.device)
        result = {
            "set": collection.name,
            "labels": share,
            "row": row.name,
            "seed": seed,
            "part": places.part,
            "iterations": iterations,
            **scores(Path(folder), test),
            "device": places.device,
            "wall_seconds": round(time.perf_counter() - start, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
        }
        if row.name == PLAIN and share < 1:
            keep_half(Path(folder), places.student(collection, share, seed))
        detections = json.loads((Path(folder) / "inference" / test / "coco_instances_results.json").read_text())
    found = as_arrays(detections)
    np.savez_compressed(places.results / f"{name}.npz", allow_pickle=False, **found)
    places.result(name).write_text(json.dumps(result))
    return result


def scores(folder: Path, test: str) -> dict[str, float]:
    """AP, AP50, AP75 that a run left in its folder."""
    boxes = json.loads((folder / "results.json").read_text())["datasets"][test]["bbox"]
    return {metric: round(boxes[metric], 3) for metric in METRICS}


def as_arrays(detections: list[dict]) -> dict[str, np.ndarray]:
    """COCO results as arrays: ``image_id``, ``category_id``, ``bbox`` (N, 4), ``score``."""
    return {
        "image_id": np.array([item["image_id"] for item in detections], np.int32),
        "category_id": np.array([item["category_id"] for item in detections], np.int16),
        "bbox": np.array([item["bbox"] for item in detections], np.float32).reshape(-1, 4),
        "score": np.array([item["score"] for item in detections], np.float32),
    }


def student_keys(
    collection: Collection, row: Row, share: float, iterations: int, places: Places
) -> tuple[str, list[str]]:
    """Configuration file and KEY VALUE of a row's student."""
    config, keys = collection.configs[row.config]
    keys = [*keys, *collection.keys(iterations, places.part)]
    seen = share if row.few else 1.0
    weights = str(places.weights(collection, seen))
    teacher = ["MODEL.DISTILL.TEACHER.CONFIG_FILE", collection.teacher_config]
    options = str(["MODEL.DETR.NUM_CLASSES", collection.classes, "DATASETS.TRAIN", [collection.train]])
    if row.teacher == "boxes":
        keys += hard_labels(collection, share, seen, places)
    else:
        keys += ["DATASETS.LABELED_SHARE", str(share)]
    if row.teacher == "file":
        keys += ["MODEL.DISTILL.TEACHER.WEIGHTS", str(places.predictions(collection, seen))]
    if row.teacher == "maps":
        keys += ["MODEL.DISTILL.TEACHER.WEIGHTS", str(places.maps(collection, seen))]
    if row.teacher == "live":
        keys += [*teacher, "MODEL.DISTILL.TEACHER.WEIGHTS", weights, "MODEL.DISTILL.TEACHER.OPTS", options]
    if row.start:
        keys += ["MODEL.DISTILL.START_FROM_TEACHER", str(START_PARTS), "MODEL.DISTILL.START_WEIGHTS", weights]
        if row.teacher != "live":
            keys += [*teacher, "MODEL.DISTILL.TEACHER.OPTS", options]
    return config, keys
