"""A model of transformers teaches as it is: its predictions of every layer, its images, its refusals."""

from __future__ import annotations

import dataclasses
import json
import sys

from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.distill.students.base import StudentStep
from detr_distill.errors import CheckpointError, ConfigError

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from helpers.builders import make_inputs, randomise, small_cfg
from scipy.optimize import linear_sum_assignment

pytest.importorskip("transformers")

import transformers
from helpers.parity import build_reference

LAYERS, SIZE = 3, 64
SMALL = {
    "encoder_hidden_dim": 32, "encoder_in_channels": [16, 24, 32], "encoder_ffn_dim": 48, "encoder_attention_heads": 4,
    "d_model": 32, "num_queries": 9, "decoder_in_channels": [32, 32, 32], "decoder_ffn_dim": 48,
    "decoder_layers": LAYERS, "decoder_attention_heads": 4, "num_labels": 5, "num_denoising": 0,
}  # fmt: skip
STRETCHED = {"do_resize": True, "size": {"height": SIZE, "width": SIZE}, "do_normalize": False}


def resnet():
    return transformers.RTDetrResNetConfig(
        embedding_size=12, hidden_sizes=[12, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic", out_indices=[2, 3, 4]
    )


def build_rtdetr():
    config = transformers.RTDetrV2Config(backbone_config=resnet(), **SMALL)
    return transformers.RTDetrV2ForObjectDetection(config)


def build_dfine():
    config = transformers.DFineConfig(backbone_config=resnet(), **SMALL)
    return transformers.DFineForObjectDetection(config)


def save(model, folder, preprocessing=STRETCHED):
    randomise(model).eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return model


def build_distiller(folder, **keys):
    cfg = small_cfg(
        **{
            "MODEL__META_ARCHITECTURE": "DistillDetector",
            "MODEL__DISTILL__TEACHER__NAME": "TransformersDetector",
            "MODEL__DISTILL__TEACHER__WEIGHTS": str(folder),
            "MODEL__DISTILL__MATCHERS": ["AdaptiveMatcher"],
            "MODEL__DISTILL__LOSSES": ["PredictionLoss"],
            **keys,
        }
    )
    return build_model(cfg).train()


@torch.no_grad()
@pytest.mark.parametrize("build", [build_rtdetr, build_dfine])
def test_every_layer_is_known(build, tmp_path):
    model = save(build(), tmp_path)
    distiller = build_distiller(tmp_path, INPUT__FORMAT="RGB")
    inputs = make_inputs()
    output = distiller.teacher(StudentStep(inputs), frozenset()).output
    images = [F.interpolate(x["image"][None], (SIZE, SIZE), mode="bilinear", antialias=True) for x in inputs]
    expected = model(pixel_values=torch.cat(images) / 255)
    assert output.logits.shape == (LAYERS, 2, 9, 5) and output.boxes.shape == (LAYERS, 2, 9, 4)
    assert expected.logits.std() > 0.01 and expected.pred_boxes.std() > 1e-3
    assert torch.allclose(output.logits[-1], expected.logits, atol=1e-5)
    assert torch.allclose(output.boxes[-1], expected.pred_boxes, atol=1e-5)
    assert not any(torch.allclose(output.logits[k], output.logits[-1], atol=1e-3) for k in range(LAYERS - 1))
    assert ((output.boxes >= 0) & (output.boxes <= 1)).all() or isinstance(model, transformers.DFineForObjectDetection)
    assert not any(module.training for module in distiller.teacher.detector.modules())


@torch.no_grad()
def test_a_detr_sees_padded_and_masked_images(tmp_path):
    statistics = {"do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
    model = save(build_reference("DetrDecoder"), tmp_path, {**statistics, "size": {"shortest_edge": 800}})
    distiller = build_distiller(tmp_path, INPUT__FORMAT="BGR")
    inputs = make_inputs(sizes=((64, 96), (96, 64)))
    output = distiller.teacher(StudentStep(inputs), frozenset()).output
    mean, std = (torch.tensor(statistics[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    pixels, mask = torch.zeros(2, 3, 96, 96), torch.zeros(2, 96, 96, dtype=torch.long)
    for index, entry in enumerate(inputs):
        height, width = entry["image"].shape[1:]
        pixels[index, :, :height, :width] = (entry["image"].flip(0) / 255 - mean) / std
        mask[index, :height, :width] = 1
    expected = model(pixel_values=pixels, pixel_mask=mask)
    assert output.num_layers == LAYERS and output.activation == "softmax"
    assert torch.allclose(output.logits[-1], expected.logits, atol=1e-4)
    assert torch.allclose(output.boxes[-1], expected.pred_boxes, atol=1e-5)


def test_it_teaches_a_step_and_stays_out_of_the_student(tmp_path):
    save(build_rtdetr(), tmp_path)
    distiller = build_distiller(tmp_path)
    losses = distiller(make_inputs())
    assert any(name.startswith("loss_distill_class") for name in losses)
    sum(losses.values()).backward()
    assert all(p.grad is None for p in distiller.teacher.detector.parameters())
    assert not [name for name in distiller.state_dict() if name.startswith("teacher")]


def test_classes_are_paired_by_the_folders_names(tmp_path):
    save(build_rtdetr(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {str(index): str(9 - index) for index in range(5)}
    config["label2id"] = {name: int(index) for index, name in config["id2label"].items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    keys = {"DATASETS__TRAIN": ("digits_train",), "MODEL__DETR__NUM_CLASSES": 10}
    classes = build_distiller(tmp_path, **keys).teacher.classes
    assert classes.student == (5, 6, 7, 8, 9) and classes.teacher == (4, 3, 2, 1, 0)


@pytest.mark.parametrize(
    "keys",
    [
        {"MODEL__DISTILL__MATCHERS": ["AdaptiveMatcher", "FixedMatcher"]},
        {"MODEL__DISTILL__LOSSES": ["PredictionLoss", "AttentionLoss"]},
    ],
)
def test_what_a_detr_of_the_library_cannot_give_is_refused(tmp_path, keys):
    save(build_reference("DetrDecoder"), tmp_path)
    with pytest.raises(ConfigError, match=r"DetrForObjectDetection.*Remove"):
        build_distiller(tmp_path, **keys)


@pytest.mark.parametrize("build", [build_rtdetr, build_dfine])
def test_its_queries_and_maps_are_those_of_its_decoder(build, tmp_path):
    """Decoded alone, its own queries give what it gives; its assignment is that of the library's matcher."""
    save(build(), tmp_path)
    distiller = build_distiller(tmp_path, MODEL__DISTILL__MATCHERS=["FixedMatcher"])
    inputs, teacher = make_inputs(), distiller.teacher
    knowledge = teacher(StudentStep(inputs, ground_truth=read_ground_truth(inputs, "cpu")), frozenset())
    again = knowledge.decode(dataclasses.replace(knowledge.queries, name="again"))
    assert torch.allclose(again.logits, knowledge.output.logits, atol=1e-5)
    assert torch.allclose(again.boxes, knowledge.output.boxes, atol=1e-5)
    assert {name: values.shape[1] for name, values in knowledge.maps.items()} == teacher.map_channels
    assert knowledge.output.hidden.shape == (LAYERS, 2, 9, teacher.hidden_width)
    outputs = {"logits": knowledge.output.logits[-1], "pred_boxes": knowledge.output.boxes[-1]}
    truth = knowledge.ground_truth
    labels = [
        {"class_labels": truth.labels[image, :count], "boxes": truth.boxes[image, :count]}
        for image, count in enumerate(truth.counts)
    ]
    query, target = transformers.loss.loss_rt_detr.RTDetrHungarianMatcher(teacher.detector.config)(outputs, labels)[1]
    cost = knowledge.matching_cost()[-1, 1, :, : truth.counts[1]]
    rows, columns = linear_sum_assignment(cost.numpy())
    assert rows.tolist() == query.tolist() and columns.tolist() == target.tolist()
    losses = distiller(inputs)
    sum(losses.values()).backward()
    assert "loss_class_fixed" in losses and "loss_distill_box_fixed" in losses


@pytest.mark.parametrize(
    ("file", "content", "error", "message"),
    [
        ("preprocessor_config.json", {"do_normalize": True}, CheckpointError, "image_mean is None; three numbers"),
        (
            "preprocessor_config.json",
            {"image_mean": [0] * 3, "image_std": [0.5]},
            CheckpointError,
            r"image_std is \[0.5\]",
        ),
        ("preprocessor_config.json", [], CheckpointError, "WEIGHTS: .*preprocessor_config.json holds a list"),
        ("config.json", [], CheckpointError, "WEIGHTS: .*config.json holds a list"),
    ],
)
def test_incomplete_settings_are_named(tmp_path, file, content, error, message):
    save(build_rtdetr(), tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(error, match=message):
        build_distiller(tmp_path)


def test_weights_that_are_no_numbers_are_named(tmp_path):
    model = build_rtdetr()
    save(model, tmp_path)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=rf"WEIGHTS {tmp_path}: 1 of \d+ tensors hold NaN"):
        build_distiller(tmp_path)


def test_weights_of_other_classes_are_named(tmp_path):
    save(build_reference("DetrDecoder"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {str(index): f"LABEL_{index}" for index in range(7)}
    config["label2id"] = {name: int(index) for index, name in config["id2label"].items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"class_labels_classifier.weight \(6, 32\) instead of \(8, 32\)"):
        build_distiller(tmp_path)


def test_an_empty_folder_name_is_called_empty():
    with pytest.raises(ConfigError, match=r"TEACHER.WEIGHTS is empty"):
        build_distiller("")


def test_folders_that_cannot_be_used_are_named(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"WEIGHTS .*none: there is no such folder that holds config.json"):
        build_distiller(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"PekingU/rtdetr_r50vd.* names of the hub are not downloaded here"):
        build_distiller("PekingU/rtdetr_r50vd")
    save(build_rtdetr(), tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"preprocessor_config.json"):
        build_distiller(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        build_distiller(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="of type 'bert'"):
        build_distiller(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="pip install transformers"):
        build_distiller(tmp_path)
