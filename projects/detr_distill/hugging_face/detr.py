"""DETR, Conditional, DAB and Deformable DETR of transformers, run in two halves.

Letters: B images, L decoder layers, Q queries, C width, K classes.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from ..detr.boxes import inverse_sigmoid
from ..structures import DecoderOutput, ImageBatch, QueryGroup, one_layer
from ..structures.levels import split_levels, to_map
from .halves import Decoded, Halfway, MakeGroups, Network, as_memory
from .listening import answered, heard, outputs_kept
from .network import ACTIVATIONS


class DetrNetwork(Network):
    """One that looks at a padding mask, and decodes its own queries alone.

    Every layer's predictions are those that it hands to its loss function, in whose place ours listens. DETR and
    Conditional DETR are read layer by layer: the library's decoder feeds on what it normalises for the losses of inner
    layers (``auxiliary_loss``), which changes the network.
    """

    def __init__(self, detector: Any):
        super().__init__(detector)
        if not self._is_read_by_layer:
            detector.config.auxiliary_loss = True  # so that it makes every layer's predictions

    @property
    def _is_read_by_layer(self) -> bool:
        return self.config.model_type in ("detr", "conditional_detr")

    @property
    def core(self) -> Any:
        return self.detector.model

    @property
    def stretches(self) -> bool:
        return False

    @property
    def projections(self) -> list[nn.Module]:
        """From backbone features to what the encoder reads."""
        is_deformable = self.config.model_type == "deformable_detr"
        return list(self.core.input_proj) if is_deformable else [self.core.input_projection]

    @property
    def level_channels(self) -> list[int]:
        return [self.width] * len(self.projections)

    @property
    def width(self) -> int:
        config = self.config
        return config.hidden_size if config.model_type == "dab-detr" else config.d_model

    @property
    def num_layers(self) -> int:
        return self.config.decoder_layers

    @property
    def matching_weights(self) -> dict[str, float]:
        config = self.config
        return {"cost_class": config.class_cost, "cost_l1": config.bbox_cost, "cost_giou": config.giou_cost}

    def start(self, images: ImageBatch) -> Halfway:
        """See the base class."""
        features = self.core.backbone(images.tensor, self._visible(images))
        # DAB-DETR's backbone gives positions beside.
        pairs = features[0] if self.config.model_type == "dab-detr" else features
        sources = [source for source, _ in pairs]
        return Halfway(images, self._project(sources), features)

    def _project(self, sources: list[Tensor]) -> list[Tensor]:
        """Backbone features to maps; levels beyond them are made of the last, each of the one before."""
        projections = self.projections
        if self.config.model_type != "deformable_detr":
            return [projections[0](sources[-1])]
        maps = [project(source) for project, source in zip(projections, sources, strict=False)]
        for project in projections[len(sources) :]:
            maps.append(project(maps[-1] if len(maps) > len(sources) else sources[-1]))
        return maps

    def finish(self, half: Halfway, make_groups: MakeGroups) -> Decoded:
        """See the base class."""
        kept: dict[str, Any] = {}
        with contextlib.ExitStack() as stack:
            self._enter_at(half, stack)
            stack.enter_context(heard(self.detector, kept))
            stack.enter_context(outputs_kept(self.core, "core", kept))
            encoder = self._encoder
            if encoder is not None:
                stack.enter_context(self.unchecked(encoder))
                stack.enter_context(outputs_kept(encoder, "encoder", kept))
            if self._is_read_by_layer:
                for number, layer in enumerate(self.core.decoder.layers):
                    stack.enter_context(outputs_kept(layer, f"layer{number}", kept))
            self.detector(half.images.tensor, pixel_mask=self._visible(half.images), labels=[])
        return self._decoded(half, self._read(kept), kept, make_groups)

    def _read(self, kept: dict[str, Any]) -> DecoderOutput:
        """Every layer's predictions for all queries."""
        if self._is_read_by_layer:
            return self._read_by_layer(kept)
        hidden = kept["core"].intermediate_hidden_states
        if self.config.model_type == "deformable_detr":
            hidden = hidden.transpose(0, 1)
        logits, boxes = kept["predictions"][5:7]
        return DecoderOutput(logits, boxes, hidden, ACTIVATIONS[self.config.model_type])

    def _read_by_layer(self, kept: dict[str, Any]) -> DecoderOutput:
        detector, found = self.detector, kept["core"]
        inner = [self.core.decoder.layernorm(kept[f"layer{number}"]) for number in range(self.num_layers - 1)]
        hidden = torch.stack([*inner, found.last_hidden_state])
        boxes = detector.bbox_predictor(hidden)
        if self.config.model_type == "conditional_detr":  # counted from the queries' points
            points = inverse_sigmoid(found.reference_points).transpose(0, 1)
            boxes = torch.cat([boxes[..., :2] + points, boxes[..., 2:]], dim=-1)
        logits = detector.class_labels_classifier(hidden)
        return DecoderOutput(logits, boxes.sigmoid(), hidden, ACTIVATIONS[self.config.model_type])

    def _decoded(self, half: Halfway, output: DecoderOutput, kept: dict[str, Any], make_groups: MakeGroups) -> Decoded:
        _, images, queries, _ = output.logits.shape
        groups = make_groups(own_queries(output.logits, images, queries))
        assert len(groups) == 1, "it decodes no queries of others"
        found = kept["core"]
        candidates = found.get("enc_outputs_class")
        encoder = {}
        if candidates is not None:
            encoder["own"] = one_layer(candidates, found.enc_outputs_coord_logits.sigmoid(), "sigmoid")
        shapes = [(values.shape[-2], values.shape[-1]) for values in half.maps]
        tokens = split_levels(kept["encoder"][0], shapes)
        maps = [to_map(part, shape) for part, shape in zip(tokens, shapes, strict=True)]
        return Decoded(groups, {"own": output}, as_memory(maps), encoder, binary_encoder=True)

    @property
    def _encoder(self) -> nn.Module | None:
        return self.core.encoder

    def _enter_at(self, half: Halfway, stack: contextlib.ExitStack) -> None:
        """Has the second half start at the maps, whatever the modules before them are given."""
        stack.enter_context(answered(self.core.backbone, half.features))
        for project, values in zip(self.projections, half.maps, strict=True):
            stack.enter_context(answered(project, values))

    def _visible(self, images: ImageBatch) -> Tensor:
        """(B, height, width) long, 1 on the image and 0 on padding."""
        batch, _, height, width = images.tensor.shape
        if images.mask is not None:
            return (~images.mask).long()
        return torch.ones(batch, height, width, dtype=torch.long, device=images.tensor.device)


def own_queries(reference: Tensor, images: int, queries: int) -> QueryGroup:
    """The network's own queries, of which nothing but their number is known."""
    empty = reference.new_zeros(images, queries, 0)
    return QueryGroup("own", empty, empty)
