"""AdaMixer equals its equations, computed query by query and point by point, on images of odd sizes with padding."""

from __future__ import annotations

import dataclasses
import math

from detr_distill.detr.layers import adamixer
from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.detr.supervision.matchings import Matchings
from detr_distill.structures import ImageBatch, Memory

import pytest
import torch
from helpers.builders import make_inputs
from helpers.detr.adamixer_detectors import build
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import generalized_box_iou

SIZES = ((37, 53), (45, 29))
UNITS = 2.0  # the finest level has stride 2 here and counts as 4: coordinates count half pixels
# In powers of two of sizes, and sampling far outside the image; seen 3e-5.
ROUNDING = 2e-4


def detector(**keys):
    model = build(MODEL__DETR__SIZE_DIVISIBILITY=32, MODEL__DETR__LOSS__L1_BOXES="corners", **keys).eval()
    with torch.no_grad():  # by sizes of powers of two the next stage samples: keep them within the image
        for name, values in model.decoder.named_parameters():
            if "box_head" in name or "sampling_offsets" in name:
                values /= 3
    return model


def normalise(values: Tensor) -> Tensor:
    return (values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt()


def read(level: Tensor, x: float, y: float) -> Tensor:
    """What lies at (x, y), in cells, of a map (C, height, width): cells have their values at their centres."""
    height, width = level.shape[1:]
    left, top = math.floor(x - 0.5), math.floor(y - 0.5)
    value = torch.zeros(len(level))
    for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
        if 0 <= column < width and 0 <= row < height:
            value += level[:, row, column] * (1 - abs(x - 0.5 - column)) * (1 - abs(y - 0.5 - row))
    return value


def sizes_of(position: list[float]) -> tuple[float, float]:
    return 2 ** (position[2] - position[3] / 2), 2 ** (position[2] + position[3] / 2)


def sample(layer, content: Tensor, position: list[float], levels: list[Tensor]) -> Tensor:
    """(G, P, c) of one query."""
    sampling = layer.sampling
    offsets = sampling.sampling_offsets(content).view(sampling.num_groups, sampling.num_points, 3)
    width, height = sizes_of(position)
    found = torch.zeros(sampling.num_groups, sampling.num_points, len(levels[0]) // sampling.num_groups)
    for group in range(sampling.num_groups):
        for point in range(sampling.num_points):
            dx, dy, dz = offsets[group, point].tolist()
            x, y, z = position[0] + dx * width, position[1] + dy * height, position[2] + dz
            places = [math.log2(4 * 2**index) for index in range(len(levels))]
            shares = torch.tensor([-((z - place) ** 2) / 2 for place in places]).softmax(0)
            for index, (share, level) in enumerate(zip(shares, levels, strict=True)):
                own = level.chunk(sampling.num_groups)[group]
                found[group, point] += share * read(own, x / (4 * 2**index), y / (4 * 2**index))
    return found


def mix(layer, content: Tensor, samples: Tensor) -> Tensor:
    mixing, rows = layer.mixing, []
    channels, (out_points, in_points) = samples.shape[-1], mixing.point_shape
    matrices = mixing.matrices(content).view(mixing.num_groups, -1)
    for values, matrix in zip(samples, matrices, strict=True):
        channel, point = matrix[: channels**2].view(channels, channels), matrix[channels**2 :]
        mixed = normalise(values @ channel).relu()
        rows.append(normalise(point.view(out_points, in_points) @ mixed).relu().flatten())
    return content + mixing.output(torch.cat(rows))


def corners_of(position: list[float]) -> Tensor:
    width, height = sizes_of(position)
    x, y = position[:2]
    return torch.tensor([x - width / 2, y - height / 2, x + width / 2, y + height / 2])


def attend(layer, content: Tensor, positions: list[list[float]]) -> Tensor:
    """Self-attention of (Q, C), by the part of each box that another covers."""
    attention = layer.self_attention
    heads, width = attention.num_heads, content.shape[1] // attention.num_heads
    covered = torch.zeros(len(positions), len(positions))
    for i, first in enumerate(map(corners_of, positions)):
        for j, second in enumerate(map(corners_of, positions)):
            low, high = torch.maximum(first[:2], second[:2]), torch.minimum(first[2:], second[2:])
            covered[i, j] = (high - low).clamp(min=0).prod() / (first[2:] - first[:2]).prod()
    query, key, value = (
        part(content).view(-1, heads, width)
        for part in (attention.query_projection, attention.key_projection, attention.value_projection)
    )
    outputs = []
    for head in range(heads):
        scores = query[:, head] @ key[:, head].T / math.sqrt(width)
        scores = scores + layer.intersection_weight[head] * (covered + 1e-7).log()
        outputs.append(scores.softmax(-1) @ value[:, head])
    return attention.output_projection(torch.cat(outputs, dim=1))


def decode_by_hand(model, levels: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Logits (L, Q, K) and boxes (L, Q, 4), (x1, y1, x2, y2) in pixels, of one image of ``size`` (height, width)."""
    height, width = (UNITS * side for side in size)
    content = torch.stack([normalise(row) for row in model.queries.content.weight])
    start = [width / 2, height / 2, math.log2(math.sqrt(width * height)), math.log2(height / width)]
    positions = [list(start) for _ in content]
    logits, boxes = [], []
    for layer, heads in zip(model.decoder.layers, model.decoder.heads, strict=True):
        content = content + torch.stack([adamixer.embed_positions(torch.tensor([[p]]), 32)[0, 0] for p in positions])
        content = layer.self_attention_norm(content + attend(layer, content, positions))
        mixed = [mix(layer, row, sample(layer, row, p, levels)) for row, p in zip(content, positions, strict=True)]
        content = layer.cross_attention_norm(torch.stack(mixed))
        content = layer.feed_forward_norm(content + layer.feed_forward(content))
        logits.append(heads.class_head(content))
        for position, (dx, dy, dz, dr) in zip(positions, heads.box_head(content).tolist(), strict=True):
            scale = 2 ** position[2]
            position[:] = position[0] + dx * scale, position[1] + dy * scale, position[2] + dz, position[3] + dr
        boxes.append(torch.stack([corners_of(position) / UNITS for position in positions]))
    return torch.stack(logits), torch.stack(boxes)


def maps_of(memory: Memory, image: int) -> list[Tensor]:
    levels = memory.tokens[image].split([height * width for height, width in memory.shapes])
    return [cells.T.unflatten(1, shape) for cells, shape in zip(levels, memory.shapes, strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("read_padding", [True, False])
def test_every_stage_equals_loops_on_odd_sizes(read_padding):
    model = detector(MODEL__DETR__ADAMIXER__READ_PADDING=read_padding)
    images = model.preprocess(make_inputs(sizes=SIZES, counts=(1, 1)))
    memory = model.input_projection(model.backbone(images.tensor), images)
    assert memory.mask.any() and memory.tokens[memory.mask].abs().max() > 0.1, "something must lie in the padding"
    output = model.decode(memory, [model.queries(memory)])["own"]
    seen = memory if read_padding else dataclasses.replace(memory, tokens=memory.tokens * ~memory.mask[..., None])
    for image, size in enumerate(SIZES):
        logits, boxes = decode_by_hand(model, maps_of(seen, image), size)
        found = adamixer.to_corners(output.boxes[:, image]) * torch.tensor([*size[::-1], *size[::-1]])
        assert boxes.std(1).min() > 1, "boxes must differ"
        assert (output.logits[:, image] - logits).abs().max() < ROUNDING
        assert (found - boxes).abs().max() < 100 * ROUNDING, "in pixels"


@torch.no_grad()
def test_padding_as_published_is_another_network():
    """The two forms differ by what lies in the padding, and by nothing where there is none."""
    published, ours = detector(MODEL__DETR__ADAMIXER__READ_PADDING=True), detector()
    for sizes, differ in ((SIZES, True), (((32, 64), (32, 64)), False)):
        images = ours.preprocess(make_inputs(sizes=sizes, counts=(1, 1)))
        memory = ours.input_projection(ours.backbone(images.tensor), images)
        first, second = (model.decode(memory, [model.queries(memory)])["own"].logits for model in (published, ours))
        assert ((first - second).abs().max() > 0.01) == differ


@pytest.mark.parametrize("padded", [True, False])
def test_an_object_at_the_border_of_an_odd_image_is_placed_exactly(padded):
    """20 pixels wide, at the right border of 798x1333; whole cells of stride 4 would make it end at 1336."""
    model = detector()
    height, width = (800, 1344) if padded else (798, 1333)
    mask = torch.ones(1, height, width, dtype=torch.bool)
    mask[:, :798, :1333] = False
    shapes = {f"stage{index}": (-(-height // 2**index), -(-width // 2**index)) for index in (1, 2, 3)}
    features = {name: torch.zeros(1, 8, *shape) for name, shape in shapes.items()}
    images = ImageBatch(torch.zeros(1, 3, height, width), mask if padded else None, [(798, 1333)])
    extent = adamixer.image_extent(model.input_projection(features, images))
    assert extent[0, 0].tolist() == pytest.approx([UNITS * 1333, UNITS * 798], abs=1e-3)
    box = torch.tensor([[[1323 / 1333, 788 / 798, 20 / 1333, 20 / 798]]])
    position = adamixer.boxes_to_positions(box, extent)
    expected = [UNITS * 1323, UNITS * 788, math.log2(UNITS * 20), 0.0]
    assert position.flatten().tolist() == pytest.approx(expected, abs=1e-3)
    assert (adamixer.positions_to_boxes(position, extent) - box).abs().max() < 1e-6


@torch.no_grad()
def test_losses_equal_a_loop_over_corners_in_pixels():
    """Cost and loss as published: L1 of corners over the image's exact size, GIoU in pixels."""
    model, inputs = detector(), make_inputs(sizes=SIZES, counts=(2, 3))
    finished = model.finish(model.start(inputs))
    matchings, truth = Matchings(), read_ground_truth(inputs, model.device)
    entries = model.supervise(finished, truth, matchings)
    matchings.solve()
    losses, output = model.losses(entries), finished.outputs["own"]
    node = model.criterion
    for layer, suffix in ((0, "_0"), (1, "")):
        total = {"class": 0.0, "box": 0.0, "giou": 0.0}
        for image, (entry, (height, width)) in enumerate(zip(inputs, SIZES, strict=True)):
            whole = torch.tensor([width, height, width, height])
            gt, labels = entry["instances"].gt_boxes.tensor, entry["instances"].gt_classes
            boxes = adamixer.to_corners(output.boxes[layer, image]) * whole
            scores = output.logits[layer, image].sigmoid()
            positive, negative = 0.25 * (1 - scores) ** 2 * -scores.log(), 0.75 * scores**2 * -(1 - scores).log()
            giou = generalized_box_iou(boxes, gt)
            cost = node.matcher.cost_class * (positive - negative)[:, labels] - node.matcher.cost_giou * giou
            cost += node.matcher.cost_l1 * torch.cdist(boxes / whole, gt / whole, p=1)
            queries, objects = linear_sum_assignment(cost)
            one_hot = torch.zeros_like(scores)
            one_hot[queries, labels[objects]] = 1
            total["class"] += torch.where(one_hot > 0, positive, negative).sum()
            total["box"] += ((boxes[queries] - gt[objects]) / whole).abs().sum()
            total["giou"] += (1 - giou[queries, objects]).sum()
        weights = {"class": node.class_weight, "box": node.l1_weight, "giou": node.giou_weight}
        for name, value in total.items():
            assert losses[f"loss_{name}{suffix}"].item() == pytest.approx(weights[name] * value.item() / 5, rel=1e-4)
