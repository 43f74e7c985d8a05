"""Folders of predictions as earlier versions wrote them."""

from __future__ import annotations

import json
from pathlib import Path

from detr_distill.data.predictions.description import DESCRIPTION

import safetensors.torch


def forget_content(folder: Path) -> None:
    """Takes away what a store of an earlier version lacks: settings, hashes, and what images hold."""
    described = json.loads((folder / DESCRIPTION).read_text())
    del described["dataset"], described["settings"]
    (folder / DESCRIPTION).write_text(json.dumps(described))
    for part in folder.glob("part-*.safetensors"):
        with safetensors.safe_open(part, "pt") as file:
            found = [image[:4] for image in json.loads(file.metadata()["images"])]
        tensors = safetensors.torch.load(part.read_bytes())
        part.write_bytes(safetensors.torch.save(tensors, {"images": json.dumps(found)}))
