"""Sets, class lists and teachers that a run cannot start with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from detr_distill.config.build import build_config
from detr_distill.data import register_datasets
from detr_distill.distill.classes import match_classes
from detr_distill.engine.starting.check import check_start

import cv2
import numpy as np
from helpers.builders import ROOT
from helpers.data.plain_sets import write_set

from bad_input import Row

STUDENT = str(ROOT / "configs/digits/conditional_student.yaml")
DISTILLED = str(ROOT / "configs/digits/d3etr_conditional.yaml")
Change = Callable[[dict], object]


def start(
    folder: Path,
    change: Change | None = None,
    *overrides: str,
    train_change: Change | None = None,
    damage: Callable[[Path], object] | None = None,
    training: bool = True,
    config: str = STUDENT,
) -> object:
    """Checks a run whose test set is changed, or whose pictures of the test set are damaged, or both."""
    names = f"train_{folder.name}", f"val_{folder.name}"
    train = write_set(folder, names[0], change=train_change)
    test = write_set(folder, names[1], change=change)
    if damage is not None:
        damage(Path(test[2]))
    words = ["DATASETS.REGISTER", json.dumps([train, test]), "MODEL.DETR.NUM_CLASSES", "3", "MODEL.DEVICE", "cpu"]
    words += ["DATASETS.TRAIN", f"('{names[0]}',)", "DATASETS.TEST", f"('{names[1]}',)", *overrides]
    return check_start(build_config(config, words), training=training)


def both_train(folder: Path, change: Change) -> object:
    names = f"('train_{folder.name}', 'val_{folder.name}')"
    return start(folder, change, "DATASETS.TRAIN", names)


def rename(*names: str) -> Change:
    """Gives the categories other names, and leaves out those that get none."""

    def change(content: dict) -> None:
        content["categories"] = [{"id": index, "name": name} for index, name in enumerate(names, start=1)]
        content["annotations"] = [item for item in content["annotations"] if item["category_id"] <= len(names)]

    return change


def resize(content: dict) -> None:
    content["images"][1]["width"] = 31


def no_annotations(content: dict) -> None:
    content["annotations"].clear()


def all_crowds(content: dict) -> None:
    for item in content["annotations"]:
        item["iscrowd"] = 1


def cut_short(folder: Path) -> None:
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:20])


def remove_folder(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def unlabelled(
    folder: Path,
    *overrides: str,
    damage: Callable[[Path], object] | None = None,
    change: Change | None = None,
    config: str = DISTILLED,
) -> object:
    """Checks a run with images of a set without labels, whose content or pictures are changed."""
    entry = write_set(folder / "more", f"more_{folder.name}", change=change)
    for number, picture in enumerate(sorted(Path(entry[2]).iterdir())):
        cv2.imwrite(str(picture), np.full((24, 32, 3), 10 + number, np.uint8))
    if damage is not None:
        damage(Path(entry[2]))
    register_datasets([entry])
    words = ("DATASETS.UNLABELED", f"('{entry[0]}',)", "DATALOADER.UNLABELED_PER_BATCH", "1", *overrides)
    return start(folder, None, *words, config=config)


def no_images(content: dict) -> None:
    content["images"].clear()


def trained_on(folder: Path) -> None:
    """The picture of the other sets."""
    cv2.imwrite(str(folder / "1.png"), np.full((24, 32, 3), 90, np.uint8))


def from_predictions(folder: Path, entries: object) -> object:
    """Checks a run whose teacher is a file of results."""
    (folder / "results.json").write_text(json.dumps(entries))
    words = (f"{TEACHER}.NAME", "PredictionsFile", f"{TEACHER}.WEIGHTS", str(folder / "results.json"))
    return start(folder, None, *words, config=DISTILLED)


RED = ["red", "green", "blue"]
TEACHER = "MODEL.DISTILL.TEACHER"

ROWS = [
    Row("test_set_order", lambda f: start(f, rename("blue", "green", "red")), r"TRAIN train_.* and DATASETS.TEST val_"),
    Row("test_set_order_shows", lambda f: start(f, rename("blue", "green", "red")), r"\['blue', 'green', 'red'\]"),
    Row("test_set_fewer", lambda f: start(f, rename("red", "green")), "the second lacks 'blue'"),
    Row("test_set_more", lambda f: start(f, rename(*RED, "pink")), "the second adds 'pink'"),
    Row(
        "test_set_other", lambda f: start(f, rename("red", "green", "Blue")), "lacks 'blue' and the second adds 'Blue'"
    ),
    Row("train_sets_order", lambda f: both_train(f, rename("blue", "green", "red")), "and DATASETS.TRAIN val_.*order"),
    Row(
        "train_sets_fewer", lambda f: both_train(f, rename("red")), "from class 1 on: the second lacks 'green', 'blue'"
    ),
    Row(
        "number_of_classes", lambda f: start(f, None, "MODEL.DETR.NUM_CLASSES", "4"), "Set MODEL.DETR.NUM_CLASSES to 3"
    ),
    Row("test_image_gone", lambda f: start(f, damage=lambda p: (p / "1.png").unlink()), "lacks 1 of the 4 images"),
    Row("test_image_empty", lambda f: start(f, damage=lambda p: (p / "1.png").write_bytes(b"")), r"1\.png is empty"),
    Row(
        "test_image_text", lambda f: start(f, damage=lambda p: (p / "1.png").write_text("no")), r"1\.png .*not an image"
    ),
    Row("test_image_header", lambda f: start(f, damage=cut_short), r"1\.png \(20 bytes\) is damaged"),
    Row(
        "test_image_size", lambda f: start(f, resize), r"2\.png is 32 x 24 pixels, but its annotation file says 31 x 24"
    ),
    Row("train_image_size", lambda f: start(f, train_change=resize), r"DATASETS\.TRAIN .*\n.*2\.png is 32 x 24"),
    Row("test_folder_gone", lambda f: start(f, damage=remove_folder), "lacks 4 of the 4 images"),
    Row("test_set_unknown", lambda f: start(f, None, "DATASETS.TEST", "('nil',)"), "TEST has 'nil', which"),
    Row("train_set_unknown", lambda f: start(f, None, "DATASETS.TRAIN", "('nil',)"), "TRAIN has 'nil', which"),
    Row("built_in_absent", lambda f: start(f, None, "DATASETS.TEST", "('coco_2017_val',)"), "DETECTRON2_DATASETS"),
    Row("not_coco", lambda f: start(f, None, "DATASETS.TEST", "('cityscapes_fine_instance_seg_val',)"), 'only "coco"'),
    Row("no_test_set", lambda f: start(f, None, "DATASETS.TEST", "()", training=False), "nothing would be evaluated"),
    Row("test_set_twice", lambda f: start(f, None, "DATASETS.TEST", "('digits_val', 'digits_val')"), "each set once"),
    Row("no_annotations", lambda f: start(f, train_change=no_annotations), "not one usable object in 4 images"),
    Row("crowds_alone", lambda f: start(f, train_change=all_crowds), "not one usable object in 4 images"),
    Row("best_metric", lambda f: start(f, None, "TEST.BEST_METRIC", "bbox/AR"), "which is not computed"),
    Row("best_metric_set", lambda f: start(f, None, "TEST.BEST_METRIC", "nil/bbox/AP"), "SET/bbox/AP"),
    Row(
        "teacher_file",
        lambda f: start(f, None, f"{TEACHER}.CONFIG_FILE", "nil.yaml", config=DISTILLED),
        "names nil.yaml",
    ),
    Row(
        "teacher_weights", lambda f: start(f, None, f"{TEACHER}.WEIGHTS", "nil.pth", config=DISTILLED), "names nil.pth"
    ),
    Row(
        "teacher_name",
        lambda f: start(f, None, f"{TEACHER}.NAME", "Nil", config=DISTILLED),
        "names 'Nil', which is not",
    ),
    Row("unlabelled_plain", lambda f: unlabelled(f, config=STUDENT), "DetrDetector is trained on labels alone"),
    Row("unlabelled_unknown", lambda f: unlabelled(f, "DATASETS.UNLABELED", "('nil',)"), "UNLABELED has 'nil', which"),
    Row("unlabelled_cut", lambda f: unlabelled(f, damage=cut_short), r"UNLABELED more.*\n.*1\.png .*is damaged"),
    Row("unlabelled_gone", lambda f: unlabelled(f, damage=lambda p: (p / "1.png").unlink()), "lacks 1 of the 4 images"),
    Row("unlabelled_size", lambda f: unlabelled(f, change=resize), r"UNLABELED more.*\n.*2\.png is 32 x 24"),
    Row("unlabelled_none", lambda f: unlabelled(f, change=no_images), r"UNLABELED: dataset more_\S+ has no image"),
    Row("unlabelled_images", lambda f: unlabelled(f, change=lambda c: c.pop("images")), "section 'images' is missing"),
    Row("unlabelled_trained", lambda f: unlabelled(f, damage=trained_on), r"1 images whose content is trained on with"),
    Row(
        "strong_elsewhere",
        lambda f: start(f, None, "INPUT.STRONG.IMAGES", "all", "INPUT.MAPPER", "detectron2", config=DISTILLED),
        r"INPUT\.STRONG\.IMAGES is 'all', and INPUT\.MAPPER 'detectron2' has no strong",
    ),
    Row(
        "start_file",
        lambda f: start(f, None, "MODEL.DISTILL.START_FROM_TEACHER", "['decoder']"),
        "START_WEIGHTS are empty",
    ),
    Row(
        "results_entry",
        lambda f: from_predictions(f, [{"image_id": [1]}]),
        r"results\.json, entry 0 lacks 'category_id'",
    ),
    Row("results_object", lambda f: from_predictions(f, [1]), r"results\.json, entry 0 is 1; a result is an object"),
    Row("results_empty", lambda f: from_predictions(f, []), r"results\.json holds no detection"),
    Row("names_twice", lambda _: match_classes(RED, ["red"] * 3, 3, 3), "red more than once"),
    Row("names_of_nothing", lambda _: match_classes(RED, ["red", "LABEL_1", "blue"], 3, 3), "have LABEL_1, which name"),
    Row("names_unknown", lambda _: match_classes(RED, None, 3, 3), "names of the teacher's 3 classes are unknown"),
    Row("names_unshared", lambda _: match_classes(RED, ["a", "b", "c"], 3, 3), "share no name"),
    Row(
        "names_too_few", lambda _: match_classes(RED, ["red"], 3, 3), "predicts 3 classes and its training set names 1"
    ),
]
