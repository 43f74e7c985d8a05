"""The table "DETRDistill and its parts" of docs/benchmarks.md.

    python benchmarks/digits_distillation.py --json benchmarks/results/digits_distillation.json

Conditional DETR and two-stage Deformable DETR on digits, taught by the shipped teacher at equal iterations: each part
of DETRDistill alone, in pairs and together, D3ETR, feature baselines and KD-DETR; beside them the plain student, a
second group of queries without a teacher, the plain student for the time that DETRDistill and D3ETR take, by the ratio
of their steps measured in turn in this process, and the plain student until more iterations bring it nothing: its
ceiling. Runs already in the JSON are not repeated.
"""

from __future__ import annotations

from pathlib import Path

from rows import make_table
from study import TEACHER_FREE_GROUP, Run, Study, settings_key, step_ratio

DETECTORS = {"conditional": "Conditional DETR", "deformable": "Deformable DETR"}
PLAIN, DETRDISTILL, D3ETR = "{}_student", "detrdistill_{}", "d3etr_{}"
# Controls that train as long as a method takes, and the method's configuration.
EQUAL_TIME = {"control: plain for DETRDistill's time": DETRDISTILL, "control: plain for D3ETR's time": D3ETR}
CEILING = ["SOLVER.MAX_ITER", "20480"]


def only(matchers: list[str], losses: list[str]) -> list[str]:
    """Overrides that leave these matchers and losses of a method."""
    return ["MODEL.DISTILL.MATCHERS", str(matchers), "MODEL.DISTILL.LOSSES", str(losses)]


ADAPTIVE, FIXED, LOGITS, FEATURES = "AdaptiveMatcher", "FixedMatcher", "PredictionLoss", "TargetAwareLoss"
# The prediction and the feature loss of configs/detrdistill/, which the digits files replace.
PUBLISHED = [
    *("MODEL.DISTILL.PREDICTION_LOSS.DIVERGENCE", "kl"),
    *("MODEL.DISTILL.PREDICTION_LOSS.NORMALIZER", "pairs"),
    *("MODEL.DISTILL.PREDICTION_LOSS.PAIR_WEIGHT", "equal"),
    *("MODEL.DISTILL.TARGET_AWARE_LOSS.WEIGHT", "1.0"),
]
ROWS = {
    "plain": (PLAIN, []),
    **dict.fromkeys(EQUAL_TIME, (PLAIN, [])),
    "control: plain until its curve is flat": (PLAIN, CEILING),
    "control: auxiliary group without a teacher": (PLAIN, TEACHER_FREE_GROUP),
    "DETRDistill: logits": (DETRDISTILL, only([ADAPTIVE], [LOGITS])),
    "DETRDistill: features": (DETRDISTILL, only([], [FEATURES])),
    "DETRDistill: assignment": (DETRDISTILL, only([FIXED], [])),
    "DETRDistill: logits, features": (DETRDISTILL, only([ADAPTIVE], [LOGITS, FEATURES])),
    "DETRDistill: logits, assignment": (DETRDISTILL, only([ADAPTIVE, FIXED], [LOGITS])),
    "DETRDistill: features, assignment": (DETRDISTILL, only([FIXED], [FEATURES])),
    "DETRDistill: logits, features, assignment": (DETRDISTILL, only([ADAPTIVE, FIXED], [LOGITS, FEATURES])),
    "DETRDistill: all three and query relation": (DETRDISTILL, []),
    "DETRDistill: all three, as published": (DETRDISTILL, [*only([ADAPTIVE, FIXED], [LOGITS, FEATURES]), *PUBLISHED]),
    "D3ETR: adaptive": (D3ETR, ["MODEL.DISTILL.MATCHERS", str([ADAPTIVE])]),
    "D3ETR: fixed": (D3ETR, ["MODEL.DISTILL.MATCHERS", str([FIXED])]),
    "D3ETR: mix, predictions only": (D3ETR, only([ADAPTIVE, FIXED], [LOGITS])),
    "D3ETR: mix": (D3ETR, []),
    "FitNet": ("fitnet_{}", []),
    "FGD": ("fgd_{}", []),
    "MGD": ("mgd_{}", []),
    "KD-DETR": ("kd_detr_{}", []),
}


def wanted_runs(study: Study, seeds: list[int]) -> dict[tuple[str, str, int], Run]:
    """Every run, by detector, row and seed; one seed after the other, so that an interrupted study has whole tables."""
    runs = {}
    for seed in seeds:
        for detector, title in DETECTORS.items():
            for name, (file, overrides) in ROWS.items():
                config = f"configs/digits/{file.format(detector)}.yaml"
                more = equal_time(study, detector, EQUAL_TIME[name]) if name in EQUAL_TIME else []
                runs[title, name, seed] = Run(config, [*overrides, *more], seed)
    return runs


def equal_time(study: Study, detector: str, method: str) -> list[str]:
    """As many iterations of the plain student as 800 of a method take."""
    taught, plain = (f"configs/digits/{file.format(detector)}.yaml" for file in (method, PLAIN))
    key = f"step ratio, {Path(taught).stem} | settings {settings_key(taught)}"
    ratio = study.remember(key, lambda: step_ratio(taught, plain))
    return ["SOLVER.MAX_ITER", str(round(800 * ratio))]


if __name__ == "__main__":
    make_table(__doc__, wanted_runs)
