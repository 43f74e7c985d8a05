"""Checkpoints of transformers and of the authors' code become weights and a configuration that fit each other."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re

from detr_distill.checkpoint.importing import import_checkpoint
from detr_distill.checkpoint.importing.names_official import rename_official
from detr_distill.checkpoint.importing.renaming import split_packed
from detr_distill.checkpoint.importing.settings import coco_names_by_id
from detr_distill.checkpoint.strict import load_strict
from detr_distill.detr.attention import MultiHeadAttention
from detr_distill.distill.classes import match_classes
from detr_distill.engine.configuration import build_config
from detr_distill.errors import CheckpointError, ConfigError

import pytest
import torch
import yaml
from builders import ROOT, make_inputs, randomise, small_cfg
from detectron2.modeling import build_model
from safetensors.torch import load_file

pytest.importorskip("transformers")

from parity import (
    DEFORMABLE_VARIANTS,
    FAMILIES,
    OFFICIAL_RESNET,
    build_deformable_reference,
    build_reference,
    to_official,
)

SPECIFICATION = importlib.util.spec_from_file_location("import_checkpoint", ROOT / "tools" / "import_checkpoint.py")
COMMAND = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(COMMAND)

MODELS = {
    **{family: lambda family=family: build_reference(family) for family in FAMILIES},
    **{f"Deformable_{v}": lambda v=v: build_deformable_reference(v) for v in DEFORMABLE_VARIANTS},
}


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
    memory = model.encode(model.backbone(images.tensor), images)
    output = model.decode(memory, [model.queries(memory)])["own"]
    return images, output.logits[-1], output.boxes[-1]


@pytest.fixture(scope="module")
def detr_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detr")
    build_reference("DetrDecoder").save_pretrained(folder)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_a_transformers_folder_gives_the_same_outputs(name, tmp_path):
    reference = MODELS[name]()
    reference.save_pretrained(tmp_path / "folder")
    imported = import_checkpoint("transformers", tmp_path / "folder")
    images, logits, boxes = last_layer(build_imported(imported, tmp_path))
    expected = reference(pixel_values=images.tensor, pixel_mask=(~images.mask).long())
    assert expected.logits.std() > 0.01 and expected.pred_boxes.std() > 0.01, "a constant output would prove nothing"
    assert (logits - expected.logits).abs().max() < 1e-4
    assert (boxes - expected.pred_boxes).abs().max() < 1e-4


def official_checkpoint(name: str, tmp_path, **arguments) -> tuple[str, dict]:
    """A random detector of ours in the authors' form: its family, and its weights under our names."""
    family = FAMILIES[name][2] if name in FAMILIES else "deformable_detr"
    MODELS[name]().save_pretrained(tmp_path / "shape")  # for a configuration of the right shape alone
    shape = import_checkpoint("transformers", tmp_path / "shape")
    weights = randomise(build_imported(shape, tmp_path), seed=3).state_dict()
    stored = argparse.Namespace(nheads=4, num_queries=9, with_box_refine=name.endswith(("refinement", "stage")))
    vars(stored).update(arguments)
    torch.save({"model": to_official(weights, family), "args": stored, "epoch": 49}, tmp_path / "official.pth")
    return family, weights


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


# --- what cannot be imported ---


def test_different_tensors_are_not_joined():
    weights = {
        "bbox_embed.layers.0.bias": torch.zeros(2),
        "transformer.decoder.bbox_embed.layers.0.bias": torch.ones(2),
    }
    with pytest.raises(CheckpointError, match="two different tensors for decoder.heads.box_head.layers.0.bias"):
        rename_official(weights, "dab_detr")


def test_a_checkpoint_of_another_family_is_refused(tmp_path, detr_folder):
    official_checkpoint("ConditionalDecoder", tmp_path)
    with pytest.raises(CheckpointError, match="of conditional_detr, not of detr: use --source conditional_detr"):
        import_checkpoint("detr", tmp_path / "official.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        import_checkpoint("detr", detr_folder)
    with pytest.raises(CheckpointError, match="known are transformers"):
        import_checkpoint("yolo", detr_folder)


@pytest.mark.parametrize("source", ["detr", "dino", "detrex"])
def test_a_file_of_transformers_is_recognised(detr_folder, source):
    file = detr_folder / "model.safetensors"
    with pytest.raises(CheckpointError, match=f"{file} .* transformers, not of {source}: .*transformers with the fold"):
        import_checkpoint(source, file)


@pytest.mark.parametrize("source", ["transformers", "detr", "detrex"])
@pytest.mark.parametrize("prefix", ["", "student."])
def test_a_checkpoint_of_this_project_is_recognised(detr_folder, tmp_path, source, prefix):
    weights = import_checkpoint("transformers", detr_folder).weights
    file = tmp_path / "pytorch_model.bin"
    torch.save({f"{prefix}{name}": value for name, value in weights.items()}, file)
    (tmp_path / "config.json").write_text((detr_folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match="has this project's own names.*as MODEL.WEIGHTS or"):
        import_checkpoint(source, tmp_path if source == "transformers" else file)


def test_foreign_tensors_are_listed(tmp_path):
    official_checkpoint("DetrDecoder", tmp_path)
    checkpoint = torch.load(tmp_path / "official.pth", weights_only=False)
    checkpoint["model"]["mask_head.lay1.weight"] = torch.zeros(1)
    del checkpoint["model"]["bbox_embed.layers.0.bias"]
    checkpoint["model"]["transformer.encoder.layers.1.norm1.weight"] = torch.zeros(7)
    torch.save(checkpoint, tmp_path / "official.pth")
    with pytest.raises(CheckpointError) as error:
        import_checkpoint("detr", tmp_path / "official.pth")
    for part in ("mask_head.lay1.weight", "decoder.heads.box_head.layers.0.bias", r"(7,) instead of (32,)"):
        assert part in str(error.value)
    torch.save({"model": {"layer.weight": torch.zeros(2, 2)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="layer.weight"):
        import_checkpoint("detr", tmp_path / "other.pth")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "rt_detr"}, "of type 'rt_detr'"),
        ({"position_embedding_type": "learned"}, "position_embedding_type is 'learned'"),
        ({"decoder_attention_heads": 2}, "decoder_attention_heads is 2"),
    ],
)
def test_parts_that_do_not_exist_here_are_named(detr_folder, tmp_path, change, message):
    config = json.loads((detr_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint("transformers", tmp_path)
    with pytest.raises(CheckpointError, match="holds config.json"):
        import_checkpoint("transformers", tmp_path / "empty")


def test_unknown_overrides_are_refused(detr_folder):
    with pytest.raises(ConfigError, match="NUM_HEDAS"):
        import_checkpoint("transformers", detr_folder, ["MODEL.DETR.NUM_HEDAS", "4"])


def test_the_command_writes_weights_and_prints_their_configuration(tmp_path, capsys):
    _, weights = official_checkpoint("DetrDecoder", tmp_path, nheads=8)
    output, config = tmp_path / "out.pth", tmp_path / "new" / "folder" / "out.yaml"
    command = ["--source", "detr", "--weights", str(tmp_path / "official.pth"), "--output", str(output)]
    COMMAND.main([*command, "--config", str(config), "MODEL.DETR.NUM_HEADS", "4", "MODEL.RESNETS.RES5_DILATION", "2"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed == yaml.safe_load(config.read_text())
    assert printed["MODEL"]["DETR"]["NUM_HEADS"] == 4 and printed["MODEL"]["RESNETS"]["RES5_DILATION"] == 2
    assert printed["MODEL"]["DETR"]["NUM_CLASSES"] == 5 and printed["MODEL"]["WEIGHTS"] == str(output)
    model = build_model(build_config(str(config), ["MODEL.DEVICE", "cpu"]))
    load_strict(model, output)
    assert torch.equal(model.decoder.norm.weight, weights["decoder.norm.weight"])
    teacher = {"CONFIG_FILE": str(config), "WEIGHTS": str(output)}
    keys = {f"MODEL__DISTILL__TEACHER__{key}": value for key, value in teacher.items()}
    distiller = build_model(small_cfg(MODEL__META_ARCHITECTURE="DistillDetector", **keys))
    assert torch.equal(distiller.teacher.detector.decoder.norm.weight, weights["decoder.norm.weight"])


def test_the_command_reports_errors_in_words(tmp_path, capsys):
    with pytest.raises(SystemExit):
        COMMAND.main(["--source", "transformers", "--weights", str(tmp_path), "--output", str(tmp_path / "out.pth")])
    assert "config.json" in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"--config": "file/out.yaml"}, "--config .*out.yaml: .*file is no folder that can be written to"),
        ({"--config": "folder"}, "--config .*folder: that is a folder"),
        ({"--output": "file/out.pth"}, "--output .*out.pth: .*file is no folder"),
        ({"--output": "out.onnx"}, "must end in .pth or .safetensors"),
    ],
)
def test_the_command_writes_all_or_nothing(detr_folder, tmp_path, capsys, place, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    places = {"--output": "new/out.pth", "--config": "new/out.yaml", **place}
    command = [word for option, path in places.items() for word in (option, str(tmp_path / path))]
    with pytest.raises(SystemExit):
        COMMAND.main(["--source", "transformers", "--weights", str(detr_folder), *command])
    assert re.search(message, capsys.readouterr().err)
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["file", "folder"]
