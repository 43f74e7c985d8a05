"""Whether an exported detector detects what the detector does.

Letters: B images, N detections of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CheckpointError
from .base import Graph

Run = Callable[[Tensor, Tensor], Sequence[Tensor]]  # images and sizes to boxes, scores and labels
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """A batch to compare with.

    Attributes:
        images: B. taller, wider: height and width in those of the export. ragged: two images are smaller, and padded.
    """

    images: int
    taller: float = 1.0
    wider: float = 1.0
    ragged: bool = False


CASES = (Case(2), Case(1), Case(3, 0.75, 1.25), Case(1, 1.05, 0.7), Case(3, 1.0, 1.25, ragged=True))


def example(images: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Images (B, 3, height, width) of noise, the same in every call, and their sizes (B, 2)."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8, generator=generator)
    return values, torch.tensor([[height, width]] * images)


def make_case(case: Case, graph: Graph, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The batch of a case, for an export at ``size`` (height, width), as near to it as the graph can take."""
    factors, multiple = (case.taller, case.wider), graph.multiple
    wanted = [round(side * factor / multiple) * multiple for side, factor in zip(size, factors, strict=True)]
    sides = [max(side, graph.smallest) for side in wanted]
    images, sizes = example(min(case.images, graph.most_images or case.images), *sides)
    if case.ragged:
        height, width = images.shape[-2:]
        sizes[0], sizes[-1] = torch.tensor([height // 2, width]), torch.tensor([height, width // 2 + 3])
    return images, sizes


@torch.no_grad()
def compare(graph: Graph, run: Run, case: Case, size: tuple[int, int], name: str) -> float:
    """The largest difference of a score, or of a box in the image's sides.

    Detections are compared as sets: of equal scores either may come first.

    Args:
        graph: the detector's. run: what was exported. size: (height, width) of the export. name: of the file.

    Raises:
        CheckpointError: it is more than 1e-4, or a label is another.
    """
    inputs = make_case(case, graph, size)
    expected, found = graph(*inputs), run(*inputs)
    difference = max(_difference(*image) for image in zip(*expected, *found, inputs[1], strict=True))
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"{name}: the exported detector differs from PyTorch's by {difference:.1e} on {len(inputs[0])} images of "
            f"{inputs[0].shape[-2]}x{inputs[0].shape[-1]} pixels, and more than {TOLERANCE:g} is no rounding. It was "
            "not written. Report it with the configuration; --format safetensors exports the weights."
        )
    return difference


def _difference(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    found_boxes: Tensor,
    found_scores: Tensor,
    found_labels: Tensor,
    size: Tensor,
) -> float:
    """Of one image's detections (N, 4), (N,) and (N,): how far each is from the nearest of the other side.

    Those that score as little as the last one may have been cut off on the other side, and do not count.
    """
    if not (len(boxes) and len(found_boxes)):
        return 0.0 if len(boxes) == len(found_boxes) else float("inf")
    sides = size.flip(0).repeat(2)
    of_boxes = (boxes[:, None] / sides - found_boxes / sides).abs().amax(-1)
    of_scores = (scores[:, None] - found_scores).abs()
    total = torch.maximum(of_boxes, of_scores) + (labels[:, None] != found_labels)
    counted = scores > scores[-1] + TOLERANCE, found_scores > found_scores[-1] + TOLERANCE
    nearest = torch.cat([total.amin(1)[counted[0]], total.amin(0)[counted[1]]])
    return float(nearest.max()) if len(nearest) else 0.0
