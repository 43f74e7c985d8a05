"""Models of transformers, the same in the authors' form, and the detectors that their import gives."""

from __future__ import annotations

import argparse

from detr_distill.checkpoint.importing import import_checkpoint
from detr_distill.checkpoint.strict import load_strict
from detr_distill.config.build import build_config

import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs, randomise
from helpers.parity import DEFORMABLE_VARIANTS, FAMILIES, build_deformable_reference, build_reference, to_official
from helpers.steps import encode_features

MODELS = {
    **{family: lambda family=family: build_reference(family) for family in FAMILIES},
    **{f"Deformable_{v}": lambda v=v: build_deformable_reference(v) for v in DEFORMABLE_VARIANTS},
}
# Of those models, the families whose authors' form is tried.
OFFICIAL_FAMILIES = {name: FAMILIES[name][2] if name in FAMILIES else "deformable_detr" for name in MODELS}


def build_imported(imported, tmp_path):
    """The detector that the printed configuration and the written weights give."""
    (tmp_path / "import.yaml").write_text(imported.yaml())
    cfg = build_config(str(tmp_path / "import.yaml"), ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg).eval()
    torch.save({"model": imported.weights}, tmp_path / "import.pth")
    load_strict(model, tmp_path / "import.pth")
    return model


@torch.no_grad()
def last_layer(model):
    images = model.preprocess(make_inputs(sizes=((90, 130), (120, 64)), counts=(1, 1)))
    memory = encode_features(model, model.backbone(images.tensor), images)
    output = model.decode(memory, [model.queries(memory)])["own"]
    return images, output.logits[-1], output.boxes[-1]


def official_checkpoint(name: str, tmp_path, **arguments) -> tuple[str, dict]:
    """A random detector of ours in the authors' form: its family, and its weights under our names."""
    family = OFFICIAL_FAMILIES[name]
    MODELS[name]().save_pretrained(tmp_path / "shape")  # for a configuration of the right shape alone
    shape = import_checkpoint("transformers", tmp_path / "shape")
    weights = randomise(build_imported(shape, tmp_path), seed=3).state_dict()
    stored = argparse.Namespace(nheads=4, num_queries=9, with_box_refine=name.endswith(("refinement", "stage")))
    vars(stored).update(arguments)
    torch.save({"model": to_official(weights, family), "args": stored, "epoch": 49}, tmp_path / "official.pth")
    return family, weights
