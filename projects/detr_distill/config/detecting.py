"""The keys that decide, beside its weights, what a detector says of an image."""

from __future__ import annotations

import json
from typing import Any

import yaml
from detectron2.config import CfgNode

from .build import build_config, default_config
from .keys import flatten

# How images come in; all that is read; and what of it changes no detection.
SEEN = ("INPUT.FORMAT", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST")
READ = (*SEEN, "TEST.DETECTIONS_PER_IMAGE", "MODEL.")
UNREAD = (
    *("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.DISTILL.", "MODEL.DETR.TRAINING_GROUPS", "MODEL.DETR.LOSS."),
    *("MODEL.DETR.MATCHER.", "MODEL.DETR.DEFORMABLE_KERNEL", "MODEL.TIMM.PRETRAINED"),
)
BESIDE = ("MODEL.DETR.LOSS.CLASSIFICATION", "VERSION")  # of the losses, what the class heads are made for


def detecting_keys(cfg: CfgNode, read: tuple[str, ...] = READ) -> dict[str, Any]:
    """The keys that start so, with their values as JSON gives them back."""
    values = {key: value for key, value in flatten(cfg).items() if key.startswith(read) and not key.startswith(UNREAD)}
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def write_detecting_yaml(cfg: CfgNode) -> str:
    """A configuration of the detector alone, without paths of this machine, as the content of a file."""
    defaults = detecting_keys(default_config(), (*READ, *BESIDE))
    nested: dict[str, Any] = {}
    for key, value in {**detecting_keys(cfg), **{name: flatten(cfg)[name] for name in BESIDE}}.items():
        # Weights of a backbone alone are a file of this machine; those of the detector have taken their place.
        if (value == defaults.get(key) and key != "VERSION") or key.endswith(".PRETRAINED"):
            continue
        *parents, last = key.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return yaml.safe_dump(nested, sort_keys=False, default_flow_style=None, width=120)


def read_detecting_yaml(text: str) -> CfgNode:
    """The configuration that :func:`write_detecting_yaml` wrote, on the CPU; not frozen.

    Raises:
        ConfigError: a key or value that is not known here, as of a plug-in that is not imported.
    """
    words: list[Any] = [word for key, value in flatten(yaml.safe_load(text)).items() for word in (key, value)]
    return build_config("", [*words, "MODEL.DEVICE", "cpu"])
