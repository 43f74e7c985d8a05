"""Distils a small DETR in a plain PyTorch loop; two files describe the detectors, nothing else is configured.

``python examples/plain_pytorch.py``: one minute on a CPU. The teacher is the demonstration's;
pictures are drawn from scikit-learn's handwritten digits.
"""

from __future__ import annotations

import detr_distill
from detr_distill.data import CANVAS, draw_picture, split_samples
from detr_distill.distill import DistillDetector
from detr_distill.distill.classes import same_classes
from detr_distill.distill.losses import PredictionLoss
from detr_distill.distill.matchers import AdaptiveMatcher
from detr_distill.distill.teachers import FrozenDetector

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

ITERATIONS, BATCH = 60, 8


def draw_batch(rng: np.random.Generator) -> list[dict]:
    """Pictures (3, height, width) and their objects, as detectron2's detectors take them."""
    batch, (samples, digits, _) = [], split_samples("train")
    for _ in range(BATCH):
        picture, drawn = draw_picture(rng, samples)
        x, y, width, height = torch.tensor([digit.box for digit in drawn]).float().unbind(1)
        objects = Instances((CANVAS, CANVAS), gt_boxes=Boxes(torch.stack([x, y, x + width, y + height], dim=1)))
        objects.gt_classes = torch.tensor([int(digits[digit.sample]) for digit in drawn])
        batch.append({"image": torch.from_numpy(picture).permute(2, 0, 1), "instances": objects})
    return batch


def main() -> None:
    torch.manual_seed(0)
    network = detr_distill.build_detector("configs/digits/conditional_teacher.yaml", "weights/digits_teacher.pth")
    classes = same_classes(10)
    model = DistillDetector(
        student=detr_distill.build_detector("configs/digits/conditional_student.yaml"),
        teacher=FrozenDetector(detector=network, classes=classes),
        matchers={"AdaptiveMatcher": AdaptiveMatcher(classes=classes)},
        losses={"PredictionLoss": PredictionLoss(classes=classes)},
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    detr_distill.follow_optimizer(model, optimizer, lambda: iteration)
    for iteration in range(ITERATIONS):
        losses = model(draw_batch(np.random.default_rng(iteration)), iteration=iteration)
        optimizer.zero_grad()
        (total := torch.stack(list(losses.values())).sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        distilled = sum(value.item() for name, value in losses.items() if name.startswith("loss_distill"))
        if iteration % 10 == 0 or iteration == ITERATIONS - 1:
            print(f"iteration {iteration + 1}/{ITERATIONS}  loss {total.item():.2f}, distilled {distilled:.2f}")


if __name__ == "__main__":
    main()
