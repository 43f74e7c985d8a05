"""Folders of transformers: one reader for the import and the teacher."""

from __future__ import annotations

import json

from detr_distill.checkpoint.importing import import_checkpoint
from detr_distill.checkpoint.transformers_folder import open_folder, read_class_names, read_config, read_preprocessing
from detr_distill.checkpoint.transformers_folder import read_weights as read_folder_weights

import torch

from bad_input import Row

KEY = "--weights"
USUAL = {
    "do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255,
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip


def images(**changes):
    def call(folder):
        (folder / "preprocessor_config.json").write_text(json.dumps({**USUAL, **changes}))
        return read_preprocessing(folder, KEY)

    return call


def config(**content):
    def call(folder):
        (folder / "config.json").write_text(json.dumps(content))
        found = read_config(open_folder(folder, KEY), KEY)
        return read_class_names(found, folder, KEY)

    return call


def weights(**files):
    """Files of a folder by their names, dots as underscores twice."""

    def call(folder):
        for name, content in files.items():
            path = folder / name.replace("__", ".")
            torch.save(content, path) if path.suffix == ".bin" else path.write_text(json.dumps(content))
        return read_folder_weights(folder, KEY)

    return call


def imported(**content):
    def call(folder):
        (folder / "config.json").write_text(json.dumps(content))
        return import_checkpoint("transformers", folder)

    return call


INDEX = {"weight_map": {"a": "part-1.bin", "b": "part-2.bin"}}
ROWS = [
    Row("mean_of_255", images(image_mean=[123.7, 116.3, 103.5]), r"image_mean \[123\.7.* the mean is \[3\.154e\+04"),
    Row("std_of_255", images(image_std=[58.4, 57.1, 57.4]), "deviation .* which images do not have"),
    Row("not_rescaled", images(do_rescale=False), "do_rescale False.* which images do not have"),
    Row("rescaled_twice", images(rescale_factor=1 / 255**2), "rescale_factor 1.5.* which images do not have"),
    Row("std_0", images(image_std=[0, 0, 0]), r"image_std \[0, 0, 0\].*deviation \[0, 0, 0\]"),
    Row("std_negative", images(image_std=[-0.2, 0.2, 0.2]), r"image_std \[-0\.2"),
    Row("mean_as_text", images(image_mean="0.5"), "image_mean is '0.5'; three numbers are expected"),
    Row("mean_of_texts", images(image_mean=["0.5"] * 3), "image_mean is .*; three numbers"),
    Row("mean_of_one", images(image_mean=[0.5]), r"image_mean is \[0\.5\]; three numbers"),
    Row("mean_absent", images(image_mean=None), "image_mean is None; three numbers"),
    Row("mean_nan", images(image_mean=[float("nan")] * 3), "image_mean is .*; three numbers"),
    Row("factor_0", images(rescale_factor=0), "rescale_factor is 0; a number above 0"),
    Row("factor_as_text", images(rescale_factor="1/255"), "rescale_factor is '1/255'; a number above 0"),
    Row("switch_as_text", images(do_normalize="false"), "do_normalize is 'false'; true or false is expected"),
    Row("channels_flipped", images(do_flip_channel_order=True), "do_flip_channel_order is true"),
    Row("size_as_text", images(size={"height": "800", "width": 800}), "size is .*; whole numbers of pixels"),
    Row("name_of_the_hub", lambda folder: open_folder("facebook/detr-resnet-50", KEY), "names of the hub are not down"),
    Row("hub_slash", lambda folder: open_folder("facebook/detr/", KEY), "hf download facebook/detr --local-dir"),
    Row(
        "hub_address",
        lambda folder: open_folder("https://huggingface.co/facebook/detr/tree/main", KEY),
        "hf download facebook/detr --local-dir",
    ),
    Row("other_address", lambda folder: open_folder("https://a.org/b/c/d", KEY), "Nothing is downloaded here"),
    Row(
        "no_folder", lambda folder: open_folder(folder / "none", KEY), "there is no such folder that holds config.json"
    ),
    Row("no_config", lambda folder: open_folder(folder, KEY), "holds config.json; this one does not"),
    Row("a_file", lambda folder: open_folder(__file__, KEY), "is a file. Name the folder"),
    Row(
        "another_task", config(architectures=["DetrForSegmentation"]), "of DetrForSegmentation, a model of another task"
    ),
    Row("a_bare_model", config(architectures=["DetrModel"]), "of DetrModel, a model of another task"),
    Row("labels_of_letters", config(id2label={"a": "cat"}), "id2label of config.json is .*a.*is expected"),
    Row("labels_from_1", config(id2label={"1": "cat"}), "id2label of config.json is"),
    Row("labels_listed", config(id2label=["cat"]), "id2label of config.json is"),
    Row("heads_as_text", imported(model_type="detr", encoder_attention_heads="8"), "encoder_attention_heads is '8'"),
    Row("heads_0", imported(model_type="detr", encoder_attention_heads=0), "encoder_attention_heads is 0. Give 1"),
    Row("no_weights", weights(), "holds neither model.safetensors nor pytorch_model.bin"),
    Row(
        "part_missing",
        weights(**{"pytorch_model__bin__index__json": INDEX, "part-1__bin": {"a": torch.ones(1)}}),
        r"names 2 parts, and part-2\.bin is not beside it",
    ),
    Row(
        "part_elsewhere",
        weights(pytorch_model__bin__index__json={"weight_map": {"a": "../x.bin"}}),
        r"\.\./x\.bin is not",
    ),
    Row(
        "tensor_missing",
        weights(
            **{
                "pytorch_model__bin__index__json": INDEX,
                "part-1__bin": {"a": torch.ones(1)},
                "part-2__bin": {"c": torch.ones(1)},
            }
        ),
        "lack 1 of its tensors, first b",
    ),
    Row("index_without_map", weights(pytorch_model__bin__index__json={}), "has no weight_map"),
    Row("nan", weights(pytorch_model__bin={"a": torch.full((2,), float("nan"))}), "1 of 1 tensors hold NaN"),
]
