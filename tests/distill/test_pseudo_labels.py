"""The teacher's detections as objects: the step is that of a batch on which somebody has drawn them."""

from __future__ import annotations

import dataclasses

from detr_distill.detr.boxes import to_corners
from detr_distill.errors import ConfigError

import pytest
import torch
from detectron2.structures import Boxes, Instances
from helpers.builders import make_inputs, without_batch_statistics
from helpers.convolutional import convolutional_distiller, dense_cfg, rcnn_cfg
from helpers.detr.device_solver import solve_as_on_device
from helpers.distill.families import ADAMIXER, CONDITIONAL, DETR, TWO_STAGE, distiller
from helpers.host_reads import host_reads

KEYS = {
    "DISTILL__MATCHERS": [],
    "DISTILL__LOSSES": [],
    "DISTILL__PSEUDO_LABELS__IMAGES": "unlabeled",
    "DISTILL__PSEUDO_LABELS__GOAL": "one",
}
DINO = {"DETR__TRAINING_GROUPS": ["ContrastiveDenoisingQueries"]}
BOXES = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.3, 0.4], [0.5, 0.5, 0.1, 0.1]])
CLASSES = [4, 2, 0]
LABELS, SCORES = torch.tensor(CLASSES), torch.tensor([0.9, 0.6, 0.3])


def batch(drawn):
    """Two images with labels and one without; or the same, which has those of ``drawn``."""
    *labelled, last = make_inputs(((40, 56), (40, 56), (40, 56)), (2, 3, 2))
    del last["instances"]
    if drawn is not None:
        corners = to_corners(BOXES[drawn]) * torch.tensor([56, 40, 56, 40])
        last["instances"] = Instances((40, 56), gt_boxes=Boxes(corners), gt_classes=LABELS[drawn])
    return [*labelled, last]


def sure_of(detector, queries=6):
    """In place of what the teacher saw: three detections in every image, whose scores are SCORES, and noise below."""

    def replace(_, given, knowledge):
        output, images = knowledge.output, len(given[0].batched_inputs)
        logits = torch.full((1, images, queries, 5), -5.0)
        boxes = torch.full((1, images, queries, 4), 0.25)
        for query, (label, score, box) in enumerate(zip(CLASSES, SCORES, BOXES, strict=True)):
            logits[..., query, label], boxes[..., query, :] = score.logit(), box
        output = dataclasses.replace(output, logits=logits, boxes=boxes, activation="sigmoid")
        return dataclasses.replace(knowledge, output=output, counts=None)

    detector.teacher.register_forward_hook(replace)
    return detector


def losses_of(model, inputs):
    without_batch_statistics(model)
    torch.manual_seed(0)
    model.student.loss_normalizer = 10.0  # a running mean of RetinaNet and FCOS
    return {name: value for name, value in model(inputs, iteration=0).items() if "distill" not in name}


def check_equal(found, expected):
    assert found.keys() == expected.keys() and len(found) > 1
    for name, value in found.items():
        assert torch.allclose(value, expected[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize(("threshold", "drawn"), [(0.4, [0, 1]), (0.2, [0, 1, 2]), (0.95, [])])
@pytest.mark.parametrize(
    ("student", "keys"),
    [
        (CONDITIONAL, {"DETR__TRAINING_GROUPS": ["GroupQueries"]}),
        (TWO_STAGE, DINO),
        (ADAMIXER, {}),
        (DETR, {}),
    ],
    ids=["conditional", "dino", "adamixer", "detr"],
)
def test_losses_are_those_of_the_boxes_as_labels(student, keys, threshold, drawn, tmp_path):
    """Two-stage proposals, denoising and other groups, softmax and focal heads."""
    keys = {**KEYS, **keys, "DISTILL__PSEUDO_LABELS__SCORE_THRESHOLD": threshold}
    model = sure_of(distiller(tmp_path, CONDITIONAL, student, unlabeled=1, **keys))
    check_equal(losses_of(model, batch(None)), losses_of(model, batch(drawn)))


@pytest.mark.parametrize("cfg", [dense_cfg("RetinaNet"), dense_cfg("FCOS"), rcnn_cfg()], ids=["retina", "fcos", "rcnn"])
def test_convolutional_students_too(cfg, tmp_path):
    keys = {f"MODEL__{name}": value for name, value in KEYS.items()}
    model = sure_of(convolutional_distiller(cfg, tmp_path, DATALOADER__UNLABELED_PER_BATCH=1, **keys))
    check_equal(losses_of(model, batch(None)), losses_of(model, batch([0, 1])))


def test_distillation_still_knows_which_images_were_labelled(tmp_path):
    keys = {**KEYS, "DISTILL__MATCHERS": ["AdaptiveMatcher"], "DISTILL__LOSSES": ["PredictionLoss"]}
    names = distiller(tmp_path, CONDITIONAL, CONDITIONAL, unlabeled=1, **keys)(batch(None), iteration=0).keys()
    assert {"loss_class", "loss_distill_class_adaptive", "loss_distill_class_adaptive_unlabeled"} <= names


def test_the_teacher_score_is_the_goal(tmp_path):
    """Quality focal loss by hand, on the last layer of the image without labels."""
    model = sure_of(distiller(tmp_path, CONDITIONAL, CONDITIONAL, unlabeled=1, **{**KEYS, **GOAL_SCORE}))
    criterion, seen = model.student.criterion, {}
    plain = criterion.losses

    def keep(supervised):
        seen["own"] = supervised[0]
        return plain(supervised)

    criterion.losses = keep
    total = losses_of(model, batch(None))["loss_class"]
    own = seen["own"]
    expected = 0.0
    for image in range(3):
        wanted = torch.zeros(own.output.logits.shape[2:])
        pairs = own.pairs
        for query, target, weight in zip(
            pairs.query[-1, image], pairs.target[-1, image], pairs.weight[-1, image], strict=True
        ):
            if weight:
                label = own.targets.labels[image, target]
                score = 1.0 if image < 2 else float(SCORES[label == LABELS])
                wanted[query, label] = score
        p = own.output.logits[-1, image].detach().sigmoid()
        alpha = torch.where(wanted > 0, 0.25 * wanted + 0.75 * (1 - wanted), torch.tensor(0.75))
        entropy = -(wanted * p.log() + (1 - wanted) * (1 - p).log())
        expected += float((alpha * (p - wanted).abs() ** 2 * entropy).sum())
    assert float(total.detach()) == pytest.approx(criterion.class_weight * expected / 7, rel=1e-4)


GOAL_SCORE = {"DISTILL__PSEUDO_LABELS__GOAL": "score"}


@pytest.mark.parametrize("classification", ["focal", "softmax"])
def test_a_weight_is_that_of_every_term_of_these_images(classification, tmp_path):
    """Twice the weight adds once more what these images bring; by none of it the others' losses stay."""
    found = {}
    for weight in (0.0, 1.0, 2.0):
        keys = {
            **KEYS,
            "DISTILL__PSEUDO_LABELS__WEIGHT": weight,
            "DETR__LOSS__CLASSIFICATION": classification,
            "DETR__TRAINING_GROUPS": ["GroupQueries"],
        }
        found[weight] = losses_of(
            sure_of(distiller(tmp_path, CONDITIONAL, CONDITIONAL, unlabeled=1, **keys)), batch(None)
        )
    terms = ("loss_box", "loss_giou") if classification == "softmax" else ("loss_class", "loss_box", "loss_giou")
    for term in terms:  # a softmax is divided by the weights of the queries
        for name in (term, f"{term}_group_1", f"{term}_0"):
            low, middle, high = (found[weight][name] for weight in (0.0, 1.0, 2.0))
            assert low > 0 and middle > low * 1.02 and torch.allclose(high - middle, middle - low, rtol=1e-3), name
    plain = losses_of(
        distiller(
            tmp_path,
            CONDITIONAL,
            CONDITIONAL,
            **{**LABELLED, "DETR__LOSS__CLASSIFICATION": classification, "DETR__TRAINING_GROUPS": ["GroupQueries"]},
        ),
        batch(None)[:2],
    )
    assert torch.allclose(found[0.0]["loss_box"] * 7, plain["loss_box"] * 5, rtol=1e-4)


LABELLED = {**KEYS, "DISTILL__PSEUDO_LABELS__IMAGES": "none"}


def test_the_device_is_read_for_their_number_alone(tmp_path, monkeypatch):
    solve_as_on_device(monkeypatch)
    model = sure_of(distiller(tmp_path, CONDITIONAL, CONDITIONAL, unlabeled=1, **KEYS))
    with host_reads() as reads:
        sum(model(batch(None), iteration=0).values()).backward()
    assert len(reads) == 1


def test_their_number_is_recorded(tmp_path):
    model = sure_of(distiller(tmp_path, CONDITIONAL, CONDITIONAL, unlabeled=1, **KEYS))
    losses_of(model, batch(None))
    assert {key: float(value) for key, value in model.pseudo_labels.recorded_values().items()} == {"pseudo_labels": 2.0}
    assert not [name for name in model.state_dict() if "pseudo" in name]


def refuse(words, build):
    with pytest.raises(ConfigError, match=words):
        build()


def test_what_is_refused(tmp_path):
    refuse("UNLABELED_PER_BATCH is 0", lambda: distiller(tmp_path, CONDITIONAL, CONDITIONAL, **KEYS))
    keys = {f"MODEL__{name}": value for name, value in {**KEYS, **GOAL_SCORE}.items()}
    more = {"DATALOADER__UNLABELED_PER_BATCH": 1}
    refuse(
        "GOAL is 'score'.*RetinaNet", lambda: convolutional_distiller(dense_cfg("RetinaNet"), tmp_path, **more, **keys)
    )
    keys["MODEL__DISTILL__TEACHER__NAME"] = "NoTeacher"
    refuse(
        "NoTeacher detects nothing", lambda: convolutional_distiller(dense_cfg("RetinaNet"), tmp_path, **more, **keys)
    )
