"""``MODEL.DETR.NECK.NAME``: from feature maps to tokens."""

from .adamixer import AdaMixerNeck
from .anchor import AnchorNeck
from .multi_level import MultiLevelNeck
from .single_level import SingleLevelNeck

__all__ = ["AdaMixerNeck", "AnchorNeck", "MultiLevelNeck", "SingleLevelNeck"]
