"""Parameter names of detrex: DETR, Conditional, DAB, DN and Deformable DETR, DINO [C].

Its layers number their attentions, norms and feed-forward parts in the order in which they run; its ResNets are
detectron2's own, under the names that ours have.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from ...errors import CheckpointError, first
from .deformable_heads import count_layers
from .families import FAMILIES, families_of, recognise
from .family import DETREX, Family
from .renaming import Source, rename_state
from .rules import read_rules

LAYERS = read_rules(r"""
    ^transformer\.(.+)$                          \1
    ^denoising_generator\.label_encoder\.        label_enc.
    ^neck\.convs\.(\d+)\.conv\.                  input_projection.projections.\1.0.
    ^neck\.convs\.(\d+)\.norm\.                  input_projection.projections.\1.1.
    ^(encoder|decoder)\.post_norm_layer\.        \1.norm.
    \.attn\.                                     .
    ^encoder(.*)\.attentions\.0\.                encoder\1.attention.
    ^encoder(.*)\.norms\.0\.                     encoder\1.attention_norm.
    ^encoder(.*)\.norms\.1\.                     encoder\1.feed_forward_norm.
    ^decoder(.*)\.attentions\.0\.                decoder\1.self_attention.
    ^decoder(.*)\.attentions\.1\.                decoder\1.cross_attention.
    ^decoder(.*)\.norms\.0\.                     decoder\1.self_attention_norm.
    ^decoder(.*)\.norms\.1\.                     decoder\1.cross_attention_norm.
    ^decoder(.*)\.norms\.2\.                     decoder\1.feed_forward_norm.
    \.ffns\.0\.layers\.0\.0\.                    .feed_forward.expand.
    \.ffns\.0\.layers\.0\.1\.                    .feed_forward.activation.
    \.ffns\.0\.layers\.1\.                       .feed_forward.contract.
""")
SOURCE = Source(DETREX, LAYERS, re.compile(r"^backbone\."))


def rename_detrex(weights: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """The state of a detrex detector under our names; what its criterion stores is left out.

    Args:
        family: one that ``FAMILIES`` knows in this source.
    """
    kept = {name: value for name, value in weights.items() if not name.startswith("criterion.")}
    return rename_state(_number_extra_levels(kept), SOURCE, FAMILIES[family])


def detrex_family(names: Collection[str]) -> Family:
    """The family that a detrex checkpoint belongs to, by its parameter names.

    Raises:
        CheckpointError: none of those that can be imported.
    """
    found = recognise(DETREX, names)
    if found is None or not any(".attentions.0." in name for name in names):
        raise CheckpointError(
            f"No detector of detrex that can be imported: those are {', '.join(sorted(families_of(DETREX)))}. "
            f"Tensors in the file: {first(sorted(names))}."
        )
    return found


def _number_extra_levels(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Levels beyond the backbone's features are numbered on from them."""
    count = count_layers(weights, "neck.convs.")
    pattern = re.compile(r"^neck\.extra_convs\.(\d+)")
    return {pattern.sub(lambda match: f"neck.convs.{count + int(match[1])}", n): value for n, value in weights.items()}
