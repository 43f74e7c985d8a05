"""DETR, Conditional, DAB and Deformable DETR, LW-DETR and RF-DETR of transformers, run in two halves.

Letters: B images, L decoder layers, Q queries, C width, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..detr.boxes import inverse_sigmoid
from ..structures import DecoderOutput, ImageBatch, QueryGroup
from ..structures.levels import split_levels, to_map
from .halves import Decoded, Halfway, MakeGroups, Network, as_memory, one_layer, split_queries
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
            stack.enter_context(_heard(self.detector, kept))
            stack.enter_context(_outputs_kept(self.core, "core", kept))
            encoder = self._encoder
            if encoder is not None:
                stack.enter_context(self.unchecked(encoder))
                stack.enter_context(_outputs_kept(encoder, "encoder", kept))
            if self._is_read_by_layer:
                for number, layer in enumerate(self.core.decoder.layers):
                    stack.enter_context(_outputs_kept(layer, f"layer{number}", kept))
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
        groups = make_groups(_own(output.logits, images, queries))
        assert len(groups) == 1, "it decodes no queries of others"
        found = kept["core"]
        candidates = found.get("enc_outputs_class")
        encoder = {}
        if candidates is not None:
            encoder["own"] = one_layer(candidates, found.enc_outputs_coord_logits.sigmoid())
        shapes = [(values.shape[-2], values.shape[-1]) for values in half.maps]
        tokens = split_levels(kept["encoder"][0], shapes)
        maps = [to_map(part, shape) for part, shape in zip(tokens, shapes, strict=True)]
        return Decoded(groups, {"own": output}, as_memory(maps), encoder, binary_encoder=True)

    @property
    def _encoder(self) -> nn.Module | None:
        return self.core.encoder

    def _enter_at(self, half: Halfway, stack: contextlib.ExitStack) -> None:
        """Has the second half start at the maps, whatever the modules before them are given."""
        stack.enter_context(_answered(self.core.backbone, half.features))
        for project, values in zip(self.projections, half.maps, strict=True):
            stack.enter_context(_answered(project, values))

    def _visible(self, images: ImageBatch) -> Tensor:
        """(B, height, width) long, 1 on the image and 0 on padding."""
        batch, _, height, width = images.tensor.shape
        if images.mask is not None:
            return (~images.mask).long()
        return torch.ones(batch, height, width, dtype=torch.long, device=images.tensor.device)


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
        stack.enter_context(_answered(self.core.backbone, pairs[0] if self._has_one_level else pairs))

    @property
    def _has_one_level(self) -> bool:
        """RF-DETR's backbone gives one map, and not a list of them."""
        return self.config.model_type == "rf_detr"

    def _decoded(self, half: Halfway, output: DecoderOutput, kept: dict[str, Any], make_groups: MakeGroups) -> Decoded:
        queries = self.config.num_queries
        count = output.logits.shape[2] // queries
        images = output.logits.shape[1]
        own = _own(output.logits, images, queries)
        names = ["own", *(f"group{number}" for number in range(1, count))]
        groups = [QueryGroup(name, own.content, own.position, loss_weight=1 / count) for name in names]
        made = make_groups(groups[0])
        assert len(made) == 1, "it decodes no queries of others"
        candidates = one_layer(*kept["predictions"][7:9])
        encoders = split_queries(candidates, [queries] * count)
        outputs = split_queries(output, [queries] * count)
        return Decoded(
            groups=groups,
            outputs=dict(zip(names, outputs, strict=True)),
            memory=as_memory(half.maps),
            encoder=dict(zip(names, encoders, strict=True)),
        )


def _own(reference: Tensor, images: int, queries: int) -> QueryGroup:
    """The network's own queries, of which nothing but their number is known."""
    empty = reference.new_zeros(images, queries, 0)
    return QueryGroup("own", empty, empty)


@contextlib.contextmanager
def _answered(module: nn.Module, value: Any) -> Iterator[None]:
    """Within, a module gives a value that is known already in place of computing one."""
    module.forward = lambda *_, **__: value
    try:
        yield
    finally:
        del module.forward


@contextlib.contextmanager
def _heard(detector: Any, kept: dict[str, Any]) -> Iterator[None]:
    """Within, what a model hands to its loss function is kept as ``predictions``; it has no loss of its own."""

    def listen(*predictions: Any) -> tuple[None, dict, None]:
        kept["predictions"] = predictions
        return None, {}, None

    detector.loss_function = listen
    try:
        yield
    finally:
        del detector._loss_function


@contextlib.contextmanager
def _outputs_kept(module: nn.Module, name: str, kept: dict[str, Any]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _, __, output: kept.update({name: output}))
    try:
        yield
    finally:
        handle.remove()
