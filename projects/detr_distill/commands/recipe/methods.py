"""Which matchers and losses a teacher and a student take: a table by what both give (distill/side.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ...checkpoint.files import read_json
from ...checkpoint.transformers_folder import open_folder, read_config
from ...config.defaults import detector_name
from ...config.files import find_file
from ...distill.side import CROSS_ATTENTION, EDGES, ONE_TO_ONE, PREDICTIONS, QUERIES, SAMPLED_ATTENTION
from ...hugging_face.kinds import NETWORKS
from ...hugging_face.rt_detr import RtDetrNetwork
from ...registry import DECODER_REGISTRY, look_up
from .detectors import Found

_WITH_EDGES = ("d_fine", "deimv2")
# What a distribution of edges is over, and the library's defaults; others are not comparable bin by bin.
_BINS = {"max_num_bins": 32, "up": 0.5, "reg_scale": 4.0}


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        both: what both sides must give. student: what the student must give beside.
        matchers, losses: of ``MODEL.DISTILL``. why: in words. keys: what else is set.
    """

    both: frozenset[str]
    student: frozenset[str]
    matchers: tuple[str, ...]
    losses: tuple[str, ...]
    why: str
    keys: Mapping[str, Any] = field(default_factory=dict)


_MIXED = ("AdaptiveMatcher", "FixedMatcher")
# The first row that fits counts.
METHODS = (
    Method(
        frozenset({EDGES, QUERIES}),
        frozenset(),
        _MIXED,
        ("PredictionLoss", "LocalizationLoss"),
        "both predict distributions of edges: predictions, edges, the teacher's queries as a group",
    ),
    Method(
        frozenset({CROSS_ATTENTION, QUERIES}),
        frozenset(),
        _MIXED,
        ("PredictionLoss", "AttentionLoss"),
        "both have attention maps: D3ETR, predictions and attention, the teacher's queries as a group",
    ),
    Method(
        frozenset({SAMPLED_ATTENTION, QUERIES}),
        frozenset(),
        _MIXED,
        ("PredictionLoss", "AttentionLoss", "SampledAttentionLoss"),
        "both sample points: D3ETR with points in place of maps, the teacher's queries as a group",
        {"MODEL.DISTILL.ATTENTION_LOSS.CROSS_WEIGHT": 0.0},
    ),
    Method(
        frozenset({QUERIES}),
        frozenset(),
        _MIXED,
        ("PredictionLoss",),
        "both have queries that can be read: predictions, the teacher's queries as a group",
    ),
    Method(
        frozenset({PREDICTIONS}),
        frozenset({ONE_TO_ONE}),
        ("AdaptiveMatcher",),
        ("PredictionLoss",),
        "predictions, matched anew in every step",
    ),
    Method(
        frozenset({PREDICTIONS}),
        frozenset(),
        ("OverlapMatcher",),
        ("PredictionLoss",),
        "the student has many predictions an object, which follow the detection that they overlap",
    ),
)


def choose_method(teacher: frozenset[str], student: frozenset[str]) -> Method:
    """The first row of the table whose needs both sides meet; the last is met by all."""
    return next(row for row in METHODS if row.both <= teacher & student and row.student <= student)


def given_by_teacher(found: Found) -> frozenset[str]:
    """What a teacher gives, in the words of distill/side.py; without building it."""
    if found.teacher == "PredictionsFile":
        return frozenset({PREDICTIONS})
    return _of_transformers(found.settings) if found.cfg is None else given_by(found.cfg)


def given_by(cfg: CfgNode) -> frozenset[str]:
    """What the detector of a configuration gives."""
    name = detector_name(cfg)
    if name == "TransformersStudent":
        node, key = cfg.MODEL.TRANSFORMERS, "MODEL.TRANSFORMERS"
        if node.FOLDER:
            return _of_transformers(read_config(open_folder(node.FOLDER, f"{key}.FOLDER"), f"{key}.FOLDER"))
        return _of_transformers(read_json(Path(find_file(node.CONFIG, f"{key}.CONFIG")), f"{key}.CONFIG"))
    if name == "DetrDetector":
        decoder = look_up(DECODER_REGISTRY, cfg.MODEL.DETR.DECODER.NAME, "MODEL.DETR.DECODER.NAME")
        return frozenset({PREDICTIONS, ONE_TO_ONE, QUERIES}) | decoder.captures
    return frozenset({PREDICTIONS})


def _of_transformers(settings: Mapping[str, Any]) -> frozenset[str]:
    kind = str(settings.get("model_type"))
    given = {PREDICTIONS, ONE_TO_ONE}
    if issubclass(NETWORKS.get(kind, object), RtDetrNetwork):
        given.add(QUERIES)
    if kind in _WITH_EDGES and all(settings.get(name, value) == value for name, value in _BINS.items()):
        given.add(EDGES)
    return frozenset(given)
