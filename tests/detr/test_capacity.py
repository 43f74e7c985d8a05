"""How many objects an image may have before some are not learned."""

from __future__ import annotations

from detr_distill.detr.capacity import object_limits

import pytest
from helpers.builders import small_cfg


def limits(**keys):
    return {limit.key: limit.objects for limit in object_limits(small_cfg(**keys))}


def test_a_query_finds_one_object():
    assert limits(MODEL__DETR__NUM_QUERIES=9) == {"MODEL.DETR.NUM_QUERIES": 9}
    denoising = {"MODEL__DETR__TRAINING_GROUPS": ("ContrastiveDenoisingQueries", "GroupQueries")}
    assert limits(**denoising) == {"MODEL.DETR.NUM_QUERIES": 7}


@pytest.mark.parametrize(("weight", "queries"), [(1.0, {"MODEL.DETR.HYBRID_QUERIES.NUM_QUERIES": 3}), (0.0, {})])
def test_a_branch_gives_every_object_several(weight, queries):
    keys = {"TRAINING_GROUPS": ("HybridQueries",), "HYBRID_QUERIES.NUM_QUERIES": 20, "HYBRID_QUERIES.REPEATS": 6}
    keys = {f"MODEL.DETR.{key}": value for key, value in {**keys, "HYBRID_QUERIES.LOSS_WEIGHT": weight}.items()}
    assert limits(**keys) == {"MODEL.DETR.NUM_QUERIES": 7, **queries}


def test_the_number_that_would_do():
    keys = {"TRAINING_GROUPS": ("HybridQueries",), "HYBRID_QUERIES.REPEATS": 6}
    own, hybrid = object_limits(small_cfg(**{f"MODEL.DETR.{key}": value for key, value in keys.items()}))
    assert (own.needed(40), hybrid.needed(40)) == (40, 240)
