"""What a configuration may hold, where it comes from, and what its values may be."""

from .defaults import CLASS_NODES, add_detr_distill_config, count_classes, detector_name

__all__ = ["CLASS_NODES", "add_detr_distill_config", "count_classes", "detector_name"]
