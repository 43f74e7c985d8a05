"""The options of the verbs ``predict``, ``report`` and ``doctor``."""

from __future__ import annotations

import argparse

from .tools import SCORE

LEAST = 0.05  # score of a detection in a .json file


def doctor_parser() -> argparse.ArgumentParser:
    """Of ``detr-distill doctor``."""
    return argparse.ArgumentParser(
        prog="detr-distill doctor",
        description="Says which versions, devices and kernels are there, what is missing, and what helps.",
    )


def predict_parser() -> argparse.ArgumentParser:
    """Of ``detr-distill predict`` and ``tools/predict.py``."""
    parser = argparse.ArgumentParser(
        description="Detects in images and videos: draws what it finds (--draw), or writes it for programs (--output): "
        "as COCO's results (a name that ends in .json), or as a folder of every layer and query, which teaches at no "
        "cost in the step. What a stopped call has left of the latter is gone on with.",
    )
    parser.add_argument(
        "--weights",
        required=True,
        metavar="PATH",
        help="a run's folder, a checkpoint, a folder of transformers; with --draw also an exported .onnx file",
    )
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="of a checkpoint that has no config.yaml beside it: the detector's configuration; with a folder of "
        "transformers one that names the data, INPUT.FORMAT and the size of the images",
    )
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="PATH", help="images, folders of them and, with --draw, videos"
    )
    parser.add_argument("--dataset", nargs="+", default=[], metavar="NAME", help="instead: default DATASETS.TRAIN")
    parser.add_argument("--draw", metavar="FOLDER", help="write the images with their detections, and detections.json")
    parser.add_argument("--output", metavar="PATH", help="a folder, or a file that ends in .json")
    parser.add_argument(
        "--score",
        type=float,
        help=f"lowest score of a detection (default {LEAST} in a .json file, {SCORE} where it is drawn)",
    )
    parser.add_argument("--batch", type=int, default=8, help="with --output: images of a pass (default 8)")
    parser.add_argument(
        "--best-classes",
        type=int,
        default=0,
        metavar="K",
        help="in a folder: of each query keep the scores of the best K classes; 0, the default: all",
    )
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the numbers in a folder")
    parser.add_argument(
        "--maps",
        nargs="+",
        default=[],
        metavar="NAME",
        help="in a folder: these maps too, for losses on maps; level0 is the finest that the head reads, memory0 what "
        "the encoder makes of it, and a wrong name lists them all",
    )
    parser.add_argument(
        "--mirrored",
        action="store_true",
        help="with --maps: those of each image's mirror image too, for a training with INPUT.RANDOM_FLIP horizontal",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the configuration")
    return parser


def report_parser() -> argparse.ArgumentParser:
    """Of ``detr-distill report``."""
    parser = argparse.ArgumentParser(
        prog="detr-distill report",
        description="Compares runs by their folders: what each trained, and the AP of each at its end and at its best.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="DIR", help="folders of runs; the first is what others are compared with"
    )
    return parser
