"""Rules from other projects' parameter names to ours: what all of them have in common.

A table has a rule in each line: a regular expression, and what replaces it. A name is led through all rules in order.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Rule = tuple[str, str | Callable[[re.Match[str]], str]]


def read_rules(table: str) -> tuple[Rule, ...]:
    """The rules of a table.

    Raises:
        ValueError: a line has more or fewer than two columns.
    """
    rows = [line.split() for line in table.strip().splitlines()]
    return tuple((pattern, replacement) for pattern, replacement in rows)


# Layers of transformers and of the authors' code.
ATTENTIONS = read_rules(r"""
    ^encoder(.*)\.self_attn\.                       encoder\1.attention.
    \.self_attn\.                                   .self_attention.
    \.(multihead_attn|cross_attn|encoder_attn)\.    .cross_attention.
    \.sa_(\w+)\.                                    .self_attention.\1.
    \.ca_(\w+)\.                                    .cross_attention.\1.
""")
FEED_FORWARD = read_rules(r"""
    \.mlp\.(fc\d|activation_fn)                     .\1
    \.(fc1|linear1)\.                               .feed_forward.expand.
    \.(fc2|linear2)\.                               .feed_forward.contract.
    \.(activation_fn|activation)\.                  .feed_forward.activation.
""")

# Networks of one level: one head for all layers. The authors' norms are numbered in the order in which their
# constructors make them: here that of self-attention comes first.
ONE_LEVEL = read_rules(r"""
    ^input_proj\.                                   input_projection.
    ^(class_embed|class_labels_classifier)\.        decoder.heads.class_head.
    ^((decoder\.)?bbox_embed|bbox_predictor)\.      decoder.heads.box_head.
    ^decoder(.*)\.norm1\.                           decoder\1.self_attention_norm.
    ^decoder(.*)\.norm2\.                           decoder\1.cross_attention_norm.
""")
# Networks of several levels: numbered heads, and the norm of cross-attention comes first. An early version of detrex
# writes "enc_outpout".
LEVELS = read_rules(r"""
    ^level_embeds?$                                 input_projection.level_embedding
    ^input_proj\.                                   input_projection.projections.
    ^tgt_embed\.                                    queries.content.
    ^enc_out(put|pout)_norm\.                       queries.output_norm.
    ^enc_output\.                                   queries.output.
    ^enc_out_class_embed\.                          queries.heads.class_head.
    ^enc_out_bbox_embed\.                           queries.heads.box_head.
    ^reference_points\.                             decoder.reference_points.
    ^pos_trans_norm\.                               decoder.start_norm.
    ^pos_trans\.                                    decoder.start_projection.
    ^(decoder\.)?class_embed\.(\d+)                 decoder.heads.\2.class_head
    ^(decoder\.)?bbox_embed\.(\d+)                  decoder.heads.\2.box_head
    ^decoder(.*)\.norm1\.                           decoder\1.cross_attention_norm.
    ^decoder(.*)\.norm2\.                           decoder\1.self_attention_norm.
""")
# Decoders that project contents and positions apart.
CONDITIONAL = read_rules(r"""
    \.q(uery)?_?pos_sine_proj\.                     .query_sine.
    \.q(uery)?_?content_proj\.                      .query_content.
    \.k(ey)?_?content_proj\.                        .key_content.
    \.q(uery)?_?pos_proj\.                          .query_position.
    \.k(ey)?_?pos_proj\.                            .key_position.
    ^decoder(.*)\.v(alue)?_proj\.                   decoder\1.value.
    ^decoder(.*)\.(o|out|output)_proj\.             decoder\1.output.
""")
# One name for two things: the network that makes points of queries, or positions of anchor boxes.
REFERENCE_HEAD = read_rules(r"\.ref_point_head\.    .reference_head.")
POSITION_HEAD = read_rules(r"\.ref_point_head\.     .position_head.")

# Every network, last: projections that are none of CONDITIONAL's.
EVERYWHERE = read_rules(r"""
    ^query_(embed|embedding)\.                      queries.position.
    ^query_(position|refpoint)_embeddings\.         queries.position.
    ^(refpoint|anchor_box)_embed\.                  queries.position.
    \.query_scale\.                                 .scale_head.
    \.ref_anchor_head\.                             .size_head.
    \.q_proj\.                                      .query_projection.
    \.k_proj\.                                      .key_projection.
    \.(v|value)_proj\.                              .value_projection.
    \.(o|out|output)_proj\.                         .output_projection.
""")

# ResNets of transformers, without prefix.
TRANSFORMERS_RESNET: tuple[Rule, ...] = (
    (r"^embedder\.embedder", "stem.conv1"),
    (r"^encoder\.stages\.(\d+)\.layers", lambda match: f"res{int(match[1]) + 2}"),
    (r"\.layer\.(\d+)\.", lambda match: f".conv{int(match[1]) + 1}."),
    (r"\.normalization\.", ".norm."),
    (r"\.convolution\.", "."),
)
