"""The label encoder's forward against loops over images, objects and cells, written from docs/methods.md ("LGD").

In float64, on sizes that keep every corner exact, so that the two may differ by rounding alone.
"""

from __future__ import annotations

import math

from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.distill.students import StudentStep
from detr_distill.distill.teachers.label_encoder.descriptor import LabelDescriptor
from detr_distill.distill.teachers.label_encoder.encoder import LabelEncoder

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from helpers.builders import randomise

IMAGE = (64, 128)
CELLS = {"fine": (8, 16), "coarse": (3, 5), "unread": (2, 2)}
NUM_CLASSES, CHANNELS, HEADS = 5, 16, 8
OBJECTS = [
    # Edges on cells; beyond the image and over the first; smaller than a cell; inside the first.
    ([[16.0, 8, 80, 48], [-8, 24, 60, 90], [50, 26, 54, 30], [24, 16, 56, 40]], [1, 4, 0, 1]),
    ([], []),
    # Half of the image; a single cell.
    ([[64.0, 0, 128, 64], [88, 16, 94, 22]], [2, 3]),
]


def make_step() -> StudentStep:
    generator = torch.Generator().manual_seed(5)
    inputs = [
        {
            "image": torch.zeros(3, *IMAGE),
            "instances": Instances(
                IMAGE, gt_boxes=Boxes(torch.tensor(boxes).view(-1, 4)), gt_classes=torch.tensor(classes).long()
            ),
        }
        for boxes, classes in OBJECTS
    ]
    maps = {
        name: torch.randn(len(OBJECTS), CHANNELS, *cells, generator=generator, dtype=torch.float64)
        for name, cells in CELLS.items()
    }
    return StudentStep(inputs, maps, IMAGE, ground_truth=read_ground_truth(inputs, "cpu"))


def make_encoder(guide: str, context: bool, class_embedding: int) -> LabelEncoder:
    descriptor = LabelDescriptor(NUM_CLASSES, context, class_embedding, use_masks=False)
    encoder = LabelEncoder(in_features=["fine", "coarse"], channels=CHANNELS, descriptor=descriptor, guide=guide)
    return randomise(encoder.double())


def normalised(values: torch.Tensor) -> torch.Tensor:
    """Over all that is given: of a row a layer normalisation, of an image's map a group normalisation of one group."""
    return (values - values.mean()) / (values.var(unbiased=False) + 1e-5).sqrt()


def embedded(layer, row: torch.Tensor) -> torch.Tensor:
    return normalised(layer.weight @ row + layer.bias).relu()


def transformed(network, row: torch.Tensor) -> torch.Tensor:
    hidden = row
    for layer, width in zip(network.layers, (64, 128, 1024, 512, 256), strict=True):
        hidden = embedded(layer, hidden)
        assert len(hidden) == width
    return row @ (network.matrix.weight @ hidden + network.matrix.bias).view(len(row), len(row))


def convolved(layer, image: torch.Tensor) -> torch.Tensor:
    assert layer.kernel_size == (3, 3)
    return F.conv2d(image.unsqueeze(0), layer.weight, layer.bias, padding=1)[0]


def describe(encoder: LabelEncoder, boxes: list, classes: list, context: bool) -> list[torch.Tensor]:
    """The rows of an image."""
    height, width = IMAGE
    objects = list(zip(boxes, classes, strict=True)) + context * [([0.0, 0, width, height], None)]
    rows = []
    for box, category in objects:
        corners = [2 * min(max(x / size, 0), 1) - 1 for x, size in zip(box, (width, height) * 2, strict=True)]
        if encoder.descriptor.class_embedding is None:
            kind = torch.tensor([1.0 if k == category else -1.0 for k in range(NUM_CLASSES)])
        else:
            kind = encoder.descriptor.class_embedding.weight[NUM_CLASSES if category is None else category].tanh()
        rows.append(torch.cat([torch.tensor(corners), kind]).double())
    return rows


def embed(encoder: LabelEncoder, rows: list[torch.Tensor]) -> torch.Tensor:
    """Label embeddings (N, C) of an image's rows."""
    points = encoder.points
    local = [
        transformed(points.feature_transform, embedded(points.expand, transformed(points.row_transform, row)))
        for row in rows
    ]
    narrow, wide = points.image_layers
    image = torch.stack([embedded(wide, embedded(narrow, row)) for row in local]).max(0).values
    assert len(local[0]) == 64 and narrow.out_features == 128 and len(image) == 1024
    joined = [embedded(points.join, torch.cat([row, image])) for row in local]
    assert len(joined[0]) == 256
    return torch.stack([embedded(encoder.label_projection, row) for row in joined])


def cells_of(box: list[float], cells: tuple[int, int]) -> list[tuple[int, int]]:
    """Those whose index lies between the edges, scaled to the level."""
    left, top, right, bottom = (x * cells[axis] / IMAGE[axis] for x, axis in zip(box, (1, 0, 1, 0), strict=True))
    return [(y, x) for y in range(cells[0]) for x in range(cells[1]) if top <= y <= bottom and left <= x <= right]


def attend(attention, asking: torch.Tensor, answering: torch.Tensor) -> torch.Tensor:
    """Of (N, C) to (N, C), each head by itself."""
    width = CHANNELS // HEADS
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    query, key, value = (
        rows @ weight.T + bias
        for rows, weight, bias in zip((asking, answering, answering), weights, biases, strict=True)
    )
    heads = []
    for start in range(0, CHANNELS, width):
        part = slice(start, start + width)
        heads.append((query[:, part] @ key[:, part].T / math.sqrt(width)).softmax(1) @ value[:, part])
    return attention.out_proj(torch.cat(heads, dim=1))


def taught_map(encoder: LabelEncoder, own: torch.Tensor, boxes: list, classes: list, context: bool) -> torch.Tensor:
    """The teacher's map (C, height, width) for an image's own one."""
    size = (own.shape[1], own.shape[2])
    seen = normalised(convolved(encoder.appearance, own)).relu()
    canvas, background = torch.zeros_like(own), torch.zeros(CHANNELS, 1, 1).double()
    rows = describe(encoder, boxes, classes, context)
    if rows:
        places = [cells_of(box, size) for box in boxes] + context * [cells_of([0.0, 0, IMAGE[1], IMAGE[0]], size)]
        nothing = torch.zeros(CHANNELS).double()
        appearance = torch.stack(
            [sum((seen[:, y, x] for y, x in cells), nothing) / max(1, len(cells)) for cells in places]
        )
        embedding = embed(encoder, rows)
        pair = (appearance, embedding) if encoder.guide == "student" else (embedding, appearance)
        related = attend(encoder.relation, *pair)
        for answer, cells in zip(related[: len(boxes)], places, strict=False):
            for y, x in cells:
                canvas[:, y, x] += encoder.object_projection(answer)
        if context:
            background = encoder.context_projection(related[-1])[:, None, None]
    values = (convolved(encoder.write_convolution, canvas) + background).relu()
    first, second, third = encoder.refinement
    values = normalised(convolved(first, values)).relu()
    values = normalised(convolved(second, values)).relu()
    return normalised(convolved(third, values))


@torch.no_grad()
@pytest.mark.parametrize("class_embedding", [0, 3])
@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize("guide", ["student", "label"])
def test_forward_is_the_written_method(guide, context, class_embedding):
    encoder, step = make_encoder(guide, context, class_embedding), make_step()
    assert not cells_of(OBJECTS[0][0][2], CELLS["fine"]), "one object owns no cell"
    knowledge = encoder(step, frozenset())
    assert list(knowledge.features) == ["fine", "coarse"]
    for name, found in knowledge.features.items():
        for image, (boxes, classes) in enumerate(OBJECTS):
            expected = taught_map(encoder, step.features[name][image], boxes, classes, context)
            torch.testing.assert_close(found[image], expected, rtol=1e-6, atol=1e-6)
    head_reads = knowledge.second_run.features
    assert all(head_reads[name] is found for name, found in knowledge.features.items())
    assert head_reads["unread"] is step.features["unread"], "a map that is not encoded is the student's own"
