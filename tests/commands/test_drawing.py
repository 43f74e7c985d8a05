"""Detections drawn into images and videos, by a detector, a folder's or an exported file's."""

import json

from detr_distill.commands import predict
from detr_distill.commands.drawing import draw_media, from_onnx, from_predictor
from detr_distill.commands.drawing.marks import draw
from detr_distill.commands.predictor import load_predictor
from detr_distill.config.build import build_config
from detr_distill.data.augmentation import ResizeShortSide
from detr_distill.data.image import read_image
from detr_distill.engine.model import build_named_model
from detr_distill.hugging_face.folder import save_folder
from detr_distill.visualization.collect import Objects

import cv2
import numpy as np
import onnx
import pytest
import torch
from helpers.builders import ROOT
from helpers.hugging_face import SIZE, build_student
from onnx import TensorProto, helper

CONFIG, WEIGHTS = "configs/digits/conditional_teacher.yaml", str(ROOT / "weights" / "digits_teacher.pth")
NAMES = ("cat", "dog")


def always(image):
    """One dog in the middle of every image."""
    height, width = image.shape[:2]
    box = np.array([[width / 4, height / 4, width / 2, height / 2]])
    return Objects(box, ["dog"], np.array([0.75]))


@pytest.fixture
def media(tmp_path):
    """A picture, one of another format in a folder, and a video of three frames."""
    (tmp_path / "in" / "inner").mkdir(parents=True)
    for name in ("a.png", "inner/b.tif"):
        cv2.imwrite(str(tmp_path / "in" / name), np.full((40, 60, 3), 90, np.uint8))
    writer = cv2.VideoWriter(str(tmp_path / "in" / "c.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for shade in (0, 100, 200):
        writer.write(np.full((48, 64, 3), shade, np.uint8))
    writer.release()
    return tmp_path


def test_images_and_videos_are_written_with_what_was_found(media):
    text = draw_media([str(media / "in")], media / "out", always, NAMES)
    assert text.endswith("5 detections in 5 images and frames of 3 files")
    results = json.loads((media / "out" / "detections.json").read_text())
    assert [(x["image_id"], x["file_name"], x.get("frame")) for x in results] == [
        (1, "a.png", None), (2, "c.mp4", 0), (3, "c.mp4", 1), (4, "c.mp4", 2), (5, "inner/b.png", None),
    ]  # fmt: skip
    assert results[0] | {"bbox": [15, 10, 15, 10], "category_id": 2, "category": "dog", "score": 0.75} == results[0]
    drawn = read_image(str(media / "out" / "a.png"))
    assert drawn.shape == (40, 60, 3) and (drawn[10, 16:29] != 90).any(-1).all() and (drawn[35] == 90).all()
    video = cv2.VideoCapture(str(media / "out" / "c.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and video.get(cv2.CAP_PROP_FPS) == 10


def test_boxes_beyond_the_image_and_names_in_any_script():
    image = np.zeros((30, 50, 3), np.uint8)
    found = Objects(np.array([[-5.0, -5, 90, 90], [48, 2, 47, 1]]), ["猫", "é"], np.array([0.5, 0.25]))
    assert draw(image, found, ("猫", "é")).any() and not image.any()


def test_the_detections_are_those_of_the_detector(tiny_digits):
    from detectron2.data import DatasetCatalog

    cfg = build_config(CONFIG, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", WEIGHTS])
    file = DatasetCatalog.get(tiny_digits)[0]["file_name"]
    image = read_image(file, "RGB")
    found = from_predictor(cfg, load_predictor(cfg, WEIGHTS), 0.3)(image)
    detector = build_named_model(cfg).eval()
    detector.load_state_dict(torch.load(WEIGHTS, weights_only=True)["model"], strict=False)
    pixels = torch.from_numpy(read_image(file, cfg.INPUT.FORMAT).transpose(2, 0, 1).copy())
    with torch.no_grad():
        expected = detector([{"image": pixels, "height": image.shape[0], "width": image.shape[1]}])[0]["instances"]
    expected = expected[expected.scores >= 0.3]
    assert len(found.labels) == len(expected) > 0 and found.labels == [str(x) for x in expected.pred_classes.tolist()]
    np.testing.assert_allclose(found.boxes_xyxy, expected.pred_boxes.tensor.numpy(), atol=1e-3)


def test_a_folder_of_transformers_needs_no_configuration(media, capsys):
    save_folder(build_student(media, "rt_detr_v2", MODEL__DETR__NUM_CLASSES=2), media / "model", NAMES)
    words = ["--weights", str(media / "model"), "--images", str(media / "in" / "a.png"), "--score", "0"]
    predict.main([*words, "--draw", str(media / "out"), "MODEL.DEVICE", "cpu"])
    assert "18 detections in 1 images" in capsys.readouterr().out  # 9 queries, 2 classes
    assert SIZE == 64


def test_an_exported_file(tmp_path):
    """The file sees the image padded to multiples of 32, and its boxes are brought back to the image's own size."""
    file = tmp_path / "model.onnx"
    constants = {
        "boxes": np.array([[[8, 4, 16, 8], [0, 0, 1, 1]]], np.float32),
        "scores": np.array([[0.9, 0.1]], np.float32),
        "labels": np.array([[1, 0]]),
    }
    nodes = [
        helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(value))
        for name, value in constants.items()
    ]
    inputs = [
        helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 3, "height", "width"]),
        helper.make_tensor_value_info("sizes", TensorProto.INT64, ["batch", 2]),
    ]
    kinds = {"labels": TensorProto.INT64}
    outputs = [
        helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), value.shape)
        for name, value in constants.items()
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    helper.set_model_props(model, {"names": json.dumps(NAMES)})
    file.write_bytes(model.SerializeToString())
    detect, names = from_onnx(file, ResizeShortSide((20,)), 0.5)
    found = detect(np.zeros((40, 60, 3), np.uint8))  # resized to 20 x 30: twice as large as seen
    assert names == NAMES and found.labels == ["dog"]
    np.testing.assert_allclose(found.boxes_xyxy, [[16, 8, 32, 16]])
