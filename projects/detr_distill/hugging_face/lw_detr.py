"""LW-DETR and RF-DETR of transformers, run in two halves.

Letters: B images, L decoder layers, Q queries.
"""

from __future__ import annotations

import contextlib
from typing import Any

from ..structures import DecoderOutput, ImageBatch, QueryGroup, one_layer
from .detr import DetrNetwork, own_queries
from .halves import Decoded, Halfway, MakeGroups, as_memory, split_queries
from .listening import answered


class LwDetrNetwork(DetrNetwork):
    """LW-DETR and RF-DETR: Group DETR's groups stand one after the other on the query axis.

    Each is matched and learns for itself, and all together weigh as one does [C]. The backbone ends in the maps that
    the decoder reads, so that the memory is the levels.
    """

    def __init__(self, detector: Any):
        super().__init__(detector)
        for name, parameter in detector.named_parameters():
            if name.endswith("mask_token"):  # of the backbone's own pre-training; nothing here reads it
                parameter.requires_grad_(False)

    @property
    def stretches(self) -> bool:
        return True

    @property
    def size_multiple(self) -> int:
        """The side of its windows, all of which are of one size."""
        backbone = self.config.backbone_config
        windows = backbone.num_windows if self._has_one_level else backbone.num_windows_side
        return backbone.patch_size * windows

    @property
    def level_channels(self) -> list[int]:
        return [self.width] * (1 if self._has_one_level else len(self.config.projector_scale_factors))

    @property
    def _encoder(self) -> None:
        return None

    def start(self, images: ImageBatch) -> Halfway:
        """See the base class."""
        features = self.core.backbone(images.tensor, self._visible(images))
        pairs = [features] if self._has_one_level else features
        return Halfway(images, [source for source, _ in pairs], [mask for _, mask in pairs])

    def _enter_at(self, half: Halfway, stack: contextlib.ExitStack) -> None:
        pairs = list(zip(half.maps, half.features, strict=True))
        stack.enter_context(answered(self.core.backbone, pairs[0] if self._has_one_level else pairs))

    @property
    def _has_one_level(self) -> bool:
        """RF-DETR's backbone gives one map, and not a list of them."""
        return self.config.model_type == "rf_detr"

    def _decoded(self, half: Halfway, output: DecoderOutput, kept: dict[str, Any], make_groups: MakeGroups) -> Decoded:
        queries = self.config.num_queries
        count = output.logits.shape[2] // queries
        images = output.logits.shape[1]
        own = own_queries(output.logits, images, queries)
        names = ["own", *(f"group{number}" for number in range(1, count))]
        groups = [QueryGroup(name, own.content, own.position, loss_weight=1 / count) for name in names]
        made = make_groups(groups[0])
        assert len(made) == 1, "it decodes no queries of others"
        logits, boxes = kept["predictions"][7:9]
        candidates = one_layer(logits, boxes, "sigmoid")
        encoders = split_queries(candidates, [queries] * count)
        outputs = split_queries(output, [queries] * count)
        return Decoded(
            groups=groups,
            outputs=dict(zip(names, outputs, strict=True)),
            memory=as_memory(half.maps),
            encoder=dict(zip(names, encoders, strict=True)),
        )
