"""A student that begins with parts of its teacher: ``MODEL.DISTILL.START_FROM_TEACHER``."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..checkpoint.class_names import stored_class_names
from ..checkpoint.export import detector_in, student_weights
from ..checkpoint.files import read_checkpoint
from ..checkpoint.locate import local_file
from ..config.defaults import num_classes_key
from ..config.files import find_file
from ..config.keys import Key, declare
from ..data import training_class_names
from ..errors import ConfigError, first
from .classes import ClassMap, match_classes
from .teachers.configuration import find_weights, load_teacher_config, teacher_class_names

logger = logging.getLogger(__name__)

KEY = "MODEL.DISTILL.START_FROM_TEACHER"
WEIGHTS_KEY = "MODEL.DISTILL.START_WEIGHTS"
TEACHER_KEY = "MODEL.DISTILL.TEACHER.WEIGHTS"
# Names of parts, and where their weights are: of a DETR, and of detectron2's detectors.
PARTS = {
    "backbone": r"^backbone\.",
    "neck": r"^input_projection\.",
    "encoder": r"^encoder\.",
    "decoder": r"^decoder\.(?!heads\.)",
    "queries": r"^queries\.(?!heads\.)",
    "heads": r"^(decoder|queries)\.heads\.|^head\.|^roi_heads\.|^proposal_generator\.",
}
# Layers with a row for each class, or for each class of each anchor, and the class "no object" last where there is one;
# AdaMixer's class head is a tower whose layer 3 gives the classes.
CLASS_ROWS = re.compile(
    r"(^|\.)(class_head(\.3)?|label_embedding|cls_score|cls_logits|mask_head\.predictor)\.(weight|bias)$"
)
# Layers of R-CNNs with four rows for each class; four alone where all classes share them.
BOX_ROWS = re.compile(r"(^|\.)box_predictor(\.\d+)?\.bbox_pred\.(weight|bias)$")

declare(
    __name__,
    {
        KEY: Key(
            (),
            "parts of the teacher that the student begins with, where names and shapes agree: "
            + ", ".join(f"`{name}`" for name in PARTS)
            + ", or regular expressions of parameters' names. The teacher is that of `TEACHER.CONFIG_FILE` and "
            "`TEACHER.WEIGHTS`, whether or not the run distils; class rows are found by name",
        ),
        WEIGHTS_KEY: Key(
            "",
            "checkpoint of `START_FROM_TEACHER` where it is not `TEACHER.WEIGHTS`, as with `PredictionsFile`, whose "
            "file holds no parameters; its classes are those that are stored in it",
        ),
    },
)


@dataclass
class Taken:
    """What a start took.

    Attributes:
        whole: names of copied tensors. classes: of those whose rows of shared classes were copied.
        misshaped: "name shape instead of shape". absent: names that the teacher has not.
    """

    whole: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    misshaped: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


def start_from_teacher(cfg: CfgNode, detector: nn.Module) -> None:
    """Copies the configured parts of the teacher into a plain detector, in place; nothing where none is named.

    Raises:
        ConfigError: a part that no parameter has, or nothing of the teacher's that fits.
        CheckpointError: the teacher's weights cannot be read.
    """
    parts = tuple(cfg.MODEL.DISTILL.START_FROM_TEACHER)
    if not parts:
        return
    file, own = _find_start(cfg), bool(cfg.MODEL.DISTILL.START_WEIGHTS)
    teacher_cfg = load_teacher_config(cfg, file)
    weights = student_weights(detector_in(read_checkpoint(local_file(file, WEIGHTS_KEY if own else TEACHER_KEY))))
    # TEACHER.CLASS_NAMES may be those of a file of predictions.
    stored = stored_class_names(file) if own else None
    names, source = teacher_class_names(cfg, teacher_cfg) if stored is None else (stored, f"{WEIGHTS_KEY} {file}")
    classes = match_classes(
        training_class_names(cfg), names, num_classes_key(cfg)[1], num_classes_key(teacher_cfg)[1], source
    )
    taken = copy_parts(detector, weights, parts, classes, num_classes_key(teacher_cfg)[1])
    if not taken.whole and not taken.classes:
        raise ConfigError(
            f"{KEY} {list(parts)}: nothing of {file} fits the student: "
            f"{first(taken.misshaped) or 'it has none of ' + first(taken.absent)}. Name other parts, or "
            "leave it empty."
        )
    logger.info(
        "%s: %d tensors of %s taken (%s), of %d more the rows of %d shared classes (%s)", KEY, len(taken.whole), file,
        _by_module(taken.whole), len(taken.classes), len(classes.student), _by_module(taken.classes),
    )  # fmt: skip
    for found, words in ((taken.misshaped, "of another shape"), (taken.absent, "that the teacher has not")):
        if found:
            logger.info("%s: %d tensors %s are left: %s", KEY, len(found), words, first(found))


def check_start_files(cfg: CfgNode) -> None:
    """Raises ConfigError where what the student is to begin with is missing; builds nothing."""
    if cfg.MODEL.DISTILL.START_FROM_TEACHER:
        load_teacher_config(cfg, _find_start(cfg))


def _by_module(names: Sequence[str]) -> str:
    """How many parameters of each module, in words."""
    counts = Counter(".".join(name.split(".")[:2]) for name in names)
    return first((f"{name}: {count}" for name, count in counts.items()), shown=20) or "none"


def _find_start(cfg: CfgNode) -> str:
    own: str = cfg.MODEL.DISTILL.START_WEIGHTS
    if own:
        return find_file(own, WEIGHTS_KEY)
    if cfg.MODEL.DISTILL.TEACHER.NAME == "PredictionsFile":
        raise ConfigError(
            f"{KEY} is set, and TEACHER.WEIGHTS {cfg.MODEL.DISTILL.TEACHER.WEIGHTS} holds predictions, no parameters. "
            f"Name the teacher's checkpoint in {WEIGHTS_KEY} and its configuration in TEACHER.CONFIG_FILE."
        )
    if not cfg.MODEL.DISTILL.TEACHER.WEIGHTS:
        raise ConfigError(
            f"{KEY} is {list(cfg.MODEL.DISTILL.START_FROM_TEACHER)}, and {TEACHER_KEY} and {WEIGHTS_KEY} are empty. "
            "Name the teacher's checkpoint in one of them, or leave the first empty."
        )
    return find_weights(cfg)


@torch.no_grad()
def copy_parts(
    detector: nn.Module, weights: Mapping[str, Tensor], parts: Sequence[str], classes: ClassMap, num_teacher: int
) -> Taken:
    """Copies what fits.

    Args:
        detector: the student, plain. weights: of the teacher, under the plain detector's names.
        parts: names of ``PARTS``, or regular expressions. num_teacher: number of the teacher's classes.
    """
    state = detector.state_dict()
    taken = Taken()
    for name in _chosen(list(state), parts):
        mine, its = state[name], weights.get(name)
        if its is None:
            taken.absent.append(name)
        elif not classes.identical and (CLASS_ROWS.search(name) or _has_box_rows(name, mine, its)):
            copied = _copy_rows(mine, its, classes, num_teacher, boxes=CLASS_ROWS.search(name) is None)
            if copied:
                taken.classes.append(name)
            else:
                taken.misshaped.append(_shapes(name, mine, its))
        elif mine.shape == its.shape:
            mine.copy_(its)
            taken.whole.append(name)
        else:
            taken.misshaped.append(_shapes(name, mine, its))
    return taken


def _chosen(names: Sequence[str], parts: Sequence[str]) -> list[str]:
    chosen: set[str] = set()
    for part in parts:
        try:
            pattern = re.compile(PARTS.get(part, part))
        except re.error as error:
            known = ", ".join(PARTS)
            raise ConfigError(f"{KEY}: {part!r} is neither {known} nor a regular expression: {error}.") from error
        found = {name for name in names if pattern.search(name)}
        if not found:
            raise ConfigError(
                f"{KEY}: the student has no parameter for {part!r}. Name one of {', '.join(PARTS)}, or an expression "
                f"that is found in names such as {names[0]}."
            )
        chosen |= found
    return [name for name in names if name in chosen]


def _shapes(name: str, mine: Tensor, its: Tensor) -> str:
    return f"{name} {tuple(its.shape)} instead of {tuple(mine.shape)}"


def _has_box_rows(name: str, mine: Tensor, its: Tensor) -> bool:
    """Whether a layer has four rows for each class on one of the two sides at least."""
    return BOX_ROWS.search(name) is not None and max(len(mine), len(its)) > 4


def _copy_rows(mine: Tensor, its: Tensor, classes: ClassMap, num_teacher: int, *, boxes: bool) -> bool:
    """Copies the shared classes' rows of a class layer, and that of "no object" where both have it; False: no fit.

    Args:
        boxes: four rows belong to each class; else each anchor has one of each.
    """
    if mine.shape[1:] != its.shape[1:]:
        return False
    each, rest = divmod(len(mine), classes.num_student)
    if (each, rest) != divmod(len(its), num_teacher) or rest > 1 or (rest and each > 1) or (boxes and each != 4):
        return False
    sides = (mine, classes.num_student), (its, num_teacher)
    if boxes:
        mine_rows, its_rows = (rows.view(count, 4, *rows.shape[1:]).transpose(0, 1) for rows, count in sides)
    else:
        mine_rows, its_rows = (rows[: each * count].view(each, count, *rows.shape[1:]) for rows, count in sides)
    mine_rows[:, list(classes.student)] = its_rows[:, list(classes.teacher)].to(mine.dtype)
    if rest:
        mine[-1] = its[-1]
    return True
