"""RT-DETR, RT-DETRv2, D-FINE and DEIMv2 of transformers, run in two halves and with query groups of others.

Letters: B images, L decoder layers, Q queries, N queries of all groups, C width, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ..detr.groups import group_layout
from ..detr.queries.base import PLACE_WIDTHS, QueryForm
from ..structures import DecoderOutput, EdgeDistributions, ImageBatch, QueryGroup, one_layer
from .halves import Decoded, Halfway, MakeGroups, Network, as_memory, split_queries

WITH_DISTRIBUTIONS = ("d_fine", "deimv2")


class RtDetrNetwork(Network):
    """One whose encoder gives maps of all levels, and whose decoder starts at the best of their cells.

    They do not look at a padding mask: images have one size. The library's own loss and denoising group are not used;
    every group beside the network's own queries goes in at the door of its decoder.
    """

    @property
    def stretches(self) -> bool:
        return True

    @property
    def size_multiple(self) -> int:
        return 32

    @property
    def core(self) -> Any:
        return self.detector.model

    @property
    def level_channels(self) -> list[int]:
        return [self.config.encoder_hidden_dim] * len(self.config.encoder_in_channels)

    @property
    def width(self) -> int:
        return self.config.d_model

    @property
    def num_layers(self) -> int:
        return self.config.decoder_layers

    @property
    def edge_bins(self) -> tuple[float, ...]:
        config = self.config
        return (config.max_num_bins, config.up, config.reg_scale) if has_distributions(self.detector) else ()

    @property
    def query_form(self) -> QueryForm:
        content = "learned" if self.config.learn_initial_query else "encoded"
        return QueryForm((self.width, PLACE_WIDTHS["box_logits"]), "box_logits", content)

    @property
    def matching_weights(self) -> dict[str, float]:
        config = self.config
        return {
            "cost_class": config.matcher_class_cost,
            "cost_l1": config.matcher_bbox_cost,
            "cost_giou": config.matcher_giou_cost,
            "focal_alpha": config.matcher_alpha,
            "focal_gamma": config.matcher_gamma,
        }

    def every_layer(self) -> AbstractContextManager[None]:
        return every_layer(self.detector)

    @property
    def denoising_embedding(self) -> nn.Embedding | None:
        return self.core.denoising_class_embed if self.config.num_denoising > 0 else None

    def start(self, images: ImageBatch) -> Halfway:
        """See the base class."""
        pixels = images.tensor
        if self.config.model_type == "deimv2":
            return Halfway(images, list(self.core.conv_encoder(pixels)))
        visible = pixels.new_ones(len(pixels), *pixels.shape[-2:])
        features = self.core.backbone(pixels, visible)
        maps = [project(x) for project, (x, _) in zip(self.core.encoder_input_proj, features, strict=True)]
        return Halfway(images, maps)

    def finish(self, half: Halfway, make_groups: MakeGroups) -> Decoded:
        """See the base class."""
        door = _DecoderDoor(make_groups)
        with (
            _replaced_input(self.core.encoder, half.maps),
            self.unchecked(self.core.encoder),
            door.opened(self.core.decoder),
        ):
            found = self.core(pixel_values=None, inputs_embeds=half.maps[0])
        sizes = [group.content.shape[1] for group in door.groups]
        names = [group.name for group in door.groups]
        outputs, first = self._read(found)
        return Decoded(
            groups=door.groups,
            outputs=dict(zip(names, split_queries(outputs, sizes), strict=True)),
            memory=as_memory(found.encoder_last_hidden_state),
            encoder={"own": one_layer(found.enc_topk_logits, found.enc_topk_bboxes, "sigmoid")},
            decode=lambda group: self._read(door.decode_alone(self.core.decoder, group))[0],
            first={} if first is None else dict(zip(names, split_queries(first, sizes), strict=True)),
        )

    def _read(self, found: Any) -> tuple[DecoderOutput, DecoderOutput | None]:
        """Every layer's predictions for all groups, and those of the head before them."""
        logits, boxes = found.intermediate_logits.transpose(0, 1), found.intermediate_reference_points.transpose(0, 1)
        hidden = found.intermediate_hidden_states
        if not has_distributions(self.detector):
            return DecoderOutput(logits, boxes, hidden.transpose(0, 1), "sigmoid"), None
        # Its layers are on the first axis of the hidden states, and in eval mode the last layer alone predicts.
        edges = EdgeDistributions(
            found.intermediate_predicted_corners.transpose(0, 1).unflatten(-1, (4, -1)),
            found.initial_reference_points.transpose(0, 1),
        )
        if self.core.training:
            boxes = boxes.clamp(0, 1)  # before the losses, as the authors do
        layers, has_first = len(edges.logits), len(logits) > len(edges.logits)
        output = DecoderOutput(logits[-layers:], boxes[-layers:], hidden[-layers:], "sigmoid", edges=edges)
        return output, one_layer(logits[0], boxes[0], "sigmoid") if has_first else None


@contextlib.contextmanager
def every_layer(detector: Any) -> Iterator[None]:
    """D-FINE gives its inner layers' predictions in training alone; what its decoder contains stays in eval mode."""
    decoder = detector.model.decoder
    was_training, decoder.training = decoder.training, has_distributions(detector) or decoder.training
    try:
        yield
    finally:
        decoder.training = was_training


def has_distributions(detector: Any) -> bool:
    """Whether a model predicts distributions of a box's edges, and has a head before its first layer's."""
    return detector.config.model_type in WITH_DISTRIBUTIONS


class _DecoderDoor:
    """Puts query groups beside a network's own in front of its decoder, each out of the others' sight.

    Args:
        make_groups: from the network's own queries to all groups, its own first.

    Attributes:
        groups: of the pass.
    """

    def __init__(self, make_groups: MakeGroups):
        self._make_groups = make_groups
        self.groups: list[QueryGroup] = []
        self._beside: dict[str, Any] = {}

    @contextlib.contextmanager
    def opened(self, decoder: nn.Module) -> Iterator[None]:
        handle = decoder.register_forward_pre_hook(self._add_groups, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def decode_alone(self, decoder: nn.Module, group: QueryGroup) -> Any:
        """What the decoder gives for another group, with all else as in the pass."""
        inputs = {"inputs_embeds": group.content, "reference_points": group.position, "encoder_attention_mask": None}
        return decoder(**{**self._beside, **inputs})

    def _add_groups(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        own = QueryGroup("own", kwargs["inputs_embeds"], kwargs["reference_points"])
        self.groups, self._beside = self._make_groups(own), kwargs
        if len(self.groups) == 1:
            return args, kwargs
        content = torch.cat([group.content.to(own.content.dtype) for group in self.groups], dim=1)
        position = torch.cat([group.position.to(own.position.dtype) for group in self.groups], dim=1)
        mask = _attention_bias(self.groups).to(content.dtype)
        return args, {**kwargs, "inputs_embeds": content, "reference_points": position, "encoder_attention_mask": mask}


def _attention_bias(groups: list[QueryGroup]) -> Tensor:
    """(1 or B, 1, N, N): 0 where a query may look at another, minus infinity where not."""
    layout = group_layout(groups)
    images = max((len(mask) for mask in layout.inner_masks if mask is not None and mask.dim() == 4), default=1)
    bias = groups[0].content.new_full((images, 1, sum(layout.sizes), sum(layout.sizes)), -torch.inf)
    for group, (mask, seen) in enumerate(zip(layout.inner_masks, layout.seen, strict=True)):
        rows = layout.rows(group)
        for other in (group, *seen):
            bias[:, :, rows, layout.rows(other)] = 0
        if mask is not None:
            bias[:, :, rows, rows].masked_fill_(mask, -torch.inf)
    return bias


@contextlib.contextmanager
def _replaced_input(encoder: nn.Module, maps: list[Tensor]) -> Iterator[None]:
    """Within, the encoder reads these maps, whatever it is given; it writes into the list, which is a new one."""
    handle = encoder.register_forward_pre_hook(lambda _, args: (list(maps), *args[1:]))
    try:
        yield
    finally:
        handle.remove()
