"""A weight of zero takes its own terms out of a step, a doubled one doubles them, and nothing else moves by a bit."""

from __future__ import annotations

import re

from detr_distill.registry import LOSS_REGISTRY, MATCHER_REGISTRY
from detr_distill.structures import CAPTURES, SAMPLED_ATTENTION

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs, randomise, small_cfg
from helpers.hugging_face import taught_by_dfine

PREDICTION = ("distill_class", "distill_box", "distill_giou")
FOCAL_GLOBAL = ("distill_object", "distill_background", "distill_attention", "distill_relation")
# Every weight below MODEL.DISTILL, and the losses that it is the weight of: ``loss_<these>``, with any suffix.
TERMS = {
    "PREDICTION_LOSS.WEIGHT": PREDICTION,
    "PREDICTION_LOSS.CLASS_WEIGHT": ("distill_class",),
    "PREDICTION_LOSS.L1_WEIGHT": ("distill_box",),
    "PREDICTION_LOSS.GIOU_WEIGHT": ("distill_giou",),
    "ATTENTION_LOSS.WEIGHT": ("distill_self_attention", "distill_cross_attention"),
    "ATTENTION_LOSS.SELF_WEIGHT": ("distill_self_attention",),
    "ATTENTION_LOSS.CROSS_WEIGHT": ("distill_cross_attention",),
    "QUERY_RELATION_LOSS.WEIGHT": ("distill_query_relation",),
    "TARGET_AWARE_LOSS.WEIGHT": ("distill_target_aware", "target_mask"),
    "FEATURE_LOSS.WEIGHT": ("distill_feature",),
    "FEATURE_LOSS.BACKGROUND_WEIGHT": ("distill_feature",),
    "FOCAL_GLOBAL_LOSS.WEIGHT": FOCAL_GLOBAL,
    **{f"FOCAL_GLOBAL_LOSS.{term.split('_')[1].upper()}_WEIGHT": (term,) for term in FOCAL_GLOBAL},
    "MASKED_GENERATION_LOSS.WEIGHT": ("distill_generation",),
    "SAMPLED_ATTENTION_LOSS.WEIGHT": ("distill_sampled_attention",),
    "LOCALIZATION_LOSS.WEIGHT": ("distill_edges",),
    "PSEUDO_LABEL_LOSS.WEIGHT": tuple(f"distill_{term}_pseudo" for term in ("class", "box", "giou")),
    "FIXED_MATCHER.LOSS_WEIGHT": ("class_fixed", "box_fixed", "giou_fixed"),
}
# Of one part of an entry, which stays.
PARTS = {"FEATURE_LOSS.BACKGROUND_WEIGHT"}
# A loss of the loss's own layers, which only weight 0 takes away.
UNSCALED = {"loss_target_mask"}

# Four steps hold all losses: dense attention and sampled attention exclude each other, one wants an image without
# labels, and one a network that predicts distributions.
DENSE = {
    "MODEL__DISTILL__LOSSES": [
        "PredictionLoss", "AttentionLoss", "QueryRelationLoss", "TargetAwareLoss", "FeatureLoss", "FocalGlobalLoss",
        "MaskedGenerationLoss",
    ],
    "MODEL__DISTILL__PREDICTION_LOSS__DIVERGENCE": "kl",
    "MODEL__DISTILL__PREDICTION_LOSS__CLASS_TARGETS": "positives",
    "MODEL__DISTILL__PREDICTION_LOSS__BOX_SCORE_THRESHOLD": 0.0,
    "MODEL__DISTILL__FEATURE_LOSS__FOREGROUND": True,
    "MODEL__DISTILL__FEATURE_LOSS__BACKGROUND_WEIGHT": 4.0,
}  # fmt: skip
DEFORMABLE = {
    "MODEL__DETR__HIDDEN_DIM": 32,
    "MODEL__DETR__NECK__NAME": "MultiLevelNeck",
    "MODEL__DETR__ENCODER__NAME": "DeformableEncoder",
    "MODEL__DETR__DECODER__NAME": "DeformableDecoder",
    "MODEL__DETR__QUERIES__NAME": "LearnedContentQueries",
}
SAMPLED = {**DEFORMABLE, "MODEL__DISTILL__LOSSES": ["SampledAttentionLoss", "PredictionLoss"]}
UNLABELED = {
    "MODEL__DISTILL__LOSSES": ["PseudoLabelLoss", "PredictionLoss"],
    "MODEL__DISTILL__MATCHERS": ["AdaptiveMatcher", "PseudoLabelMatcher"],
    "MODEL__DISTILL__PREDICTION_LOSS__BOX_SCORE_THRESHOLD": 0.0,
    "MODEL__DISTILL__PSEUDO_LABEL_MATCHER__SCORE_THRESHOLD": 0.0,
    "MODEL__DISTILL__PSEUDO_LABEL_MATCHER__COPIES": 1,
    "DATALOADER__UNLABELED_PER_BATCH": 1,
}
EDGES = {"MODEL__DISTILL__LOSSES": ["LocalizationLoss", "PredictionLoss"]}
KINDS = {"dense": DENSE, "sampled": SAMPLED, "unlabeled": UNLABELED, "edges": EDGES}


@pytest.fixture(scope="module")
def step(save_teacher, tmp_path_factory):
    """Losses of a step of one of the ``KINDS``, in which the weight ``key``, if any, is multiplied by ``factor``."""
    teachers = {"dense": save_teacher(), "sampled": save_teacher(**DEFORMABLE)}
    teachers["unlabeled"] = teachers["dense"]
    teachers["edges"] = taught_by_dfine(tmp_path_factory.mktemp("edges"))
    full: dict[str, dict[str, torch.Tensor]] = {}

    def run(kind: str, key: str | None = None, factor: float = 1.0) -> dict[str, torch.Tensor]:
        if key is None and kind in full:
            return full[kind]
        cfg = small_cfg(**{**teachers[kind], **KINDS[kind]})
        if key is not None:
            node, name = key.split(".")
            cfg.MODEL.DISTILL[node][name] *= factor
        model = build_model(cfg).train()
        # Attention that is kept is computed in another form, which moves the last bits: all steps keep it.
        model.capture = {"dense": CAPTURES, "sampled": frozenset({SAMPLED_ATTENTION})}.get(kind, model.capture)
        # Each by itself: what starts at random depends on what is built before it.
        for part in (model.student, *model.matchers.values(), *model.losses.values()):
            randomise(part, seed=2)
        torch.manual_seed(0)
        inputs = make_inputs()
        if kind == "unlabeled":
            inputs.append({key: value for key, value in inputs[0].items() if key != "instances"})
        losses = model(inputs, iteration=0)
        return full.setdefault(kind, losses) if key is None else losses

    return run


@pytest.mark.parametrize("factor", [0.0, 2.0])
@pytest.mark.parametrize("key", TERMS)
def test_a_weight_scales_its_terms_alone(step, key, factor):
    kind = {"SAMPLED": "sampled", "PSEUDO": "unlabeled", "LOCALIZATION": "edges"}.get(key.partition("_")[0], "dense")
    full, found = step(kind), step(kind, key, factor)
    own = {name for name in full if re.fullmatch(rf"loss_({'|'.join(TERMS[key])})(_.*)?", name)}
    assert own and all(any(name.startswith(f"loss_{term}") for name in own) for term in TERMS[key])
    assert all(full.values()) and set(found) <= set(full)
    for name, value in full.items():
        if name not in own:
            assert torch.equal(value, found[name]), name
        elif key in PARTS:
            assert 0 < found[name] < value if factor == 0 else value < found[name] < 2 * value, name
        elif factor == 0:
            # A loss of weight 0 is not even built; a term of one may stay as a zero.
            assert name not in found if key.endswith("_LOSS.WEIGHT") else found.get(name, 0) == 0, name
        elif name in UNSCALED:
            assert torch.equal(value, found[name]), name
        else:
            assert torch.equal(factor * value, found[name]), name


def test_every_loss_and_every_weight_has_a_case():
    """A loss that is registered, or a weight that a loss or matcher is given, has to be entered above."""
    covered = {loss for keys in KINDS.values() for loss in keys["MODEL__DISTILL__LOSSES"]}
    assert covered == {name for name, _ in LOSS_REGISTRY}
    names = [name for registry in (LOSS_REGISTRY, MATCHER_REGISTRY) for name, _ in registry]
    nodes = {name: small_cfg().MODEL.DISTILL.get(name, {}) for name in map(node_name, names)}
    weights = {
        f"{name}.{key}"
        for name, node in nodes.items()
        for key, value in node.items()
        if key.endswith("WEIGHT") and isinstance(value, float)
    }
    assert weights == set(TERMS)


def node_name(name: str) -> str:
    """FeatureLoss to FEATURE_LOSS."""
    return re.sub("(?<!^)(?=[A-Z])", "_", name).upper()
