"""Which model types are run in two halves, and by what."""

from __future__ import annotations

from .detr import DetrNetwork
from .halves import Network
from .lw_detr import LwDetrNetwork
from .rt_detr import RtDetrNetwork

NETWORKS: dict[str, type[Network]] = {
    **dict.fromkeys(["rt_detr", "rt_detr_v2", "d_fine", "deimv2"], RtDetrNetwork),
    **dict.fromkeys(["detr", "conditional_detr", "dab-detr", "deformable_detr"], DetrNetwork),
    **dict.fromkeys(["lw_detr", "rf_detr"], LwDetrNetwork),
}
