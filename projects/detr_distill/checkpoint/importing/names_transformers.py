"""Parameter names of Hugging Face transformers: as its models have them in memory, and as its files keep them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from .families import FAMILIES
from .family import TRANSFORMERS
from .renaming import Source, rename_state
from .rules import ATTENTIONS, FEED_FORWARD, read_rules

# DAB-DETR's decoder layers repeat an attention's name in the names of what it holds.
LAYERS = read_rules(r"""
    ^model\.(?!backbone\.)(.+)$                \1
    ^decoder\.layernorm\.                      decoder.norm.
    (self|cross)_attn\.\1_attn_layer_norm\.    \1_attention_norm.
    (self|cross)_attn\.\1_attn[._](\w+)\.      \1_attention.\2.
    ^encoder(.*)\.self_attn_layer_norm\.       encoder\1.attention_norm.
    ^decoder(.*)\.self_attn_layer_norm\.       decoder\1.self_attention_norm.
    \.encoder_attn_layer_norm\.                .cross_attention_norm.
    (\.mlp)?\.final_layer_norm\.               .feed_forward_norm.
""")
# Its own ResNets and timm's.
BACKBONE = re.compile(r"^model\.backbone\.(conv_encoder\.)?model\.(_backbone\.)?")
SOURCE = Source(TRANSFORMERS, (*LAYERS, *ATTENTIONS, *FEED_FORWARD), BACKBONE)


def rename_transformers(
    weights: Mapping[str, Tensor], family: str, refinement: bool | None = None
) -> dict[str, Tensor]:
    """The state of a transformers detector, or the content of its file, under our names.

    Args:
        family: one that ``FAMILIES`` knows in this source. refinement: of its configuration, None where unknown.
    """
    return rename_state(weights, SOURCE, FAMILIES[family], refinement)
