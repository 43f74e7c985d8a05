"""Checkpoints that cannot be imported are refused in words."""

from __future__ import annotations

import json

from detr_distill.checkpoint.importing import import_checkpoint
from detr_distill.checkpoint.importing.names_official import rename_official
from detr_distill.errors import CheckpointError, ConfigError

import pytest
import torch

pytest.importorskip("transformers")

from helpers.checkpoint.imported_detectors import official_checkpoint


def test_different_tensors_are_not_joined():
    weights = {
        "bbox_embed.layers.0.bias": torch.zeros(2),
        "transformer.decoder.bbox_embed.layers.0.bias": torch.ones(2),
    }
    with pytest.raises(CheckpointError, match=r"two different tensors for decoder.heads.box_head.layers.0.bias"):
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
    with pytest.raises(CheckpointError, match=r"has this project's own names.*as MODEL.WEIGHTS or"):
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
    with pytest.raises(CheckpointError, match=r"layer.weight"):
        import_checkpoint("detr", tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("change", "message"),
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
    with pytest.raises(CheckpointError, match=r"holds config.json"):
        import_checkpoint("transformers", tmp_path / "empty")


def test_unknown_overrides_are_refused(detr_folder):
    with pytest.raises(ConfigError, match="NUM_HEDAS"):
        import_checkpoint("transformers", detr_folder, ["MODEL.DETR.NUM_HEDAS", "4"])
