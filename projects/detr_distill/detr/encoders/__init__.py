"""``MODEL.DETR.ENCODER.NAME``: tokens that know of each other."""

from .anchor import AnchorEncoder
from .dab import DabEncoder
from .deformable import DeformableEncoder
from .smca import SmcaEncoder
from .transformer import TransformerEncoder

__all__ = ["AnchorEncoder", "DabEncoder", "DeformableEncoder", "SmcaEncoder", "TransformerEncoder"]
