"""How far a label encoder's maps depend on the labels, before and after a short training.

    python benchmarks/label_sensitivity.py --json benchmarks/results/label_sensitivity.json

LGD on digits with RetinaNet, as published and with the changes of the digits recipe one by one. Every object of a batch
gets another class; the number is the root mean square of what that changes in the encoder's maps over their standard
deviation, mean over levels. An encoder that no longer hears the labels gives 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

from detr_distill.config.build import build_config
from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.distill import DistillDetector
from detr_distill.distill.students import student_of
from detr_distill.engine.trainer import DistillTrainer

import torch
from common import ROOT, write_result
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from rich.console import Console
from rich.progress import track
from rich.table import Table

SLOWER = ["SOLVER.LR_FACTORS", [["teacher\\.", 0.1]]]
ROWS: dict[str, list] = {
    "as published": [],
    "encoder at a tenth of the rate": SLOWER,
    "and its label kept by each object": [*SLOWER, "MODEL.DISTILL.LABEL_ENCODER.KEEP_LABEL", True],
}


@torch.no_grad()
def sensitivity(model: DistillDetector, batch: list[dict], num_classes: int) -> float:
    """What other labels change in the encoder's maps, in standard deviations of the maps; mean over levels."""
    truth = read_ground_truth(batch, model.device)
    step = dataclasses.replace(student_of(model.student).start(batch), ground_truth=truth)
    before = model.teacher(step, frozenset()).features
    others = dataclasses.replace(truth, labels=(truth.labels + 1) % num_classes * truth.valid)
    after = model.teacher(dataclasses.replace(step, ground_truth=others), frozenset()).features
    changes = [(after[name] - before[name]).square().mean().sqrt() / before[name].std() for name in before]
    return torch.stack(changes).mean().item()


def measure(overrides: list, iterations: int) -> tuple[float, float]:
    """Before the first and after the last iteration."""
    config = str(ROOT / "configs/digits/lgd_retinanet_published.yaml")
    with tempfile.TemporaryDirectory() as folder:
        cfg = build_config(config, ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", folder])
        cfg.merge_from_list(overrides)
        seed_all_rng(cfg.SEED)
        trainer = DistillTrainer(cfg)
        trainer.model.train()
        batch = next(iter(trainer.build_train_loader(cfg)))
        values = []
        with EventStorage() as storage:
            values.append(sensitivity(trainer.model, batch, cfg.MODEL.RETINANET.NUM_CLASSES))
            for iteration in track(range(iterations)):
                trainer.iter = trainer._trainer.iter = storage.iter = iteration
                trainer.run_step()
                trainer.scheduler.step()
            values.append(sensitivity(trainer.model, batch, cfg.MODEL.RETINANET.NUM_CLASSES))
    return values[0], values[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--iterations", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: measure(overrides, arguments.iterations) for name, overrides in ROWS.items()}
    table = Table("LGD on digits, RetinaNet", "before", f"after {arguments.iterations} iterations")
    for name, values in found.items():
        table.add_row(name, *(f"{value:.2g}" for value in values))
    Console().print(table)
    write_result(arguments.json, {"iterations": arguments.iterations, "rows": found})


if __name__ == "__main__":
    main()
