"""Parameter names of the authors' own code: DETR, Conditional, DAB, DN and Deformable DETR, DINO [C]."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from .families import FAMILIES
from .family import OFFICIAL
from .renaming import Source, rename_state
from .rules import ATTENTIONS, FEED_FORWARD, read_rules

LAYERS = read_rules(r"""
    ^transformer\.(.+)$          \1
    ^encoder(.*)\.norm1\.        encoder\1.attention_norm.
    ^encoder(.*)\.norm2\.        encoder\1.feed_forward_norm.
    ^decoder(.*)\.norm3\.        decoder\1.feed_forward_norm.
""")
# torchvision's ResNets.
BACKBONE = re.compile(r"^backbone\.0\.body\.")
SOURCE = Source(OFFICIAL, (*LAYERS, *ATTENTIONS, *FEED_FORWARD), BACKBONE)


def rename_official(weights: Mapping[str, Tensor], family: str, refinement: bool | None = None) -> dict[str, Tensor]:
    """The state of the authors' detector under our names.

    Args:
        family: one that ``FAMILIES`` knows in this source. refinement: of its command line, None where unknown.
    """
    return rename_state(weights, SOURCE, FAMILIES[family], refinement)
