import json
import math

from detr_distill.data.predictions.results_file import ResultsFile
from detr_distill.errors import DataError

import pytest
import torch

SIZES = {7: (40, 20), 8: (10, 10)}
CATEGORIES = {3: 0, 90: 1}


def result(**changes):
    return {"image_id": 7, "category_id": 90, "bbox": [10, 5, 20, 10], "score": 0.75, **changes}


def read(folder, *entries):
    path = folder / "results.json"
    path.write_text(json.dumps(entries))
    return ResultsFile(path, CATEGORIES, SIZES)


def test_detections_become_predictions_of_one_layer(tmp_path):
    found = read(tmp_path, result(), result(category_id=3, score=1.0)).read([8, 7])
    assert found.counts == [0, 2] and found.logits.shape == (1, 2, 2, 2)
    assert torch.allclose(found.boxes[0, 1, 0], torch.tensor([0.5, 0.5, 0.5, 0.5]))
    scores = found.logits.sigmoid()[0, 1]
    assert scores[0, 1].item() == pytest.approx(0.75) and scores[0, 0] < 1e-8
    assert scores[1, 0].item() == pytest.approx(1, abs=1e-5) and math.isfinite(found.logits.max())


def test_scores_of_all_classes_are_soft_targets(tmp_path):
    found = read(tmp_path, result(scores=[0.2, 0.75])).read([7])
    assert torch.allclose(found.logits.sigmoid()[0, 0, 0], torch.tensor([0.2, 0.75]), atol=1e-5)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"image_id": 7}, r"entry 1 lacks 'category_id'"),
        (3, "entry 1 is 3; a result is an object with image_id"),
        ([1, 2], r"entry 1 is \[1, 2\]; a result is an object"),
        (result(image_id=[7]), r"entry 1: there is no image \[7\]"),
        (result(image_id={}), r"entry 1: there is no image \{\}"),
        (result(image_id=7.5), r"entry 1: there is no image 7\.5"),
        (result(category_id=True), "entry 1: there is no category True"),
        (result(category_id=[90]), r"entry 1: there is no category \[90\]"),
        (result(score=10**400), "entry 1: the score is a number of very many digits"),
        (result(bbox=[10**400, 1, 2, 3]), "entry 1: bbox is"),
        (result(bbox=[1e300, 1, 1e308, 3]), "entry 1: bbox is"),
        (result(scores=0.5), r"entry 1: scores are 0\.5; expected 2"),
        (result(scores={"3": 0.1, "90": 0.75}), "entry 1: scores are .*expected 2"),
        (result(scores=[0.2, 1.5]), "entry 1: scores are .*from 0 to 1"),
        (result(scores=[0.75, 0.1]), r"entry 1: the score is 0\.75, and scores have 0\.1 for its category"),
        (result(image_id=9), "entry 1: there is no image 9"),
        (result(category_id=1), "entry 1: there is no category 1. There are: 3, 90"),
        (result(score=1.5), r"entry 1: the score is 1\.5"),
        (result(score=None), "entry 1: the score is None"),
        (result(score=float("nan")), "entry 1: the score is nan"),
        (result(bbox=[1, 2, 3]), r"entry 1: bbox is \[1, 2, 3\]"),
        (result(bbox=[1, 2, -3, 4]), "entry 1: bbox is"),
        (result(scores=[0.1]), r"entry 1: scores are \[0\.1\]; expected 2"),
    ],
)
def test_bad_entries_are_named(tmp_path, entry, words):
    with pytest.raises(DataError, match=words):
        read(tmp_path, result(), entry)


def test_corners_are_recognised(tmp_path):
    with pytest.raises(DataError, match="as x1, y1, x2, y2 do"):
        read(tmp_path, *[result(bbox=[30, 10, 38, 18]) for _ in range(3)])


def test_shares_of_the_image_are_recognised(tmp_path):
    with pytest.raises(DataError, match="fractions of the image's sides"):
        read(tmp_path, *[result(bbox=[0.1, 0.2, 0.3, 0.4]) for _ in range(3)])


@pytest.mark.parametrize(
    ("text", "words"), [("[" * 100_000, "nested too deeply"), ("{", "is not JSON"), ("{}", "holds a dict")]
)
def test_another_kind_of_file(tmp_path, text, words):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        ResultsFile(path, CATEGORIES, SIZES)
    with pytest.raises(DataError, match="cannot be read"):
        ResultsFile(tmp_path / "none.json", CATEGORIES, SIZES)
