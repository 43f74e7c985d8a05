"""The families of detectors that can be imported. A record here is all that another one needs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from .deformable_heads import arrange_by_value, arrange_deformable, arrange_own_heads
from .describe import describe_deformable, describe_dino
from .family import DETREX, OFFICIAL, TRANSFORMERS, Family, Form, Supervision
from .rules import CONDITIONAL, LEVELS, ONE_LEVEL, POSITION_HEAD, REFERENCE_HEAD

SOFTMAX = Supervision("softmax", matching_costs=(1.0, 5.0, 2.0), loss_weights=(1.0, 5.0, 2.0))
FOCAL = Supervision("focal", matching_costs=(2.0, 5.0, 2.0), loss_weights=(2.0, 5.0, 2.0))
FOCAL_OF_WEIGHT_1 = replace(FOCAL, loss_weights=(1.0, 5.0, 2.0))

# How far from 0 and 1 boxes stay before their logit is taken: in DAB-DETR, what was built on it, and all of detrex; and
# in all others, transformers' DAB-DETR included [C].
WIDE, NARROW = 1e-3, 1e-5

# Parameter names by which detrex's families differ.
_LEVELS = "transformer.level_embeds"
_POSITION_HEAD = "transformer.decoder.ref_point_head.layers.0.weight"
_SIZE_HEAD = "transformer.decoder.ref_anchor_head.layers.0.weight"

DAB_DETR = Family(
    name="dab_detr",
    decoder="DabDecoder",
    encoder="DabEncoder",
    queries="AnchorBoxQueries",
    supervision=FOCAL_OF_WEIGHT_1,
    rules=(*ONE_LEVEL, *CONDITIONAL, *POSITION_HEAD),
    forms={
        TRANSFORMERS: Form(
            has=("dab-detr",),
            logit_epsilon=NARROW,
            temperature=20.0,
            temperature_key="temperature_height",
            expected={"activation_function": "prelu"},
        ),
        DETREX: Form(has=(_SIZE_HEAD,), temperature=20.0, logit_epsilon=WIDE),
        OFFICIAL: Form(
            has=("refpoint_embed.weight",),
            logit_epsilon=WIDE,
            temperature=20.0,
            temperature_key="pe_temperatureH",
            expected={"transformer_activation": "prelu"},
        ),
    },
)

# A family stands behind those whose signs its checkpoints have as well: ``recognise`` takes the last that fits.
FAMILIES: dict[str, Family] = {
    record.name: record
    for record in (
        Family(
            name="detr",
            decoder="DetrDecoder",
            encoder="TransformerEncoder",
            queries="LearnedQueries",
            supervision=SOFTMAX,
            rules=ONE_LEVEL,
            forms={
                TRANSFORMERS: Form(has=("detr",)),
                DETREX: Form(has=("transformer.decoder.layers.0.attentions.1.attn.in_proj_weight",)),
                OFFICIAL: Form(has=("transformer.decoder.layers.0.multihead_attn.in_proj_weight",)),
            },
        ),
        Family(
            name="conditional_detr",
            decoder="ConditionalDecoder",
            decoder_keys={"POSITION_GAIN": 0.0},
            encoder="TransformerEncoder",
            queries="LearnedQueries",
            supervision=FOCAL,
            rules=(*ONE_LEVEL, *CONDITIONAL, *REFERENCE_HEAD),
            forms={
                TRANSFORMERS: Form(has=("conditional_detr",), logit_epsilon=NARROW),
                DETREX: Form(has=(_POSITION_HEAD,), lacks=(_LEVELS,), logit_epsilon=WIDE),
                OFFICIAL: Form(has=("transformer.decoder.layers.0.ca_qcontent_proj.weight",), logit_epsilon=NARROW),
            },
        ),
        DAB_DETR,
        replace(
            DAB_DETR,
            name="dn_detr",
            queries="UnknownLabelQueries",
            label_owner="DenoisingQueries",
            unknown_label=True,
            detections_per_image=300,
            forms={
                DETREX: replace(DAB_DETR.forms[DETREX], has=(_SIZE_HEAD, "denoising_generator.label_encoder.weight")),
                OFFICIAL: replace(DAB_DETR.forms[OFFICIAL], has=("label_enc.weight",)),
            },
        ),
        Family(
            name="deformable_detr",
            decoder="DeformableDecoder",
            encoder="DeformableEncoder",
            queries="LearnedContentQueries",
            supervision=FOCAL,
            rules=LEVELS,
            has_levels=True,
            describe=describe_deformable,
            forms={
                TRANSFORMERS: Form(has=("deformable_detr",), arrange=arrange_deformable, logit_epsilon=NARROW),
                DETREX: Form(has=(_LEVELS,), lacks=(_POSITION_HEAD,), arrange=arrange_deformable, logit_epsilon=WIDE),
                OFFICIAL: Form(has=("transformer.level_embed",), arrange=arrange_deformable, logit_epsilon=NARROW),
            },
        ),
        Family(
            name="dn_deformable_detr",
            decoder="DabDeformableDecoder",
            encoder="DeformableEncoder",
            queries="MarkedAnchorQueries",
            supervision=FOCAL_OF_WEIGHT_1,
            rules=(*LEVELS, *POSITION_HEAD),
            has_levels=True,
            label_owner="DenoisingQueries",
            detections_per_image=300,
            forms={OFFICIAL: Form(has=("tgt_embed.weight",), arrange=arrange_own_heads, logit_epsilon=WIDE)},
        ),
        Family(
            name="dino",
            decoder="DinoDecoder",
            encoder="DeformableEncoder",
            queries="MixedQueries",
            supervision=FOCAL_OF_WEIGHT_1,
            rules=(*LEVELS, *POSITION_HEAD),
            has_levels=True,
            describe=describe_dino,
            label_owner="ContrastiveDenoisingQueries",
            detections_per_image=300,
            forms={
                # Positions as in its settings for 12 epochs; others have temperature 20 and offset 0 [C].
                DETREX: Form(
                    has=(_LEVELS, "transformer.tgt_embed.weight"),
                    arrange=arrange_own_heads,
                    logit_epsilon=WIDE,
                ),
                OFFICIAL: Form(
                    has=("transformer.enc_out_class_embed.weight",),
                    arrange=arrange_by_value,
                    temperature=20.0,
                    temperature_key="pe_temperatureH",
                    position_offset=0.0,
                    logit_epsilon=WIDE,
                    expected={"transformer_activation": "relu"},
                ),
            },
        ),
    )
}


def families_of(source: str) -> list[str]:
    """Names of the families that a source has: ``TRANSFORMERS``, ``DETREX`` or ``OFFICIAL``."""
    return [name for name, record in FAMILIES.items() if source in record.forms]


def recognise(source: str, signs: Collection[str]) -> Family | None:
    """The family that a source's checkpoint belongs to; None where none is certain.

    Args:
        signs: parameter names; of transformers, the ``model_type`` alone.
    """
    for name in reversed(families_of(source)):
        form = FAMILIES[name].forms[source]
        if all(sign in signs for sign in form.has) and not any(sign in signs for sign in form.lacks):
            return FAMILIES[name]
    return None
