"""Keys that nothing here reads are named; the shipped configurations set none."""

from __future__ import annotations

import logging
import re

from detr_distill.config.build import build_config
from detr_distill.config.without_effect import keys_without_effect
from detr_distill.engine.process import set_up_process

import pytest
from helpers.engine.toy import untouched_loggers  # noqa: F401
from helpers.golden_cases import DIGITS
from helpers.structures import CONFIGS, short_name

DETR = str(DIGITS / "conditional_student.yaml")


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (["TEST.AUG.ENABLED", "True"], "TEST.AUG.ENABLED has no effect here: evaluation looks at each image once"),
        (
            ["TEST.PRECISE_BN.ENABLED", "True", "TEST.PRECISE_BN.NUM_ITER", "5"],
            "ENABLED, TEST.PRECISE_BN.NUM_ITER have",
        ),
        (["MODEL.MASK_ON", "True"], "MODEL.MASK_ON has no effect"),
        (["SOLVER.MOMENTUM", "0.5"], "SOLVER.MOMENTUM has no effect here: SOLVER.OPTIMIZER is AdamW"),
        (["DATALOADER.REPEAT_THRESHOLD", "0.1"], "SAMPLER_TRAIN is not RepeatFactorTrainingSampler"),
        (["DATALOADER.RANDOM_SUBSET_RATIO", "0.1"], "SAMPLER_TRAIN is not RandomSubsetTrainingSampler"),
        (["SOLVER.AMP.DTYPE", "bfloat16"], "SOLVER.AMP.DTYPE has no effect here: SOLVER.AMP.ENABLED is False"),
        (["VIS_PERIOD", "20"], "tools/visualize.py draws what a DetrDetector sees"),
        (["INPUT.MASK_FORMAT", "bitmask"], "INPUT.MASK_FORMAT has no effect here: MODEL.MASK_ON is False"),
        (["DATASETS.UNLABELED", "('rest',)"], "DATASETS.UNLABELED has no effect here: DATALOADER.UNLABELED_PER_BATCH"),
        (
            ["INPUT.STRONG.IMAGES", "unlabeled"],
            "INPUT.STRONG.IMAGES has no effect here: .* that no image is unlabelled",
        ),
        (["INPUT.STRONG.BLUR", "0.1"], "INPUT.STRONG.BLUR has no effect here: INPUT.STRONG.IMAGES is none"),
        (["DATASETS.LABELED_SEED", "3"], "DATASETS.LABELED_SEED has no effect here: DATASETS.LABELED_SHARE is 1"),
        (["MODEL.DISTILL.START_WEIGHTS", "a.pth"], "START_WEIGHTS has no effect here: .*START_FROM_TEACHER names no"),
        (["SOLVER.CLIP_GRADIENTS.ENABLED", "False"], "SOLVER.CLIP_GRADIENTS.CLIP_TYPE has no effect here: "),
    ],
)
def test_a_key_without_effect_is_named(keys, line):
    (found,) = keys_without_effect(build_config(DETR, keys))
    assert re.search(line, found)


@pytest.mark.parametrize("file", CONFIGS, ids=short_name)
def test_no_shipped_configuration_sets_one(file):
    assert keys_without_effect(build_config(str(file), [])) == []


@pytest.mark.usefixtures("untouched_loggers")
def test_a_run_says_it_in_its_log(tmp_path):
    cfg = build_config(DETR, ["MODEL.DEVICE", "cpu", "TEST.AUG.ENABLED", "True", "OUTPUT_DIR", str(tmp_path)])
    set_up_process(cfg, training=True)
    logging.getLogger("detr_distill").handlers[-1].flush()
    assert "TEST.AUG.ENABLED has no effect here" in (tmp_path / "log.txt").read_text()
