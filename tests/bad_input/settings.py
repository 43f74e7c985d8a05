"""Settings: keys, values, files. Nothing is built but where a row says so."""

from __future__ import annotations

import json

from detr_distill.config.build import build_config
from detr_distill.data import build_train_loader
from detr_distill.engine.model import build_named_model
from detr_distill.engine.solver import build_optimizer

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from helpers.builders import ROOT
from torch import nn

from bad_input import Row

STUDENT = "configs/digits/conditional_student.yaml"


def words(*overrides):
    """A run's command line."""
    return lambda folder: build_config("", [str(word) for word in overrides])


def text(content, **others):
    """A run's file, beside others."""

    def call(folder):
        for name, other in others.items():
            (folder / f"{name}.yaml").write_text(other)
        file = folder / "run.yaml"
        file.write_bytes(content) if isinstance(content, bytes) else file.write_text(content)
        return build_config(str(file), [])

    return call


def model(*overrides, config=STUDENT):
    """A detector with overrides, built."""
    return lambda folder: build_named_model(
        build_config(str(ROOT / config), ["MODEL.DEVICE", "cpu", *map(str, overrides)])
    )


def optimizer(factors):
    cfg = ["SOLVER.LR_FACTORS", factors]
    return lambda folder: build_optimizer(build_config("", cfg), nn.Linear(2, 2))


def loader(*overrides, images=6, objects=False):
    """The training loader of a set of images, without objects or with one each."""

    def call(folder):
        boxes = [
            {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}
            for i in range(images)
        ]
        for image in range(images):
            cv2.imwrite(str(folder / f"{image}.png"), np.zeros((32, 32, 3), np.uint8))
        entries = [{"id": i, "file_name": f"{i}.png", "width": 32, "height": 32} for i in range(images)]
        content = {"images": entries, "annotations": boxes if objects else [], "categories": [{"id": 1, "name": "a"}]}
        (folder / "set.json").write_text(json.dumps(content))
        name = f"settings_{folder.name}"
        registered = json.dumps([[name, str(folder / "set.json"), str(folder)]])
        sets = ["DATASETS.REGISTER", registered, "DATASETS.TRAIN", repr((name,)), "SOLVER.IMS_PER_BATCH", "2"]
        try:
            return build_train_loader(build_config("", [*sets, *map(str, overrides)]))
        finally:
            DatasetCatalog.remove(name)

    return call


FILES = [
    Row("key_twice", text("SEED: 1\nSEED: 2\n"), r"run\.yaml: line 2 has the key SEED a second time, after line 1"),
    Row("node_twice", text("SOLVER: {GAMMA: 0.1}\nSOLVER: {MOMENTUM: 0.5}\n"), "SOLVER a second time.*Join them"),
    Row("inner_key_twice", text("SOLVER:\n  GAMMA: 0.1\n  GAMMA: 0.2\n"), "line 3 has the key GAMMA a second time"),
    Row("key_twice_in_base", text("_BASE_: b.yaml\n", b="SEED: 1\nSEED: 2\n"), r"b\.yaml: line 2 has the key SEED"),
    Row("key_twice_in_a_list", text("DATASETS: {REGISTER: [{a: 1, a: 2}]}"), "the key a a second time"),
    Row("base_missing", text("_BASE_: none.yaml\n"), r"has the _BASE_ .*none\.yaml, which does not exist"),
    Row("base_of_base_missing", text("_BASE_: b.yaml\n", b="_BASE_: c.yaml\n"), r"b\.yaml has the _BASE_ .*c\.yaml"),
    Row("base_of_itself", text("_BASE_: run.yaml\n"), r"goes in a circle: .*run\.yaml -> .*run\.yaml"),
    Row("bases_in_a_circle", text("_BASE_: b.yaml\n", b="_BASE_: run.yaml\n"), "circle: .*run.* -> .*b.* -> .*run"),
    Row("base_is_a_number", text("_BASE_: 5\n"), r"_BASE_ is \[?5\]?. Give the path"),
    Row("base_is_a_folder", text("_BASE_: .\n"), "which does not exist"),
    Row("base_without_keys", text("_BASE_: b.yaml\n", b="- 1\n"), r"b\.yaml holds no KEY: VALUE pairs"),
    Row("node_without_keys", text("SOLVER:\nSEED: 1\n"), "SOLVER is empty. Write its keys below it"),
    Row("value_missing", text("SOLVER: {BASE_LR: }\n"), r"SOLVER\.BASE_LR is None\. Its default is 0\.001"),
    Row("node_is_a_number", text("VERSION: 2\nSOLVER: 5\n"), "SOLVER is 5; keys of its own is expected"),
    Row("dots_in_a_file", text("SOLVER.BASE_LR: 0.1\n"), r"In a file write SOLVER: \{BASE_LR: VALUE\}"),
    Row("capitals_in_a_file", text("solver: {base_lr: 0.1}\n"), r"unknown key solver\. Did you mean SOLVER\?"),
    Row("key_is_a_number", text("1: 2\n"), "line 1 has the key '1', which is no name"),
    Row("key_is_a_truth_value", text("SOLVER: {on: 2}\n"), "line 1 has the key 'on', which is no name"),
    Row("an_alias_of_itself", text("SOLVER: &a {BASE_LR: *a}\n"), "holds itself|not valid YAML"),
    Row("text_for_a_number", text("VERSION: 2\nSOLVER: {BASE_LR: fast}\n"), r"BASE_LR is 'fast'; a number is expected"),
    Row("whole_for_decimal", text("VERSION: 2\nSOLVER: {BASE_LR: 1}\n"), r"BASE_LR is 1; a number .* Write 1\.0\."),
    Row("number_for_a_list", text("VERSION: 2\nSOLVER: {STEPS: 5}\n"), r"STEPS is 5; a list .*\(5,\)"),
    Row("another_version", text("VERSION: 9\n"), "v9"),
    Row("utf_16", text("SEED: 1\n".encode("utf-16")), "is not a YAML text file.*save the file as UTF-8"),
]
SPELLING = [
    Row("capitals", words("solver.max_iter", 5), r"Did you mean SOLVER\.MAX_ITER\?"),
    Row("near_miss", words("SOLVER.BASELR", 5), r"Did you mean SOLVER\.BASE_LR"),
    Row("a_node", words("SOLVER", 5), r"SOLVER holds keys, such as SOLVER\."),
    Row("below_a_key", words("SOLVER.BASE_LR.X", 5), r"unknown key SOLVER\.BASE_LR\.X"),
    Row("equals", words("SOLVER.MAX_ITER=5"), "has no partner.*Write KEY VALUE, not KEY=VALUE"),
    Row("lower_case_true", words("SOLVER.AMP.ENABLED", "true"), r"True or False is expected\. Write True\."),
    Row("off", words("SOLVER.AMP.ENABLED", "off"), r"Write False\."),
    Row("one_for_true", words("SOLVER.NESTEROV", 1), r"Write True\."),
    Row("number_as_a_folder", words("OUTPUT_DIR", 2024), r"text is expected\. Write \"'2024'\".* \./2024"),
    Row("float_for_whole", words("SOLVER.MAX_ITER", "1e5"), r"a whole number is expected\. Write 100000\."),
    Row("comma_for_point", words("SOLVER.BASE_LR", "0,5"), r"a number is expected\. Write 0\.5\."),
    Row("names_with_commas", words("DATASETS.TRAIN", "a,b"), r"\('a', 'b'\)\", a list in quotes"),
    Row("names_in_bare_brackets", words("DATASETS.TRAIN", "[a, b]"), r"\('a', 'b'\)\", a list in quotes"),
    Row("number_as_a_list", words("SOLVER.STEPS", 100), r"\(100,\)\", a list in quotes"),
    Row("nested_too_deep", words("SOLVER.STEPS", "(" * 500), "a list is expected"),
    Row("unregistered", loader("DATASETS.TRAIN", "my-train"), r"\.TRAIN has 'my-train', .*; it is \('my-train',\)"),
]
RANGES = [
    Row(
        "clip_value_negative", words("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", -1.0), r"CLIP_VALUE is -1\.0\. Give more than"
    ),
    Row("clip_type", words("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norms"), "CLIP_TYPE is 'norms'. Known: 'full_model'"),
    Row("base_lr_negative", words("SOLVER.BASE_LR", -0.1), r"SOLVER\.BASE_LR is -0\.1\. Give more than 0"),
    Row("base_lr_nan", words("SOLVER.BASE_LR", "nan"), r"SOLVER\.BASE_LR is nan"),
    Row("base_lr_inf", words("SOLVER.BASE_LR", "inf"), r"SOLVER\.BASE_LR is inf"),
    Row("weight_decay_negative", words("SOLVER.WEIGHT_DECAY", -1e-4), r"WEIGHT_DECAY is -0\.0001\. Give 0 or more"),
    Row("weight_decay_text", words("SOLVER.WEIGHT_DECAY_BIAS", "none"), "WEIGHT_DECAY_BIAS is 'none'"),
    Row("warmup_factor_negative", words("SOLVER.WARMUP_FACTOR", -1.0), r"WARMUP_FACTOR is -1\.0.*from 0 to 1"),
    Row("warmup_method", words("SOLVER.WARMUP_METHOD", "cosine"), "WARMUP_METHOD is 'cosine'. Known: 'linear'"),
    Row("momentum_above_1", words("SOLVER.MOMENTUM", 1.5), r"SOLVER\.MOMENTUM is 1\.5"),
    Row("checkpoint_period_0", words("SOLVER.CHECKPOINT_PERIOD", 0), "CHECKPOINT_PERIOD is 0. Give 1 or more"),
    Row("steps_falling", words("SOLVER.STEPS", "(20, 10)"), r"SOLVER\.STEPS is \(20, 10\)\. .*small to large"),
    Row("steps_not_whole", words("SOLVER.STEPS", "(0.5,)"), r"An entry of SOLVER\.STEPS is 0\.5"),
    Row("seed_of_64_bits", words("SEED", 2**40), r"SEED is 1099511627776"),
    Row("images_without_end", words("SOLVER.IMS_PER_BATCH", 10**24), "IMS_PER_BATCH is 1000.*Give 65536 or less"),
    Row(
        "padding_without_end", words("MODEL.DETR.SIZE_DIVISIBILITY", 10**24), "SIZE_DIVISIBILITY is 1000.*4096 or less"
    ),
    Row(
        "layers_without_end",
        words("MODEL.DETR.DECODER.NUM_LAYERS", 10**6),
        r"NUM_LAYERS is 1000000\. Give 1000 or less\.",
    ),
    Row(
        "reference_of_other_processes",
        words("SOLVER.REFERENCE_WORLD_SIZE", 3, "SOLVER.IMS_PER_BATCH", 2),
        "REFERENCE_WORLD_SIZE is 3, and SOLVER.IMS_PER_BATCH 2 is no multiple of it",
    ),
    Row(
        "scheduler_of_another_version",
        words("SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR"),
        "Known: 'WarmupMultiStepLR', 'WarmupCosineLR'",
    ),
    Row("grey", words("INPUT.FORMAT", "L"), "INPUT.FORMAT, with INPUT.MAPPER detr, is 'L'. Known: 'BGR', 'RGB'"),
    Row(
        "class_names_without_quotes",
        words("MODEL.DISTILL.TEACHER.CLASS_NAMES", "[1, 2]"),
        "An entry of MODEL.DISTILL.TEACHER.CLASS_NAMES is 1. Give text in quotes, such as '1'",
    ),
    Row("voc_names_without_quotes", words("DATASETS.CLASS_NAMES", "[1, 2]"), "entry of DATASETS.CLASS_NAMES is 1"),
    Row("images_negative", words("SOLVER.IMS_PER_BATCH", -2), "IMS_PER_BATCH is -2"),
    Row("workers_negative", words("DATALOADER.NUM_WORKERS", -1), "NUM_WORKERS is -1"),
    Row("sampler", words("DATALOADER.SAMPLER_TRAIN", "Random"), "SAMPLER_TRAIN is 'Random'. Known: 'TrainingSampler'"),
    Row("subset_above_1", words("DATALOADER.RANDOM_SUBSET_RATIO", 2.0), r"RANDOM_SUBSET_RATIO is 2\.0"),
    Row("sampling", words("INPUT.MIN_SIZE_TRAIN_SAMPLING", "Range"), "SAMPLING is 'Range'. Known: 'choice', 'range'"),
    Row(
        "range_upside_down",
        words("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TRAIN", "(800, 480)"),
        "it needs two sizes, the smallest and the largest",
    ),
    Row("size_negative", words("INPUT.MIN_SIZE_TRAIN", "(-480,)"), r"An entry of INPUT\.MIN_SIZE_TRAIN is -480"),
    Row("max_size_0", words("INPUT.MAX_SIZE_TRAIN", 0), "MAX_SIZE_TRAIN is 0. Give 1 or more"),
    Row("crop_of_two_images", words("INPUT.CROP.SIZE", "(2.0, 0.5)"), "it is a share of the image"),
    Row("crop_one_number", words("INPUT.CROP.SIZE", "(0.5,)"), r"CROP\.SIZE is .*Give a list of 2"),
    Row(
        "crop_of_half_a_pixel",
        words("INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", "(0.5, 0.5)"),
        r"CROP\.SIZE, with INPUT\.CROP\.TYPE absolute in pixels, is 0\.5",
    ),
    Row(
        "crop_range_upside_down",
        words("INPUT.CROP.TYPE", "absolute_range", "INPUT.CROP.SIZE", "(600, 384)"),
        "the smallest side and the largest, in this order",
    ),
    Row("device", words("MODEL.DEVICE", "gpu"), "MODEL.DEVICE is 'gpu'. Give cpu, cuda"),
    Row("std_0", words("MODEL.PIXEL_STD", "[0.0, 0.0, 0.0]"), r"An entry of MODEL\.PIXEL_STD is 0\.0"),
    Row("mean_of_two", words("MODEL.PIXEL_MEAN", "[1.0, 2.0]"), "PIXEL_MEAN is .*PIXEL_STD is .*as many of both"),
    Row("detections_0", words("TEST.DETECTIONS_PER_IMAGE", 0), "DETECTIONS_PER_IMAGE is 0"),
    Row("period_negative", words("TEST.EVAL_PERIOD", -5), "EVAL_PERIOD is -5"),
    Row("norm", words("MODEL.FPN.NORM", "Batch"), r"MODEL\.FPN\.NORM is 'Batch'\. Known: '', 'BN'"),
    Row("depth", words("MODEL.RESNETS.DEPTH", 51), "DEPTH is 51. Known: 18, 34, 50"),
    Row("iou_labels", words("MODEL.RPN.IOU_LABELS", "[0, 1]"), r"RPN\.IOU_LABELS is \[0, 1\].*Give 3 labels"),
    Row("iou_thresholds", words("MODEL.RPN.IOU_THRESHOLDS", "[0.7, 0.3]"), "IOU_THRESHOLDS is .*from small to large"),
    Row("anchors_negative", words("MODEL.ANCHOR_GENERATOR.SIZES", "[[-32]]"), "entry of .*SIZES is -32"),
    Row("anchors_flat", words("MODEL.ANCHOR_GENERATOR.SIZES", "[32]"), r"ANCHOR_GENERATOR\.SIZES is 32\. Give a list"),
    Row("loss_weight_negative", words("MODEL.DETR.LOSS.L1_WEIGHT", -1.0), r"L1_WEIGHT is -1\.0\. Give 0 or more"),
    Row("rpn_weight_negative", words("MODEL.RPN.LOSS_WEIGHT", -1.0), r"RPN\.LOSS_WEIGHT is -1\.0"),
    Row("prior_of_1", words("MODEL.RETINANET.PRIOR_PROB", 1.0), r"PRIOR_PROB is 1\.0"),
    Row("keypoints", words("MODEL.KEYPOINT_ON", True), "KEYPOINT_ON is True; keypoints are neither read nor detected"),
    Row("proposal_files", words("MODEL.LOAD_PROPOSALS", True), "LOAD_PROPOSALS is True; proposal files are not read"),
]
BUILT = [
    Row(
        "factor_negative", optimizer("[['weight', -1.0]]"), 'LR_FACTORS: the factor of "weight" is -1.0. Give 0 or more'
    ),
    Row("factor_infinite", optimizer("[['weight', 1e999]]"), 'the factor of "weight" is inf'),
    Row("heads_do_not_divide", model("MODEL.DETR.NUM_HEADS", 7), "cannot be built|NUM_HEADS"),
    Row(
        "r18_of_256",
        model(
            "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.OUT_FEATURES", "('res5',)", config="configs/detr/detr_r50.yaml"
        ),
        "RES2_OUT_CHANNELS = 64 for R18.*do not go together",
    ),
    Row(
        "empty_after_filter",
        loader("DATALOADER.FILTER_EMPTY_ANNOTATIONS", True),
        "FILTER_EMPTY_ANNOTATIONS True leaves out images without objects",
    ),
    Row(
        "subset_of_none",
        loader(
            "DATALOADER.SAMPLER_TRAIN",
            "RandomSubsetTrainingSampler",
            "DATALOADER.RANDOM_SUBSET_RATIO",
            0.1,
            objects=True,
        ),
        r"RANDOM_SUBSET_RATIO is 0\.1: of 6 training images none is left",
    ),
]
ROWS = [*FILES, *SPELLING, *RANGES, *BUILT]
