"""The embedding of class labels that DN-DETR and DINO keep: for denoising queries, and one for unknown labels."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .family import Family


def divide_label_embedding(weights: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Gives the label embedding to the training group, and DN-DETR's row of unknown labels to the detector's queries.

    It may have more rows than the detector has classes: DINO's is as long as its settings say, and the last row of
    DN-DETR's is content of the detector's own queries, or of nothing where these have learned contents [C].

    Args:
        weights: under our names, the embedding as ``label_enc.weight``; without one nothing changes.
    """
    divided = {name: value for name, value in weights.items() if name != "label_enc.weight"}
    embedding = weights.get("label_enc.weight")
    head = next((value for name, value in weights.items() if name.endswith("class_head.bias")), None)
    if embedding is None or head is None or not family.label_owner:
        return dict(weights)
    divided[f"training_groups.{family.label_owner}.label_embedding.weight"] = embedding[: len(head)]
    if family.unknown_label:
        divided["queries.content.weight"] = embedding[len(head) :]
    return divided
