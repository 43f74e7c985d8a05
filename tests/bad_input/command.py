"""The command ``detr-distill``: data, teachers and students that it cannot use."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest import mock

from detr_distill.commands import distil, predict, train
from detr_distill.commands.drawing import from_onnx
from detr_distill.commands.drawing.media import draw_media, find_media
from detr_distill.commands.recipe.compose import compose
from detr_distill.commands.recipe.detectors import find_detector
from detr_distill.commands.recipe.running import check_one_process, count_gpus
from detr_distill.commands.recipe.students import find_student
from detr_distill.commands.report import report
from detr_distill.data.formats import find_set
from detr_distill.options.recipes import distil_parser, train_parser
from detr_distill.options.simple import predict_parser

from helpers.data.layouts import coco, picture, voc, yolo

from bad_input import Row


def data(make):
    """A folder that ``make`` fills is named as training set."""

    def call(folder: Path) -> None:
        make(folder)
        find_set(str(folder), "train", "--train")

    return call


def two_formats(folder: Path) -> None:
    coco(folder, "train.json", ".")
    yolo(folder, "names: [cat]\ntrain: images/train\n")


def two_sets(folder: Path) -> None:
    coco(folder, "first.json", ".")
    coco(folder, "second.json", ".")


def teacher(name: str, text: str | None = None, *others: str, inside: bool = True):
    """A file of a text, or a folder, beside empty files, is named as teacher."""

    def call(folder: Path) -> None:
        path = folder / name
        if text is not None:
            path.write_text(text)
        for other in others:
            (folder / other).write_text("")
        find_detector(str(path if inside else folder), "--teacher")

    return call


def other_task(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]}))
    find_detector(str(folder), "--teacher")


def composed(*words: str, student: str = "configs/digits/conditional_student.yaml"):
    """A dry run with a small student on a set in the folder."""

    def call(folder: Path) -> None:
        voc(folder / "set")
        given = ["--train", str(folder / "set"), "--output", str(folder / "run")]
        arguments = distil_parser().parse_args([*given, *(word.format(folder) for word in words)])
        compose(arguments, student, "--student", "")

    return call


def held_out_of_a_broken_file(folder: Path) -> None:
    content = json.loads(coco(folder / "set", "train.json", ".", "abcdefgh").read_text())
    del content["annotations"][0]["image_id"]
    (folder / "set" / "train.json").write_text(json.dumps(content))
    words = ["--train", str(folder / "set"), "--output", "run"]
    compose(distil_parser().parse_args(words), "configs/digits/conditional_student.yaml", "--student", "")


def checked(module, parser, *words: str):
    return lambda _: module.check(parser().parse_args(list(words)))


def predicted(*words: str):
    return lambda _: predict.run(predict_parser().parse_args(["--weights", "a.pth", *words]))


def no_video(folder: Path) -> None:
    (folder / "a.mp4").write_bytes(b"no video")
    draw_media([str(folder / "a.mp4")], folder / "out", lambda image: None, ())


def no_onnx(folder: Path) -> None:
    (folder / "a.onnx").write_bytes(b"no graph")
    from_onnx(folder / "a.onnx", None, 0.5)


def one_name(folder: Path) -> None:
    for part in ("a", "b"):
        picture(folder / part / "x.png")
    list(find_media([str(folder / "a"), str(folder / "b")]))


def with_torchrun(_: Path) -> None:
    names = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "TORCHELASTIC_RESTART_COUNT",
        "TORCHELASTIC_RUN_ID",
    )
    started = dict.fromkeys(names, "1")
    with mock.patch.dict(os.environ, started):
        check_one_process()


def not_evaluated(folder: Path) -> None:
    (folder / "config.yaml").write_text("MODEL: {META_ARCHITECTURE: FCOS}")
    report([folder])


ROWS = [
    Row("no_data", lambda tmp: find_set(str(tmp / "none"), "train", "--train"), "--train .*none: there is nothing"),
    Row("empty_folder", data(lambda tmp: None), "--train .*it is empty. Name COCO's .json file"),
    Row("only_images", data(lambda tmp: picture(tmp / "a.jpg")), "it holds a.jpg, and no annotations"),
    Row("two_formats", data(two_formats), "annotations of COCO and of YOLO: .*train.json.*data.yaml"),
    Row("two_sets", data(two_sets), "holds several sets: .*first.json.*second.json"),
    Row(
        "voc_without_the_part", data(lambda tmp: voc(tmp, test="a")), "lists of its parts, test.txt, and none called tr"
    ),
    Row("yolo_without_names", data(yolo), "YOLO's labels, and no .yaml file there or above names their classes"),
    Row("images_elsewhere", data(lambda tmp: coco(tmp, "train.json", "some/where")), "a.png, is in none.*train-images"),
    Row("teacher_nowhere", teacher("none.pth"), "--teacher .*none.pth: there is no such file"),
    Row("teacher_of_the_hub", lambda _: find_detector("PekingU/rtdetr", "--teacher"), "hf download PekingU/rtdetr"),
    Row(
        "teacher_a_folder",
        teacher("a.txt", "", inside=False),
        "--teacher .* holds a.txt. Name a folder of transformers",
    ),
    Row(
        "teacher_unfinished",
        teacher("config.yaml", "", "model_0000009.pth", inside=False),
        "has not ended.*0000009.pth",
    ),
    Row("teacher_without_configuration", teacher("a.pth", ""), "a.pth is a checkpoint without a config.yaml.*import"),
    Row("teacher_in_its_folder", teacher("a.safetensors", "", "config.json"), "is of a folder of transformers"),
    Row("teacher_annotations", teacher("a.json", '{"images": []}'), "a.json is an annotation file"),
    Row("teacher_no_detections", teacher("a.json", '{"a": 1}'), "a.json is JSON, and no list of detections"),
    Row("teacher_exported", teacher("a.onnx", ""), "a.onnx is an exported program"),
    Row("teacher_of_another_task", other_task, "is of BertForMaskedLM, a model of another task"),
    Row("student_mistyped", lambda _: find_student("rtdetr_v2_r19", "--student"), "Did you mean rtdetr_v2_r18"),
    Row("student_that_distils", composed(student="configs/digits/d3etr_conditional.yaml"), "distils by itself"),
    Row("student_no_file", lambda _: find_student("none.yaml", "--student"), "none.yaml: there is no such file"),
    Row("no_teacher", checked(distil, distil_parser, "--student", "dino_r50"), "--teacher is missing"),
    Row("no_student", checked(distil, distil_parser, "--teacher", "a"), "--student is missing"),
    Row("no_detector", checked(train, train_parser), "give one of them"),
    Row(
        "configuration_and_data",
        checked(train, train_parser, "--config-file", "a", "--train", "b"),
        "--train with --co",
    ),
    Row("no_output", lambda tmp: compose(distil_parser().parse_args([]), "", "--student", ""), "--output is missing"),
    Row("output_twice", composed("OUTPUT_DIR", "a"), "OUTPUT_DIR is what --output names"),
    Row("same_set_twice", composed("--val", "{}/set"), "are the same set"),
    Row("nothing_to_hold_out", composed("--hold-out", "0.1"), "has 2 images, of which --hold-out 0.1 would keep 0"),
    Row("held_out_of_a_broken_file", held_out_of_a_broken_file, "train.json.*image_id"),
    Row("no_epochs", composed("--val", "digits_val", "--epochs", "0"), "--epochs"),
    Row("no_unlabelled", composed("--val", "digits_val", "--unlabeled", "{}/none"), "--unlabeled .*no such folder"),
    Row("neither_drawn_nor_written", predicted(), "--draw is None and --output None: give one of them"),
    Row("drawn_and_written", predicted("--draw", "a", "--output", "b"), "--draw is a and --output b: give one"),
    Row("nothing_to_draw_into", predicted("--draw", "a"), "name them with --images"),
    Row("exported_is_drawn", predicted("--weights", "a.onnx", "--output", "b"), "which --draw takes, and not --output"),
    Row("exported_nowhere", predicted("--weights", "a.onnx", "--draw", "b", "--images", "c"), "a.onnx: there is no"),
    Row("no_onnx", no_onnx, "a.onnx is no detector that detr-distill export wrote"),
    Row("no_video", no_video, "a.mp4: OpenCV reads no frame of it. Convert it"),
    Row("no_media", lambda tmp: list(find_media([str(tmp / "none")])), "--images .*none: there is no such file"),
    Row("two_of_one_name", one_name, "would both be written as x.png. Draw them apart"),
    Row("no_run", lambda tmp: report([tmp]), "there is no config.yaml of a run"),
    Row("not_evaluated", not_evaluated, "no results.json that can be read .*was not evaluated yet"),
    Row("several_processes", with_torchrun, "torchrun starts train_net.py: write the configuration with --dry-run"),
    Row("no_gpu", lambda _: count_gpus(100), "--num-gpus 100: torch sees .*detr-distill doctor"),
]
