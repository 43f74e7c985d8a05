"""Checkpoints of transformers and of the authors' code become weights and a configuration that fit each other."""

from __future__ import annotations

import json
import re

from detr_distill.checkpoint.importing import import_checkpoint
from detr_distill.checkpoint.importing.renaming import split_packed
from detr_distill.checkpoint.importing.settings import coco_names_by_id
from detr_distill.config.build import build_config
from detr_distill.detr.layers.attention import MultiHeadAttention
from detr_distill.distill.classes import match_classes
from detr_distill.hugging_face.as_library import LibraryForm, build_library_model, find_library_form

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers")

from helpers.checkpoint.imported_detectors import MODELS, build_imported, last_layer, official_checkpoint
from helpers.parity import OFFICIAL_RESNET

NAMES = ["ant", "bee", "cat", "dog", "eel"]


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_a_transformers_folder_gives_the_same_outputs(name, tmp_path):
    reference = MODELS[name]()
    reference.save_pretrained(tmp_path / "folder")
    imported = import_checkpoint("transformers", tmp_path / "folder")
    ours = build_imported(imported, tmp_path)
    images, logits, boxes = last_layer(ours)
    expected = reference(pixel_values=images.tensor, pixel_mask=(~images.mask).long())
    assert expected.logits.std() > 0.01 and expected.pred_boxes.std() > 0.01, "a constant output would prove nothing"
    assert (logits - expected.logits).abs().max() < 1e-4
    assert (boxes - expected.pred_boxes).abs().max() < 1e-4
    check_the_way_back(reference, ours, tmp_path)


def check_the_way_back(reference, ours, folder):
    """What was imported leaves again as the library's model that it was, to the last bit."""
    form = find_library_form(build_config(str(folder / "import.yaml"), []), ours)
    assert isinstance(form, LibraryForm), form
    again = build_library_model(form, ours, NAMES)
    assert type(again) is type(reference)
    state = reference.state_dict()
    assert set(again.state_dict()) == set(state)
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    settings, wanted = (model.config.to_dict() for model in (again, reference))
    classes, storage = {"id2label", "label2id", "architectures"}, {"dtype", "disable_custom_kernels"}
    assert {key for key in wanted if settings.get(key, False) != wanted[key]} <= classes | storage | {
        "two_stage_num_proposals"
    }


@pytest.mark.parametrize("name", MODELS)
def test_an_official_checkpoint_comes_back_exactly(name, tmp_path):
    family, weights = official_checkpoint(name, tmp_path)
    imported = import_checkpoint(family, tmp_path / "official.pth")
    assert set(imported.weights) == set(weights)
    assert all(torch.equal(imported.weights[key], value) for key, value in weights.items())
    build_imported(imported, tmp_path)


def test_the_second_list_of_names_is_the_authors_own(tmp_path):
    """torch's own transformer layers have the parameter names of DETR's."""
    official_checkpoint("DetrDecoder", tmp_path)
    names = torch.load(tmp_path / "official.pth", weights_only=False)["model"]
    for part, layer in (("encoder", torch.nn.TransformerEncoderLayer), ("decoder", torch.nn.TransformerDecoderLayer)):
        prefix = f"transformer.{part}.layers.0."
        assert {n.removeprefix(prefix) for n in names if n.startswith(prefix)} == set(layer(32, 4).state_dict())
    others = ("query_embed.weight", "input_proj.weight", "class_embed.bias", "bbox_embed.layers.2.weight")
    assert {*others, "transformer.decoder.norm.weight", "backbone.0.body.layer2.0.downsample.1.running_var"} <= set(
        names
    )


@torch.no_grad()
def test_packed_projections_attend_as_before():
    torch.manual_seed(0)
    packed, ours = torch.nn.MultiheadAttention(16, 4, batch_first=True), MultiHeadAttention(16, 4, 0.0)
    weights = split_packed(packed.state_dict())
    for letter, name in (("q", "query"), ("k", "key"), ("v", "value")):
        getattr(ours, f"{name}_projection").weight.copy_(weights[f"{letter}_proj.weight"])
        getattr(ours, f"{name}_projection").bias.copy_(weights[f"{letter}_proj.bias"])
    ours.output_projection.load_state_dict(packed.out_proj.state_dict())
    query, key, value = torch.randn(3, 2, 5, 16)
    assert torch.allclose(ours(query, key, value)[0], packed(query, key, value)[0], atol=1e-6)


def test_timm_backbones_and_old_files_are_read(detr_folder, tmp_path):
    """The names of the hub's DETR: a timm ResNet, its counters, in pytorch_model.bin."""
    imported = import_checkpoint("transformers", detr_folder)
    weights = {k: v for k, v in load_file(detr_folder / "model.safetensors").items() if "backbone" not in k}
    for name, value in imported.weights.items():
        if name.startswith("backbone."):
            for pattern, replacement in OFFICIAL_RESNET:
                name = re.sub(pattern, replacement, name)
            weights[name.replace("backbone.0.body.", "model.backbone.conv_encoder.model.")] = value
    weights["model.backbone.conv_encoder.model.bn1.num_batches_tracked"] = torch.tensor(3)
    assert "model.backbone.conv_encoder.model.layer1.0.conv1.weight" in weights
    torch.save(weights, tmp_path / "pytorch_model.bin")
    config = json.loads((detr_folder / "config.json").read_text())
    config.pop("backbone_config")
    config.update(dilation=True, id2label={str(i): n for i, n in enumerate(("a", "b", "c", "d", "e"))})
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    again = import_checkpoint("transformers", tmp_path)
    assert set(again.weights) == set(imported.weights)
    assert all(torch.equal(again.weights[key], value) for key, value in imported.weights.items())
    assert again.config["MODEL"]["RESNETS"]["RES5_DILATION"] == 2
    assert again.config["MODEL"]["PIXEL_MEAN"] == [127.5] * 3 and again.config["MODEL"]["PIXEL_STD"] == [63.75] * 3
    assert again.class_names == ("a", "b", "c", "d", "e")


def test_heads_of_91_classes_are_named_by_coco_ids():
    names = coco_names_by_id()
    assert (len(names), names[0], names[1], names[12], names[90]) == (91, "N/A", "person", "N/A", "toothbrush")
    student = [name for name in names if name != "N/A"]
    assert len(match_classes(student, names, 80, 91).teacher) == 80
