"""What makes a small detector an SMCA-DETR or an Anchor DETR: decoders with dense attention maps."""

from __future__ import annotations

SMCA = {"MODEL__DETR__DECODER__NAME": "SmcaDecoder"}
MULTI_SCALE = {
    **SMCA,
    "MODEL__DETR__HIDDEN_DIM": 32,
    "MODEL__DETR__IN_FEATURES": ["stage2", "stage3"],
    "MODEL__DETR__NUM_LEVELS": 3,
    "MODEL__DETR__NECK__NAME": "MultiLevelNeck",
    "MODEL__DETR__ENCODER__NAME": "SmcaEncoder",
    "MODEL__DETR__ENCODER__NUM_LAYERS": 3,
    "MODEL__DETR__SMCA__MULTI_SCALE_LAYERS": [1],
}
ANCHOR = {
    "MODEL__DETR__HIDDEN_DIM": 32,
    "MODEL__DETR__NUM_QUERIES": 6,
    "MODEL__DETR__NECK__NAME": "AnchorNeck",
    "MODEL__DETR__ENCODER__NAME": "AnchorEncoder",
    "MODEL__DETR__DECODER__NAME": "AnchorDecoder",
    "MODEL__DETR__DECODER__POSITION_GAIN": 0.0,
    "MODEL__DETR__QUERIES__NAME": "AnchorPointQueries",
}
STANDARD = {**ANCHOR, "MODEL__DETR__ANCHOR__ATTENTION": "standard"}
