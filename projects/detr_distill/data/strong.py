"""Strong augmentation: what the student sees and its teacher does not. Colours change, nothing moves."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torchvision.transforms import v2

from ..config.keys import Key, declare
from ..config.ranges import SHARE, Range, Words
from ..errors import ConfigError

_GREY = 128  # of erased patches
_JITTERED, _PATCHES, _PATCH_AREA, _SIGMA = 0.8, 3, (0.005, 0.05), (0.1, 2.0)

declare(
    __name__,
    {
        "INPUT.STRONG.IMAGES": Key(
            "none",
            "which training images the student sees in other colours, blurred and with patches erased, while its "
            'teacher sees them plain: `"none"`, `"unlabeled"` or `"all"`',
            Words("none", "unlabeled", "all"),
        ),
        "INPUT.STRONG.COLOR": Key(
            0.4, "brightness, contrast and saturation change by this share, hue by a quarter of it", Range(0, most=1)
        ),
        "INPUT.STRONG.GREY": Key(0.2, "probability of a grey image", SHARE),
        "INPUT.STRONG.BLUR": Key(0.5, "probability of a blurred image", SHARE),
        "INPUT.STRONG.ERASE": Key(0.5, "probability of each of three erased patches, 0.5 to 5 % of the image", SHARE),
    },
)


def check_strong(cfg: CfgNode) -> None:
    """Raises ConfigError where strong augmentation is asked of a mapper that has none."""
    if cfg.INPUT.STRONG.IMAGES != "none" and cfg.INPUT.MAPPER != "detr":
        raise ConfigError(
            f"INPUT.STRONG.IMAGES is '{cfg.INPUT.STRONG.IMAGES}', and INPUT.MAPPER '{cfg.INPUT.MAPPER}' has no strong "
            "augmentation: the student would see plain images. Set INPUT.MAPPER detr, or INPUT.STRONG.IMAGES none."
        )


class StrongAugmentation:
    """Colour jitter, grey, blur and erased patches, drawn from torch's generator.

    The kinds and sizes are those customary in semi-supervised detection [R].

    Args:
        color, grey, blur, erase: see the keys. image_format: order of the channels, "BGR" or "RGB".
    """

    def __init__(self, color: float, grey: float, blur: float, erase: float, image_format: str):
        self._flip = image_format == "BGR"
        jitter = v2.ColorJitter(color, color, color, color / 4)
        patches = [v2.RandomErasing(erase, _PATCH_AREA, value=_GREY) for _ in range(_PATCHES)]
        blurred = v2.RandomApply([v2.GaussianBlur(5, _SIGMA)], blur)
        self._transform = v2.Compose([v2.RandomApply([jitter], _JITTERED), v2.RandomGrayscale(grey), blurred, *patches])

    @classmethod
    def from_config(cls, cfg: CfgNode) -> StrongAugmentation:
        node = cfg.INPUT.STRONG
        return cls(node.COLOR, node.GREY, node.BLUR, node.ERASE, cfg.INPUT.FORMAT)

    def __call__(self, image: Tensor) -> Tensor:
        """(3, height, width) uint8 to a new image of the same kind."""
        channels = image.flip(0) if self._flip else image
        changed: Tensor = self._transform(channels)
        return (changed.flip(0) if self._flip else changed).to(torch.uint8).contiguous()
