"""The options of the verbs ``import``, ``export``, ``visualize`` and ``calibrate``, programs in ``tools/`` too."""

from __future__ import annotations

import argparse

from .words import add_overrides

# As the modules have them that do the work (tests/options/test_verbs.py compares): they could not be asked at once.
SOURCES = (
    *("transformers", "detrex", "detr", "conditional_detr", "dab_detr", "dn_detr", "deformable_detr"),
    *("dn_deformable_detr", "dino"),
)
FORMATS = ("pth", "safetensors", "transformers", "onnx", "program")
SCORE, SURE = 0.4, 0.5  # lowest of a detection, and of a teacher's query, that is drawn
IMAGES = 4


def import_parser() -> argparse.ArgumentParser:
    """Of ``detr-distill import`` and ``tools/import_checkpoint.py``."""
    parser = argparse.ArgumentParser(
        description="Brings a detector trained elsewhere under this project's names, and prints its configuration."
    )
    parser.add_argument("--source", required=True, choices=SOURCES, help="whose names and files they are")
    parser.add_argument("--weights", required=True, help="the authors' file, or a folder of transformers")
    parser.add_argument("--output", required=True, help="file to write; its suffix decides: .pth or .safetensors")
    parser.add_argument("--config", help="file to write the configuration to as well")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for what the checkpoint does not tell, such as its DC5"
    )
    return parser


def export_parser() -> argparse.ArgumentParser:
    """Of ``detr-distill export`` and ``tools/export_student.py``."""
    parser = argparse.ArgumentParser(
        description="Takes the student out of a run's checkpoint. pth and safetensors hold weights that load in the "
        "plain detector; transformers is a folder that from_pretrained reads; onnx and program hold the whole "
        "detector: uint8 images of any size and number in, boxes, scores and labels out."
    )
    parser.add_argument("--weights", required=True, help="checkpoint of a run, such as OUTPUT_DIR/model_final.pth")
    parser.add_argument("--output", required=True, help="file to write, or folder of transformers")
    parser.add_argument("--format", choices=FORMATS, help="default: by the suffix of --output")
    parser.add_argument(
        "--config-file", metavar="FILE", help="the detector's; default: config.yaml beside --weights; weights need none"
    )
    parser.add_argument("--size", metavar="HEIGHTxWIDTH", help="onnx, program: of the images that it is traced with")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the configuration")
    return parser


def visualize_parser() -> argparse.ArgumentParser:
    """Of ``detr-distill visualize`` and ``tools/visualize.py``."""
    parser = argparse.ArgumentParser(
        description="Draws what a model sees: its detections and, with a teacher, query pairs and attention maps."
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the configuration of the training")
    parser.add_argument("--weights", required=True, metavar="FILE", help="a checkpoint of it")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the pictures")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--images", type=int, default=IMAGES, help=f"first images of DATASETS.TEST (default {IMAGES})")
    chosen.add_argument("--image", nargs="+", metavar="FILE", help="image files instead")
    parser.add_argument("--score", type=float, default=SCORE, help=f"lowest score of a detection (default {SCORE})")
    parser.add_argument("--sure", type=float, default=SURE, help=f"lowest score of a teacher's query (default {SURE})")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the configuration")
    return parser


def calibrate_parser() -> argparse.ArgumentParser:
    """Of ``detr-distill calibrate`` and ``tools/calibrate_lambda.py``."""
    parser = argparse.ArgumentParser(
        description="Finds the weight of the distillation loss that gives it a wanted share of the total loss. Each "
        "trial trains the run's first iterations from the same start, in one process and without leaving anything "
        "behind. The last line is the key to put into the configuration."
    )
    parser.add_argument("--config-file", required=True, help="a distilling configuration with FeatureLoss")
    parser.add_argument("--target-share", type=float, default=0.45, help="distillation losses / total loss")
    parser.add_argument("--iterations", type=int, default=1000, help="of each trial")
    parser.add_argument("--low", type=float, default=1.0, help="least weight")
    parser.add_argument("--high", type=float, default=100.0, help="largest weight")
    parser.add_argument("--tolerance", type=float, default=0.005, help="a share this near ends the search")
    parser.add_argument("--probes", type=int, default=8, help="trials at most")
    parser.add_argument("--num-gpus", type=int, choices=(0, 1), default=1, help="0: on the CPU")
    add_overrides(parser)
    parser.set_defaults(num_machines=1)
    return parser
