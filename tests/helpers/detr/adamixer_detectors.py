"""Small AdaMixers, groups of queries for them, and a memory of flat levels."""

from __future__ import annotations

from detr_distill.structures import Memory, QueryGroup

import torch
from detectron2.modeling import build_model
from helpers.builders import randomise, small_cfg

ADAMIXER = {
    "MODEL__DETR__HIDDEN_DIM": 32,
    "MODEL__DETR__IN_FEATURES": ["stage1", "stage2", "stage3"],
    "MODEL__DETR__NECK__NAME": "AdaMixerNeck",
    "MODEL__DETR__ENCODER__NUM_LAYERS": 0,
    "MODEL__DETR__DECODER__NAME": "AdaMixerDecoder",
    "MODEL__DETR__QUERIES__NAME": "AdaMixerQueries",
    "MODEL__DETR__ADAMIXER__IN_POINTS": 5,
    "MODEL__DETR__ADAMIXER__OUT_POINTS": 6,
}


def build(**keys):
    return randomise(build_model(small_cfg(**{**ADAMIXER, **keys})))


def random_group(name: str, queries: int, seed: int = 0, **options) -> QueryGroup:
    """Content, and boxes that differ from each other, of two images."""
    generator = torch.Generator().manual_seed(seed)
    content = torch.randn(2, queries, 32, generator=generator)
    return QueryGroup(name, content, torch.randn(2, queries, 4, generator=generator), **options)


def flat_memory(shapes, width: int = 8) -> Memory:
    """One image without padding; each level's tokens are its own number."""
    tokens = torch.cat([torch.full((1, h * w, width), float(level)) for level, (h, w) in enumerate(shapes)], dim=1)
    sizes = torch.tensor([(w, h) for h, w in shapes]).float()
    return Memory(tokens, tokens, None, list(shapes), sizes, torch.ones(1, len(shapes), 2))
