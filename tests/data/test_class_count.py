"""NUM_CLASSES 0: as many as the training set has."""

import json

from detr_distill.checkpoint import save_weights
from detr_distill.config.build import build_config
from detr_distill.data import read_configuration
from detr_distill.detr.build import build_parts
from detr_distill.errors import ConfigError, DataError

import cv2
import numpy as np
import pytest
import torch

UNKNOWN = ["MODEL.META_ARCHITECTURE", "DetrDetector", "MODEL.DETR.NUM_CLASSES", "0"]
DETECTORS = {
    "DetrDetector": "MODEL.DETR.NUM_CLASSES",
    "FCOS": "MODEL.RETINANET.NUM_CLASSES",
    "GeneralizedRCNN": "MODEL.ROI_HEADS.NUM_CLASSES",
}


def registered(folder, *names):
    """Overrides that register a set of these classes in COCO's format, and train on it."""
    categories = [{"id": 3 * number, "name": name} for number, name in enumerate(names, 1)]
    file = folder / "instances.json"
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    entry = json.dumps([[f"counted_{folder.name}", str(file), str(folder)]])
    return ["DATASETS.REGISTER", entry, "DATASETS.TRAIN", f"('counted_{folder.name}',)"]


@pytest.mark.parametrize(("detector", "key"), DETECTORS.items())
def test_it_is_the_training_set_s(tmp_path, detector, key):
    words = ["MODEL.META_ARCHITECTURE", detector, *registered(tmp_path, "a", "b", "c")]
    for given, expected in (("0", 3), ("7", 7)):
        cfg = read_configuration("", [*words, key, given])
        node, _, name = key.removeprefix("MODEL.").partition(".")
        assert cfg.MODEL[node][name] == expected


def test_pascal_voc_tells_it_too(tmp_path):
    (tmp_path / "a.xml").write_text(
        "<annotation><filename>a.jpg</filename><size><width>9</width><height>9</height></size>"
        "<object><name>cell</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object>"
        "</annotation>"
    )
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((9, 9, 3), np.uint8))
    entry = json.dumps([["counted_voc", str(tmp_path), str(tmp_path)]])
    words = ["DATASETS.REGISTER", entry, "DATASETS.TRAIN", "('counted_voc',)", *UNKNOWN]
    assert read_configuration("", words).MODEL.DETR.NUM_CLASSES == 1


def test_a_checkpoint_tells_it_where_the_set_is_elsewhere(tmp_path):
    save_weights({"weight": torch.ones(1)}, tmp_path / "teacher.pth", ("cat", "dog"))
    words = [*UNKNOWN, "DATASETS.TRAIN", "('on_another_machine',)"]
    assert read_configuration("", words, weights=str(tmp_path / "teacher.pth")).MODEL.DETR.NUM_CLASSES == 2
    with pytest.raises(DataError, match=r"MODEL\.DETR\.NUM_CLASSES is 0.*on_another_machine.*give the number"):
        read_configuration("", words)


def test_nothing_is_built_of_no_class():
    with pytest.raises(ConfigError, match=r"MODEL\.DETR\.NUM_CLASSES is 0.*read_configuration"):
        build_parts(build_config("", UNKNOWN))


def test_the_file_that_is_evaluated_tells_it(tmp_path):
    """Named by the configuration, which is not read before."""
    save_weights({"weight": torch.ones(1)}, tmp_path / "student.pth", ("cat", "dog", "owl"))
    words = [*UNKNOWN, "DATASETS.TRAIN", "('on_another_machine',)", "MODEL.WEIGHTS", str(tmp_path / "student.pth")]
    assert read_configuration("", words, weights=lambda cfg: cfg.MODEL.WEIGHTS).MODEL.DETR.NUM_CLASSES == 3
