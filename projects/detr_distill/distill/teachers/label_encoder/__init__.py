"""Teachers that are made from the labels: LGD and SSSD, and LabelEnc."""

from .encoder import LabelEncoder
from .label_map import LabelMapEncoder

__all__ = ["LabelEncoder", "LabelMapEncoder"]
