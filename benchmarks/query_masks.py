"""Whether target-aware masks find their objects: the table of docs/methods.md, "Target-aware features".

    python benchmarks/query_masks.py --json benchmarks/results/query_masks.json

The shipped digits teacher on the first images of digits_val, for each projection of its memory: the mean mask value on
the cells that an object touches, on those of other objects alone, and on the background, of the query of best quality
for each object; and the mean weight of a touched cell over that of a background cell. The learned projection is trained
on digits_val, in batches of 16, by its own loss. Keys of the JSON: objects, batches, and for each projection own,
others, background, ratio. Ten seconds on one core.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

from detr_distill.data import DetrDatasetMapper, build_train_loader
from detr_distill.distill import DistillDetector
from detr_distill.distill.losses.target_aware import TargetAwareLoss
from detr_distill.distill.losses.target_masks import cell_weights, query_quality, touched_cells
from detr_distill.distill.students.base import StudentStep
from detr_distill.engine import build_config
from detr_distill.structures import Pairs

import torch
from common import ROOT, write_result
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

OVERRIDES = ["MODEL.DEVICE", "cpu", "MODEL.DISTILL.MATCHERS", "()", "MODEL.DISTILL.LOSSES", '("TargetAwareLoss",)']
OVERRIDES += ["DATASETS.TRAIN", '("digits_val",)']
HEADINGS = {"own": "own object", "others": "other objects", "background": "background", "ratio": "weight ratio"}


def target_aware_loss(model: DistillDetector) -> TargetAwareLoss:
    """The model's only loss."""
    (loss,) = model.losses.values()
    assert isinstance(loss, TargetAwareLoss)
    return loss


def train_projection(model: DistillDetector, cfg: CfgNode, batches: int, rate: float) -> None:
    """Trains the mask projection of the model's loss, and nothing else."""
    optimizer = torch.optim.AdamW(target_aware_loss(model).mask_projection.parameters(), lr=rate)
    for batch in itertools.islice(build_train_loader(cfg), batches):
        optimizer.zero_grad()
        model(batch)["loss_target_mask"].backward()
        optimizer.step()


@torch.no_grad()
def measure(model: DistillDetector, inputs: list[dict], projection: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Means over all objects of the images; ``projection`` is from memory tokens to what queries are compared with."""
    loss, knowledge = target_aware_loss(model), model.teacher(StudentStep(inputs), frozenset())
    output, targets, memory = knowledge.output, knowledge.ground_truth, knowledge.memory
    queries, objects = output.logits.shape[2], targets.labels.shape[1]
    index = torch.arange(queries * objects).expand(1, len(inputs), -1)
    every = Pairs(index // objects, index % objects, targets.valid.float().repeat(1, queries)[None])
    quality, best = query_quality(output, targets, every, loss.exponent).unflatten(1, (queries, objects)).max(1)

    states = output.hidden[-1].gather(1, best[..., None].expand(-1, -1, output.hidden.shape[-1]))
    logits = states @ projection(memory.tokens).transpose(1, 2) / states.shape[-1] ** 0.5
    own = touched_cells(memory, targets.boxes) * targets.valid.unsqueeze(-1)
    anything = own.amax(1, keepdim=True)
    valid = targets.valid.unsqueeze(-1)
    places = {"own": own, "others": (anything - own) * valid, "background": (1 - anything) * valid}
    assert memory.mask is None  # the images are of one size
    masks, weights = logits.sigmoid(), cell_weights(quality, logits, None).unsqueeze(1)
    found = {name: ((masks * cells).sum() / cells.sum()).item() for name, cells in places.items()}
    inside, outside = ((weights * cells).sum() / cells.sum() for cells in (anything, 1 - anything))
    return {**found, "ratio": (inside / outside).item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--batches", type=int, default=150, help="that the learned projection is trained on")
    parser.add_argument("--rate", type=float, default=0.001, help="its learning rate")
    arguments = parser.parse_args()

    cfg = build_config(str(ROOT / "configs/digits/detrdistill_conditional.yaml"), OVERRIDES)
    torch.manual_seed(cfg.SEED)
    model = build_model(cfg).train()
    train_projection(model, cfg, arguments.batches, arguments.rate)
    own = model.teacher.read_projection()
    assert own is not None  # as it is for "learned"
    projections: dict[str, Callable[[Tensor], Tensor]] = {
        "none": nn.Identity(),
        "teacher": own,
        "learned": target_aware_loss(model).mask_projection,
    }
    mapper = DetrDatasetMapper(cfg, is_train=True)
    inputs = [mapper(record) for record in DatasetCatalog.get("digits_val")[: arguments.images]]
    found = {name: measure(model, inputs, projection) for name, projection in projections.items()}

    result = {"objects": sum(len(entry["instances"]) for entry in inputs), "batches": arguments.batches, **found}
    write_result(arguments.json, result)
    table = Table("P", *HEADINGS.values(), title=f"{result['objects']} objects")
    for name, values in found.items():
        table.add_row(name, *(f"{values[key]:.2f}" for key in HEADINGS))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
