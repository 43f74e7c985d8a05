"""Weights of the same network under another library's names, paired tensor by tensor in the order of definition."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor, nn

logger = logging.getLogger(__name__)

_COUNTER = "num_batches_tracked"  # older files lack it, and nothing reads it


def rename_in_order(weights: Mapping[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
    """A classifier's weights under the names of ``network``, which lacks the classifier.

    Two implementations of one network define their layers in the same order, whatever they call them: EfficientNet-Lite
    as its first port has it, MobileNetV2 of torchvision. It is believed only where every tensor of the network finds
    one of the same kind (last part of the name) and shape, and no more than the classifier is left over.

    Returns:
        ``weights`` as they are where a name is known already, or where they are not of this network.
    """
    state = network.state_dict()
    if any(name in state for name in weights):
        return weights
    theirs, ours = ([name for name in names if not name.endswith(_COUNTER)] for names in (weights, state))
    left_over = len(theirs) - len(ours)  # a classifier's weight and bias, or nothing
    pairs = list(zip(theirs, ours, strict=False))
    if left_over not in (0, 2) or not all(_alike(weights[one], one, state[other], other) for one, other in pairs):
        return weights
    logger.info("%d tensors are taken in their order: %s as %s, ..., %s as %s", len(pairs), *pairs[0], *pairs[-1])
    return {our: weights[their] for their, our in pairs}


def _alike(value: Tensor, name: str, other: Tensor, other_name: str) -> bool:
    return value.shape == other.shape and name.rpartition(".")[2] == other_name.rpartition(".")[2]
