"""``MODEL.DETR.DECODER.NAME``: queries that read the tokens."""

from .adamixer import AdaMixerDecoder
from .anchor import AnchorDecoder
from .conditional import ConditionalDecoder
from .dab import DabDecoder
from .dab_deformable import DabDeformableDecoder
from .deformable import DeformableBoxDecoder, DeformableDecoder
from .detr import DetrDecoder
from .dino import DinoDecoder
from .smca import SmcaDecoder

__all__ = [
    "AdaMixerDecoder",
    "AnchorDecoder",
    "ConditionalDecoder",
    "DabDecoder",
    "DabDeformableDecoder",
    "DeformableBoxDecoder",
    "DeformableDecoder",
    "DetrDecoder",
    "DinoDecoder",
    "SmcaDecoder",
]
