"""Pictures of tiny random models: the expected size, something on them, the numbers in the right places."""

import importlib.util
from pathlib import Path

import detr_distill  # noqa: F401
from detr_distill.distill.matchers.adaptive import AdaptiveMatcher
from detr_distill.distill.students import student_of
from detr_distill.visualization import Objects, Sample, View, load_samples, pictures, views_of, write_gallery
from detr_distill.visualization.collect import collect_pairs, detect
from detr_distill.visualization.draw import label_box, show_image, spread_labels

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import randomise, small_cfg
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

HEIGHT, WIDTH = 60, 80
TEACHER = {"MODEL__DETR__HIDDEN_DIM": 24, "MODEL__DETR__NUM_QUERIES": 9}


@pytest.fixture(scope="module")
def distiller(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    cfg = small_cfg(**TEACHER)
    (folder / "teacher.yaml").write_text(cfg.dump())
    torch.save({"model": randomise(build_model(cfg), 1).state_dict()}, folder / "teacher.pth")
    cfg = small_cfg(
        MODEL__META_ARCHITECTURE="DistillDetector",
        MODEL__DISTILL__TEACHER__CONFIG_FILE=str(folder / "teacher.yaml"),
        MODEL__DISTILL__TEACHER__WEIGHTS=str(folder / "teacher.pth"),
        INPUT__MIN_SIZE_TEST=48,
    )
    model = build_model(cfg)
    randomise(model.student, 2)
    return cfg, model


@pytest.fixture(scope="module")
def samples(distiller, tmp_path_factory):
    file = tmp_path_factory.mktemp("images") / "noise.png"
    rng = np.random.default_rng(0)
    cv2.imwrite(str(file), rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    boxes = [{"bbox": [8, 6, 30, 20], "bbox_mode": 1, "category_id": 3, "iscrowd": 0}]
    record = {"file_name": str(file), "height": HEIGHT, "width": WIDTH, "image_id": 1}
    return load_samples(distiller[0], [{**record, "annotations": boxes}, {**record, "annotations": []}])


@pytest.fixture
def parts(distiller):
    cfg, model = distiller
    student, teacher = views_of(cfg, model)
    return student, teacher, AdaptiveMatcher(cfg, student_of(model.student), model.teacher)


def test_a_gallery_has_three_pictures_that_are_not_blank(samples, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "DPI", 50)
    student, teacher, matcher = parts
    students = [View("student", student.detector, ()), View("distilled", student.detector, ())]
    # Of an untrained network's many detections one image's are drawn: all their labels are spread apart.
    files = write_gallery(tmp_path, samples, students, teacher, matcher, score=0.5, sure=0.0, most_rows=1)
    assert [file.name for file in files] == ["predictions.png", "pairs.png", "attention.png"]
    for file in files:
        image = cv2.imread(str(file))
        assert image.shape[1] >= 3.5 * pictures.SMALLEST_CELL * pictures.DPI
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 100


def test_a_plain_detector_gets_its_predictions_alone(samples, tmp_path):
    cfg = small_cfg()
    files = write_gallery(tmp_path, samples, views_of(cfg, build_model(cfg)))
    assert [file.name for file in files] == ["predictions.png"]


def test_pairs_are_the_matching_of_least_cost(samples, parts):
    student, teacher, matcher = parts
    rows = collect_pairs(samples[0], student, [teacher], matcher, threshold=0.0, most=99)
    scores = [row["student"].score for row in rows]
    assert len(rows) >= 1 and scores == sorted(scores, reverse=True)
    # The fewer queries of the one side all find a partner among the other's.
    assert len({tuple(row["teacher"].box_xyxy) for row in rows}) == len(rows)
    # A detector matched with itself: every query is its own partner.
    for row in collect_pairs(samples[0], teacher, [View("twin", teacher.detector, ())], matcher, 0.0, most=99):
        np.testing.assert_allclose(row["twin"].box_xyxy, row["teacher"].box_xyxy)


def test_attention_sums_to_one_and_covers_the_image(samples, parts):
    student, teacher, matcher = parts
    query = collect_pairs(samples[0], teacher, [student], matcher, threshold=0.0, most=1)[0]["teacher"]
    assert query.attention.shape == (6, 8)  # 48 x 64 pixels, stride 8
    assert query.attention.sum() == pytest.approx(1, abs=1e-4)
    assert query.span == pytest.approx((WIDTH, HEIGHT))


def test_nothing_is_drawn_below_the_threshold(samples, parts):
    student, teacher, matcher = parts
    assert collect_pairs(samples[0], teacher, [student], matcher, threshold=1.1, most=9) == []
    assert len(detect(student, samples[0], threshold=1.1).labels) == 0
    empty = pictures.attention(samples, [[], []], ["teacher", "student"])
    assert empty.axes[0].texts


def test_detecting_leaves_the_mode_as_it_was(samples, parts):
    student = parts[0]
    student.detector.train()
    detect(student, samples[0], threshold=0.0)
    assert student.detector.training


def test_boxes_are_in_pixels_of_the_original_image(samples):
    np.testing.assert_array_equal(samples[0].truth.boxes_xyxy, [[8, 6, 38, 26]])
    assert samples[0].truth.labels == ["3"]
    assert samples[1].truth.boxes_xyxy.shape == (0, 4)
    assert samples[0].image.shape == (HEIGHT, WIDTH, 3)


def test_labels_of_one_corner_do_not_cover_each_other():
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    show_image(axes, np.zeros((96, 96, 3), np.uint8))
    box = np.array([20.0, 30.0, 60.0, 70.0])
    labels = [label_box(axes, box, f"label {index}", "red") for index in range(3)]
    spread_labels(figure, labels)
    areas = [label.text.get_window_extent() for label in labels]
    assert not any(first.overlaps(second) for i, first in enumerate(areas) for second in areas[:i])


def test_curves_end_at_the_last_value():
    figure = pictures.ap_over_iterations({"student": [(1, 2.0), (2, 3.0)], "distilled": [(1, 5.0)]}, 40.0, "digits_val")
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["teacher: 40.0", "student: 3.0", "distilled: 5.0"]


def test_predictions_without_ground_truth_have_no_column_for_it(samples):
    found = {"detector": [Objects(np.array([[1.0, 1, 9, 9]]), ["x"], np.array([0.9]))]}
    unknown = Sample(samples[0].image, samples[0].entry)
    assert len(pictures.predictions([unknown], found, 0.4).axes) == 1
    assert len(pictures.predictions(samples[:1], found, 0.4).axes) == 2


def test_the_tool_draws_images_of_a_users_model(samples, distiller, tmp_path, capsys):
    path = Path(__file__).parents[2] / "tools" / "visualize.py"
    spec = importlib.util.spec_from_file_location("visualize_tool", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    cfg, model = distiller
    (tmp_path / "cfg.yaml").write_text(cfg.dump())
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    common = ["--config-file", str(tmp_path / "cfg.yaml"), "--output", str(tmp_path / "out")]
    weights = ["--weights", str(tmp_path / "model.pth")]
    images = ["--image", samples[0].entry["file_name"]]
    # The tiny model has 5 classes, the digits 10; no dataset is needed for single images.
    tool.main([*common, *weights, *images, "--sure", "0", "DATASETS.TEST", "()"])
    printed = capsys.readouterr().out.split()
    assert [Path(line).name for line in printed] == ["predictions.png", "pairs.png", "attention.png"]
    with pytest.raises(SystemExit):
        tool.main([*common, *weights, "DATASETS.TEST", "()"])
    assert "DATASETS.TEST is empty" in capsys.readouterr().err


def test_an_average_has_the_students_class_names():
    keys = {"MODEL__META_ARCHITECTURE": "DistillDetector", "MODEL__DISTILL__TEACHER__NAME": "EmaTeacher"}
    cfg = small_cfg(**keys)
    student, teacher = views_of(cfg, build_model(cfg))
    assert teacher.name == "teacher" and teacher.classes == student.classes and not teacher.flip_channels
