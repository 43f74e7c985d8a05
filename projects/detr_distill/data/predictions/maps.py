"""Feature maps of a teacher on disk: one an image, as the image is in its file, and placed where augmentation puts it.

Letters: B images, C channels, N images of a part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...structures.transfer import copy_to

MAP = "map."  # of a map's tensors in a part: its cells (cells of all images, C)
SHAPE, SPAN = ".shape", ".span"  # of each image: (rows, columns); how many of these its pixels cover
MIRRORED = ".mirrored"  # behind the name of a map, that of the mirror image
LARGEST_STRIDE = 1024


@dataclass
class StoredMap:
    """A map of one image.

    Attributes:
        values: (C, rows, columns). span: rows and columns that the image covers, which need not be whole.
    """

    values: Tensor
    span: tuple[float, float]


def cut_maps(values: Tensor, sizes: Sequence[tuple[int, int]]) -> list[StoredMap]:
    """The part of each image of a map of a padded batch.

    Args:
        values: (B, C, rows, columns). sizes: (height, width) of the images in pixels, without padding.
    """
    height, width = (max(pixels) for pixels in zip(*sizes, strict=True))
    strides = _stride(height, values.shape[2]), _stride(width, values.shape[3])
    found = []
    for own, size in zip(values, sizes, strict=True):
        span = size[0] / strides[0], size[1] / strides[1]
        found.append(StoredMap(own[:, : math.ceil(span[0]), : math.ceil(span[1])], span))
    return found


def _stride(pixels: int, cells: int) -> float:
    """Pixels of a cell: a power of two where one gives so many cells, which round up."""
    power = 1
    while power <= LARGEST_STRIDE:
        if -(-pixels // power) == cells:
            return float(power)
        power *= 2
    return pixels / cells


def as_tensors(name: str, maps: Sequence[StoredMap], dtype: torch.dtype) -> dict[str, Tensor]:
    """What a part keeps of a map of its N images."""
    return {
        f"{MAP}{name}": torch.cat([each.values.flatten(1).T for each in maps]).to(dtype),
        f"{MAP}{name}{SHAPE}": torch.tensor([each.values.shape[1:] for each in maps], dtype=torch.int32),
        f"{MAP}{name}{SPAN}": torch.tensor([each.span for each in maps], dtype=torch.float32),
    }


def place_all(
    maps: Mapping[str, Sequence[StoredMap]],
    placements: Sequence[Sequence[float]],
    frame: tuple[int, int],
    device: torch.device,
) -> dict[str, Tensor]:
    """Every map of a batch by :func:`place_maps`; of a flipped image that of its mirror image where there is one."""
    placed = {}
    for name in (name for name in maps if not name.endswith(MIRRORED)):
        mirrored = maps.get(f"{name}{MIRRORED}", ())
        own, places = list(maps[name]), list(placements)
        for image, (x1, y1, x2, y2) in enumerate(placements):
            if mirrored and x1 > x2:
                own[image], places[image] = mirrored[image], (x2, y1, x1, y2)
        placed[name] = place_maps(own, places, frame, device)
    return placed


def place_maps(
    maps: Sequence[StoredMap], placements: Sequence[Sequence[float]], frame: tuple[int, int], device: torch.device
) -> Tensor:
    """The maps of a batch where augmentation has put their images: moved, scaled, flipped and cut.

    A flipped image's map is the image's, flipped, which the network would have made different.

    Args:
        maps: B. placements: of each image, (x, y) of its first and of its opposite corner in the augmented image, in
            pixels. frame: (height, width) of the padded batch, in pixels.

    Returns:
        (B, C, rows, columns) float32; a cell is as large as the smallest of any image, and 0 where no image is.
    """
    values = copy_to(torch.stack([_pad(each.values, maps) for each in maps]), device).float()
    grids, covered = [], []
    for axis in (0, 1):  # of rows, then of columns
        first, last = (torch.tensor([place[index - axis] for place in placements]) for index in (1, 3))
        span = torch.tensor([each.span[axis] for each in maps])
        cell = ((last - first).abs() / span).min().item()
        centres = (torch.arange(max(1, math.ceil(frame[axis] / cell - 1e-6))) + 0.5) * cell
        share = (centres[None] - first[:, None]) / (last - first)[:, None]
        counts = torch.tensor([float(each.values.shape[1 + axis]) for each in maps])[:, None]
        at = (share * span[:, None]).clamp(min=0.5).minimum(counts - 0.5)
        grids.append(2 * at / values.shape[2 + axis] - 1)
        covered.append((share >= 0) & (share <= 1))
    rows, columns = grids
    grid = torch.stack(
        [
            columns[:, None, :].expand(-1, rows.shape[1], -1),
            rows[:, :, None].expand(-1, -1, columns.shape[1]),
        ],
        dim=-1,
    )
    inside = covered[0][:, None, :, None] & covered[1][:, None, None, :]
    sampled = F.grid_sample(values, copy_to(grid, device), mode="bilinear", align_corners=False)
    return sampled * copy_to(inside, device)


def _pad(values: Tensor, maps: Sequence[StoredMap]) -> Tensor:
    """To the rows and columns of the largest map."""
    rows, columns = (max(each.values.shape[axis] for each in maps) for axis in (1, 2))
    return F.pad(values, (0, columns - values.shape[2], 0, rows - values.shape[1]))
