"""A detector from a folder of transformers, and as one: the library reads what was written."""

from __future__ import annotations

import json
import logging

from detr_distill.engine.hooks import FinalFiles
from detr_distill.hugging_face.folder import save_folder

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import make_inputs
from helpers.hugging_face import DETRS, EVERY_KIND, LARGE, SIZE, build_student, student_cfg

transformers = pytest.importorskip("transformers")
NAMES = ["ant", "bee", "cat", "dog", "eel"]


def read_back(folder):
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder, local_files_only=True)
    return model.eval(), transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)


@torch.no_grad()
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_library_reads_what_was_written(kind, tmp_path):
    student = build_student(tmp_path, kind).eval()
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "earlier.txt").write_text("replaced")
    save_folder(student, folder, NAMES)
    assert not (folder / "earlier.txt").exists()
    model, processor = read_back(folder)
    assert list(model.config.id2label.values()) == NAMES and model.config.label2id["dog"] == 3
    image = make_inputs(LARGE)[0]["image"].to(torch.uint8)  # BGR, and the library takes RGB
    started = student.start([{"image": image}])
    if kind not in DETRS:  # their images are resized before they come here
        pixels = processor(images=image.flip(0), return_tensors="pt")["pixel_values"]
        assert torch.allclose(pixels, started.images.tensor, atol=2 / 60), "the library rounds stretched images"
    found, output = model(started.images.tensor), student.finish(started).outputs["own"]
    assert found.logits.std() > 0.01 and found.pred_boxes.std() > 1e-3
    assert torch.allclose(found.logits, output.logits[-1], atol=1e-5)
    assert torch.allclose(found.pred_boxes, output.boxes[-1], atol=1e-5)
    stored = json.loads((folder / "preprocessor_config.json").read_text())
    expected = {"shortest_edge": 96, "longest_edge": 1333} if kind in DETRS else {"height": SIZE, "width": SIZE}
    assert stored["size"] == expected
    assert stored["image_mean"] == pytest.approx([80 / 255] * 3)
    assert not list(tmp_path.glob("student.*"))


@torch.no_grad()
def test_a_student_starts_from_a_folder(tmp_path, caplog):
    """With its own classes it detects as before; with others only the class heads are new."""
    student = build_student(tmp_path, "d_fine").eval()
    folder = tmp_path / "student"
    save_folder(student, folder)
    keys = {
        "MODEL__TRANSFORMERS__CONFIG": "",
        "MODEL__TRANSFORMERS__FOLDER": str(folder),
        "MODEL__TRANSFORMERS__SIZE": [],
    }
    again = build_model(student_cfg(tmp_path, "d_fine", **keys)).eval()
    assert again.size == (SIZE, SIZE) and torch.allclose(again.mean, student.mean)
    inputs = make_inputs()
    first, second = student(inputs), again(inputs)
    assert torch.allclose(first[0]["instances"].scores, second[0]["instances"].scores, atol=1e-6)
    with caplog.at_level(logging.WARNING, "detr_distill"):
        other = build_model(student_cfg(tmp_path, "d_fine", **keys, MODEL__DETR__NUM_CLASSES=3))
    assert "knows 5 classes, and the training set has 3 others" in caplog.text
    old, new = again.model.state_dict(), other.model.state_dict()
    changed = [name for name in new if new[name].shape != old[name].shape or not torch.equal(new[name], old[name])]
    assert changed and all("class_embed" in name or "enc_score_head" in name for name in changed)
    assert other.model.config.num_labels == other.criterion.num_classes == 3


def test_a_folder_stands_beside_the_weights_of_a_finished_run(tmp_path):
    student = build_student(tmp_path, "rt_detr_v2")

    class Checkpointer:
        save_dir, class_names = str(tmp_path), NAMES

    hook = FinalFiles(Checkpointer(), "student_final.pth")
    hook.trainer = type("Trainer", (), {"detector": student})
    hook._save_student()
    assert torch.load(tmp_path / "student_final.pth")["class_names"] == NAMES
    model, _ = read_back(tmp_path / "student_final")
    assert torch.equal(model.class_embed[0].weight, student.model.class_embed[0].weight)
