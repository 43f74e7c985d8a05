"""What a folder of transformers says of its images, its classes and its weights, however they are kept."""

from __future__ import annotations

import json

from detr_distill.checkpoint.importing import import_checkpoint
from detr_distill.checkpoint.transformers_folder import (
    Preprocessing,
    read_class_names,
    read_preprocessing,
    read_weights,
)

import pytest
import safetensors.torch
import torch

USUAL = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_resize": False}
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


@pytest.mark.parametrize(
    ("changes", "mean", "std"),
    [
        ({}, MEAN, STD),
        ({"rescale_factor": 1 / 127.5}, [value / 2 for value in MEAN], [value / 2 for value in STD]),
        ({"do_normalize": False}, [0.0] * 3, [255.0] * 3),
        ({"do_normalize": False, "image_mean": "0.5"}, [0.0] * 3, [255.0] * 3),
        ({"do_normalize": False, "do_rescale": False}, [0.0] * 3, [1.0] * 3),
        ({"do_rescale": False, "image_mean": MEAN, "image_std": STD}, MEAN, STD),
        ({"image_mean": [0.5] * 3, "image_std": [1, 1, 1]}, [127.5] * 3, [255.0] * 3),
    ],
)
@pytest.mark.parametrize("place", ["preprocessor_config.json", "processor_config.json"])
def test_normalisation_is_told_in_pixels(tmp_path, changes, mean, std, place):
    """As transformers does it: the same pixels come out."""
    content = {**USUAL, **changes}
    (tmp_path / place).write_text(json.dumps({"image_processor": content} if place.startswith("proc") else content))
    found = read_preprocessing(tmp_path, "KEY")
    assert found is not None and found.size is None
    assert found.mean == pytest.approx(mean) and found.std == pytest.approx(std)


def test_the_usual_values_are_exact(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**USUAL, "rescale_factor": 1 / 255}))
    expected = (tuple(255.0 * value for value in USUAL[name]) for name in ("image_mean", "image_std"))
    assert read_preprocessing(tmp_path, "KEY") == Preprocessing(*expected, None)


def test_a_byte_order_mark_is_read_over(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(USUAL), encoding="utf-8-sig")
    assert read_preprocessing(tmp_path, "KEY").mean == pytest.approx(MEAN)


def test_placeholders_are_no_names(tmp_path):
    assert read_class_names({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, tmp_path, "KEY") == ()
    assert read_class_names({"id2label": {"1": "dog", "0": "cat"}}, tmp_path, "KEY") == ("cat", "dog")
    for names in (("LABEL_cat", "LABEL_dog"), ("LABEL_0", "dog")):
        assert read_class_names({"id2label": dict(enumerate(names))}, tmp_path, "KEY") == names
    assert read_class_names({}, tmp_path, "KEY") == ()


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_parts_are_joined(tmp_path, suffix):
    name = {".safetensors": "model", ".bin": "pytorch_model"}[suffix]
    save = {".safetensors": safetensors.torch.save_file, ".bin": torch.save}[suffix]
    save({"a": torch.ones(1)}, tmp_path / f"1{suffix}")
    save({"b": torch.zeros(2), "c": torch.ones(2)}, tmp_path / f"2{suffix}")
    places = {"a": f"1{suffix}", "b": f"2{suffix}", "c": f"2{suffix}"}
    index = tmp_path / f"{name}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    weights, file = read_weights(tmp_path, "KEY")
    assert file == index and {key: len(value) for key, value in weights.items()} == {"a": 1, "b": 2, "c": 2}


def test_an_import_of_parts_and_without_a_preprocessor(detr_folder, tmp_path, caplog):
    """The same weights; images as ImageNet's, which is said."""
    whole = import_checkpoint("transformers", detr_folder)
    assert "no preprocessor_config.json: images are taken to be normalised as ImageNet's" in caplog.text
    (tmp_path / "config.json").write_text((detr_folder / "config.json").read_text())
    tensors = safetensors.torch.load_file(detr_folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"1.safetensors": names[::2], "2.safetensors": names[1::2]}
    for part, held in parts.items():
        safetensors.torch.save_file({name: tensors[name] for name in held}, tmp_path / part)
    places = {name: part for part, held in parts.items() for name in held}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    found = import_checkpoint("transformers", tmp_path)
    assert found.config == whole.config and found.config["MODEL"]["PIXEL_MEAN"] == MEAN
    assert found.weights.keys() == whole.weights.keys()
    assert all(torch.equal(found.weights[name], value) for name, value in whole.weights.items())
