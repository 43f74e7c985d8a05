"""What a configuration may hold, where it comes from, and what its values may be."""

from ..moved import renamed
from .defaults import CLASS_NODES, add_detr_distill_config, detector_name, num_classes_key

__all__ = ["CLASS_NODES", "add_detr_distill_config", "detector_name", "num_classes_key"]

__getattr__ = renamed(__name__, {"count_classes": "num_classes_key"})
