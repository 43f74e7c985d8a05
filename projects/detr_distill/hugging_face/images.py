"""Images as detectors of transformers want them, and detectors of ours on such images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..detr import DetrDetector
from ..detr.preprocess import pad_images, pad_to_multiple
from ..structures import DecoderOutput, ImageBatch
from ..structures.transfer import copy_to


def prepare_images(
    batched_inputs: list[dict], mean: Tensor, std: Tensor, size: tuple[int, int] | None, flip_channels: bool
) -> ImageBatch:
    """Normalised images, stretched to one size, or padded and masked.

    Args:
        batched_inputs: detectron2 dicts with ``image`` (3, height, width), 0 to 255. mean, std: (3, 1, 1), of RGB.
        size: (height, width) to which every image is stretched; None: padded to the largest.
        flip_channels: the images are BGR.
    """
    images = [copy_to(entry["image"], mean.device).float() for entry in batched_inputs]
    if flip_channels:
        images = [image.flip(0) for image in images]
    if size is None:
        return pad_images(images, mean, std, 1)
    stretched = torch.stack([stretch(image, size) for image in images])
    return ImageBatch((stretched - mean) / std, None, [size] * len(stretched))


def stretch(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image (3, height, width) in float32 and another size, without its aspect ratio."""
    return F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]


def run_detr(detector: DetrDetector, pixel_values: Tensor, pixel_mask: Tensor | None) -> DecoderOutput:
    """What a DETR of ours gives for images in the library's form.

    Args:
        pixel_values: (B, 3, height, width), normalised RGB. pixel_mask: (B, height, width), 1 on the image and 0 on
            padding; None: no image is padded.
    """
    values = pixel_values.flip(1) if detector.input_format == "BGR" else pixel_values
    visible = torch.ones_like(values[:, 0]) if pixel_mask is None else pixel_mask
    padding = pad_to_multiple(visible, detector.size_divisibility) == 0
    values = pad_to_multiple(values, detector.size_divisibility).masked_fill(padding.unsqueeze(1), 0.0)
    return detector.finish(detector.start_prepared(ImageBatch(values, padding, []))).outputs["own"]
