"""The configurations that the demonstration compares: teacher, plain student and distilled student."""

from __future__ import annotations

import argparse
from pathlib import Path

from detectron2.config import CfgNode

from ..config.build import flatten
from ..config.files import find_file
from ..data import read_configuration
from ..distill.teachers.configuration import load_teacher_config
from ..errors import ConfigError

# Whatever decides how a student learns beside the teacher; the two trainings must agree in it.
COMPARED = ("SEED", "SOLVER.", "DATASETS.", "INPUT.", "DATALOADER.", "MODEL.DETR.", "MODEL.BACKBONE.", "MODEL.CONV_")


def configure(config_file: str, name: str, arguments: argparse.Namespace) -> CfgNode:
    """Configuration of one training, on the CPU unless an override says otherwise.

    Args:
        config_file: of the training. name: of its folder below ``--output``. arguments: the command line's.

    Raises:
        ConfigError: a file or key that cannot be used, or fewer iterations than one.
    """
    cfg = read_configuration(config_file, ["MODEL.DEVICE", "cpu", *arguments.opts], plugins=True)
    cfg.OUTPUT_DIR = str(Path(arguments.output) / name)
    if arguments.seed is not None:
        cfg.SEED = arguments.seed
    if arguments.iterations is not None:
        if arguments.iterations < 1:
            raise ConfigError(f"--iterations is {arguments.iterations}; it must be 1 or more.")
        _set_length(cfg, arguments.iterations)
    cfg.freeze()
    return cfg


def _set_length(cfg: CfgNode, iterations: int) -> None:
    # As many evaluations as the configuration asks for; rounded up, because 0 means at the end alone.
    cfg.TEST.EVAL_PERIOD = -(-cfg.TEST.EVAL_PERIOD * iterations // cfg.SOLVER.MAX_ITER)
    cfg.SOLVER.MAX_ITER = iterations


def taught_by_file(distilled: CfgNode, folder: Path) -> CfgNode:
    """The same training with what its teacher predicted beforehand in the teacher's place."""
    cfg = distilled.clone()
    cfg.defrost()
    node = cfg.MODEL.DISTILL.TEACHER
    node.NAME, node.CONFIG_FILE, node.OPTS, node.WEIGHTS = "PredictionsFile", "", (), str(folder)
    cfg.freeze()
    return cfg


def for_time(student: CfgNode, ratio: float, folder: Path) -> CfgNode:
    """The same training ``ratio`` times as long, evaluated as often, in another folder."""
    cfg = student.clone()
    cfg.defrost()
    _set_length(cfg, max(1, round(cfg.SOLVER.MAX_ITER * ratio)))
    cfg.OUTPUT_DIR = str(folder)
    cfg.freeze()
    return cfg


def check_comparable(student: CfgNode, distilled: CfgNode) -> None:
    """Raises ConfigError for two trainings that differ in more than the teacher."""
    first, second = flatten(student), flatten(distilled)
    for key, value in first.items():
        if key.startswith(COMPARED) and value != second[key]:
            raise ConfigError(
                f"{key} is {value!r} for the student and {second[key]!r} for the distilled one: the comparison would "
                "not show what the teacher brings. Give both configurations the same value."
            )


def configure_teacher(distilled: CfgNode, folder: Path) -> CfgNode:
    """The teacher's own configuration, evaluated on the students' data.

    Args:
        distilled: configuration that names the teacher. folder: of the teacher's evaluation.

    Raises:
        ConfigError: its weights are missing; says how to make them.
    """
    node = distilled.MODEL.DISTILL.TEACHER
    cfg = load_teacher_config(distilled)
    try:
        cfg.MODEL.WEIGHTS = find_file(node.WEIGHTS, "MODEL.DISTILL.TEACHER.WEIGHTS")
    except ConfigError as error:
        raise ConfigError(
            f"The teacher's weights {node.WEIGHTS} are missing. To train them again (about 15 minutes on 2 cores):\n"
            f"  python train_net.py --config-file {node.CONFIG_FILE} --num-gpus 0\n"
            f"  python tools/export_student.py --weights {cfg.OUTPUT_DIR}/model_final.pth --output {node.WEIGHTS}"
        ) from error
    cfg.DATASETS = distilled.DATASETS
    cfg.OUTPUT_DIR = str(folder)
    cfg.freeze()
    return cfg
