"""Target-aware feature distillation: quality, masks and loss by hand, and training steps between all kinds of pairs."""

from __future__ import annotations

import math

from detr_distill.detr.boxes import generalized_iou, intersection_over_union
from detr_distill.distill.knowledge import Knowledge
from detr_distill.distill.loss_target_aware import TargetAwareLoss
from detr_distill.distill.schedule import scale_student
from detr_distill.distill.students import StudentOutput
from detr_distill.distill.target_masks import ReadProjection, cell_weights, mask_loss, query_quality, touched_cells
from detr_distill.errors import ConfigError
from detr_distill.pairs import Pairs
from detr_distill.structures import DecoderOutput, Memory, Targets

import pytest
import torch
from builders import make_inputs
from convolutional import dense_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from distill.test_distiller import ReadCounter
from distill.test_mixed_pairs import ADAMIXER, CONDITIONAL, DEFORMABLE, LARGER, distiller, named_sets  # noqa: F401
from torch import nn
from torchvision.ops import box_iou

ALONE = {"DISTILL__LOSSES": ["TargetAwareLoss"], "DISTILL__MATCHERS": []}
READ = {**ALONE, "DISTILL__TARGET_AWARE_LOSS__PROJECTION": "teacher"}
NAME, MASK_NAME = "loss_distill_target_aware", "loss_distill_target_mask"
GRID = [(2, 2)]
# Query 1 has the object: class score 0.64, and a box that covers its right half.
SCORES = [[0.9, 0.1], [0.2, 0.64], [0.5, 0.5]]
BOXES = [[0.5, 0.5, 1.0, 1.0], [0.5, 0.25, 0.25, 0.5], [0.9, 0.9, 0.1, 0.1]]
OBJECT = [0.375, 0.25, 0.5, 0.5]
QUALITY = math.sqrt(0.64 * 0.5)
# Cells of a 2x2 map, row by row, and a hidden state that gives them the logits 0, ln 3, -ln 3 and 0 at width 4.
CELLS = [[0.0, 1.0, 0, 0], [1.0, 0, 0, 0], [-1.0, 0, 0, 0], [0.0, 0, 2, 0]]
HIDDEN = [2 * math.log(3), 0.0, 0, 0]
MASK = [0.5, 0.75, 0.25, 0.5]
WEIGHTS = [QUALITY * m * m for m in MASK]


def teacher_output(activation="sigmoid"):
    """Two layers of one image and three queries; the first layer must not be read."""
    scores = torch.tensor(SCORES)
    nothing = 1 - scores.sum(1, keepdim=True)
    logits = scores.logit() if activation == "sigmoid" else torch.cat([scores, nothing], 1).log()
    hidden = torch.tensor([[9.0] * 4, HIDDEN, [7.0] * 4])
    layers = [torch.stack([torch.full_like(x, 0.5), x])[:, None] for x in (logits, torch.tensor(BOXES), hidden)]
    return DecoderOutput(*layers, activation)


def assigned(query=1, target=0):
    """One pair of the last layer and one of padding, which must not count."""
    rows = torch.tensor([[[0, 2]], [[query, 2]]])
    goals = torch.tensor([[[1, 1]], [[target, 1]]])
    return Pairs(rows, goals, torch.tensor([[[1.0, 0]], [[1.0, 0]]]))


def labelled(label=1):
    boxes = torch.tensor([[OBJECT, [0.0, 0, 0, 0]]])
    return Targets(torch.tensor([[label, 0]]), boxes, torch.tensor([[True, False]]), [1])


def memory(tokens, shapes=GRID, mask=None):
    return Memory(tokens, torch.zeros_like(tokens), mask, shapes)


def knowledge(tokens=None, shapes=GRID, mask=None, targets=None, **changes):
    tokens = torch.tensor([CELLS]) if tokens is None else tokens
    values = {"output": teacher_output(), "assignment": assigned(), "targets": targets or labelled(), **changes}
    return Knowledge(memory=memory(tokens, shapes, mask), **values)


def student_of(tokens, shapes=GRID, mask=None):
    maps = {f"level{index}": torch.zeros(1, 1, *shape) for index, shape in enumerate(shapes)}
    return StudentOutput(maps, memory=memory(tokens, shapes, mask))


def plain_loss(projection=lambda tokens: tokens, width=4, **options):
    """A loss whose adapter changes nothing."""
    loss = TargetAwareLoss(weight=1.0, channels=width, teacher_channels=4, projection=projection, **options)
    with torch.no_grad():
        loss.adapter.weight.copy_(torch.eye(4, width))
        loss.adapter.bias.zero_()
    return loss


def expected(weights, errors):
    return sum(w * e for w, e in zip(weights, errors, strict=True)) / max(sum(weights), 1)


def quality_of(label=1, exponent=0.5, activation="sigmoid", pairs=None):
    pairs = (pairs or assigned()).slice_layers(slice(-1, None))
    return query_quality(teacher_output(activation), labelled(label), pairs, exponent)[0].tolist()


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_quality_by_hand(activation):
    if activation == "softmax":
        assert quality_of(activation=activation) == pytest.approx([math.sqrt(0.64 * 0.5), 0])
        return
    assert quality_of() == pytest.approx([QUALITY, 0])
    assert quality_of(exponent=1.0) == pytest.approx([0.64, 0])
    assert quality_of(exponent=0.0) == pytest.approx([0.5, 0])
    assert quality_of(exponent=0.25) == pytest.approx([0.64**0.25 * 0.5**0.75, 0])
    assert quality_of(label=0) == pytest.approx([math.sqrt(0.2 * 0.5), 0]), "the score of the object's class"
    assert quality_of(label=-1) == [0, 0], "a class that the teacher does not know"
    assert quality_of(pairs=assigned(query=2)) == [0, 0], "no overlap"


def test_iou_is_torchvisions_and_finite_without_area():
    corners = torch.rand(20, 2, 2, 2).sort(2).values.flatten(2)
    first, second = (torch.cat([(c[:, :2] + c[:, 2:]) / 2, c[:, 2:] - c[:, :2]], 1) for c in corners.unbind(1))
    reference = box_iou(corners[:, 0], corners[:, 1]).diagonal()
    assert torch.allclose(intersection_over_union(first, second), reference, atol=1e-5)
    assert (generalized_iou(first, second) <= reference + 1e-5).all()
    assert intersection_over_union(torch.zeros(4), torch.zeros(4)) == 0


def test_weights_by_hand():
    logits = torch.tensor([[[0.0, math.log(3), -math.log(3), 0], [0.0, 0, 0, math.log(3)]]])
    found = cell_weights(torch.tensor([[0.5, 1.0]]), logits, None)[0]
    other = (0.5, 0.5, 0.5, 0.75)
    assert found.tolist() == pytest.approx([0.5 * m * m + n * n for m, n in zip(MASK, other, strict=True)])
    padding = torch.tensor([[False, True, False, True]])
    assert cell_weights(torch.ones(1, 2), logits, padding)[0].bool().tolist() == [True, False, True, False]


def test_loss_by_hand():
    difference = torch.tensor([[[1.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0], [1, 1, 1, 1]]])
    student = student_of(torch.tensor([CELLS]) + difference)
    errors = [0.25, 1.0, 2.25, 1.0]
    assert plain_loss()(student, knowledge(), [])[NAME].item() == pytest.approx(expected(WEIGHTS, errors))
    tripled = plain_loss()
    tripled.weight = 3.0
    assert tripled(student, knowledge(), [])[NAME].item() == pytest.approx(3 * expected(WEIGHTS, errors))
    # A weight of more than one cell is divided out: 40 times the tokens, 40 times the weight, the same mean.
    many = knowledge(torch.tensor([CELLS]).repeat(1, 40, 1), shapes=[(80, 2)])
    repeated = student_of((torch.tensor([CELLS]) + difference).repeat(1, 40, 1), shapes=[(80, 2)])
    mean = sum(w * e for w, e in zip(WEIGHTS, errors, strict=True)) / sum(WEIGHTS)
    assert plain_loss()(repeated, many, [])[NAME].item() == pytest.approx(mean, rel=1e-5)


def test_padding_of_either_side_does_not_count():
    difference = torch.tensor([[[1.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0], [1, 1, 1, 1]]])
    left, right = (torch.tensor([[False, column, False, column]]) for column in (False, True))
    student = student_of(torch.tensor([CELLS]) + difference, mask=right)
    value = expected([WEIGHTS[0], 0, WEIGHTS[2], 0], [0.25, 1.0, 2.25, 1.0])
    assert plain_loss()(student, knowledge(mask=left), [])[NAME].item() == pytest.approx(value)
    student = student_of(torch.tensor([CELLS]) + difference)
    assert plain_loss()(student, knowledge(mask=right), [])[NAME].item() == pytest.approx(value)


def test_another_grid_is_resized_level_by_level():
    """Each level is constant, so that resizing is exact; a mix-up of levels or of axes is not."""
    tokens = torch.tensor([CELLS[:2]]).repeat_interleave(torch.tensor([8, 2]), dim=1)
    known = knowledge(tokens, shapes=[(2, 4), (1, 2)])
    student = student_of(torch.zeros(1, 5, 4), shapes=[(2, 2), (1, 1)])
    weights = [WEIGHTS[0]] * 4 + [WEIGHTS[1]]
    assert plain_loss()(student, known, [])[NAME].item() == pytest.approx(expected(weights, [0.25] * 5), rel=1e-5)


def test_every_level_learns_from_the_nearest_in_size():
    """One level of the teacher serves two of the student's; of two, the one of the same size is read."""
    one, two = torch.tensor([CELLS[:1]]).repeat(1, 8, 1), torch.tensor([CELLS[:1] + CELLS[1:2] * 4])
    student = student_of(torch.zeros(1, 10, 4), shapes=[(2, 4), (1, 2)])
    weights = [WEIGHTS[0]] * 10
    found = plain_loss()(student, knowledge(one, shapes=[(2, 4)]), [])[NAME].item()
    assert found == pytest.approx(expected(weights, [0.25] * 10), rel=1e-5)
    student = student_of(torch.zeros(1, 4, 4), shapes=[(2, 2)])
    found = plain_loss()(student, knowledge(two, shapes=[(1, 1), (2, 2)]), [])[NAME].item()
    assert found == pytest.approx(expected([WEIGHTS[1]] * 4, [0.25] * 4), rel=1e-5)


def test_neck_maps_count_by_the_memorys_masks():
    known = knowledge()
    known.features = {"level0": torch.full((1, 4, 2, 2), 1.0)}
    student = student_of(torch.full((1, 4, 4), 99.0))
    student.features = {"level0": torch.stack([torch.tensor([[1.0, 2], [3, 4]])] * 4)[None]}
    found = plain_loss(features="neck")(student, known, [])[NAME].item()
    assert found == pytest.approx(expected(WEIGHTS, [0, 1, 4, 9]))
    student.memory = None
    assert plain_loss(features="neck")(student, known, [])[NAME].item() == pytest.approx(found), "no encoder"


def test_no_objects_give_zero():
    empty = torch.zeros(2, 1, 0, dtype=torch.long)
    targets = Targets(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 0, 4), torch.zeros(1, 0).bool(), [0])
    known = knowledge(targets=targets, assignment=Pairs(empty, empty, empty.float()))
    tokens = torch.randn(1, 4, 4, requires_grad=True)
    losses = plain_loss(projection=None)(student_of(tokens), known, [])
    assert {name: value.item() for name, value in losses.items()} == {NAME: 0, MASK_NAME: 0}
    sum(losses.values()).backward()
    assert not tokens.grad.any()


def test_gradient_reaches_student_and_adapter_alone():
    teacher_layer = nn.Linear(4, 4)
    cells = torch.tensor([CELLS], requires_grad=True)
    known = knowledge(cells)
    known.output.hidden.requires_grad_()
    tokens = torch.randn(1, 4, 3, requires_grad=True)
    projection = ReadProjection(teacher_layer, nn.Identity())
    loss = TargetAwareLoss(weight=1.0, channels=3, teacher_channels=4, projection=projection)
    assert {name for name, _ in loss.named_parameters()} == {"adapter.weight", "adapter.bias"}
    loss(student_of(tokens), known, [])[NAME].backward()
    assert tokens.grad.any(-1).all() and all(p.grad.any() for p in loss.adapter.parameters())
    sum(plain_loss(projection=None)(student_of(torch.randn(1, 4, 4)), known, []).values()).backward()
    assert cells.grad is None and known.output.hidden.grad is None and teacher_layer.weight.grad is None


def test_learned_masks_learn_from_their_own_loss_alone():
    """The masked error, which masks of zero would minimise, gives the projection no gradient."""
    loss = plain_loss(projection=None)
    tokens = torch.randn(1, 4, 4, requires_grad=True)
    losses = loss(student_of(tokens), knowledge(), [])
    losses[NAME].backward(retain_graph=True)
    assert all(p.grad is None for p in loss.mask_projection.parameters())
    error = (tokens - torch.tensor([CELLS])).square().mean(-1).detach()[0]
    assert losses[NAME].item() == pytest.approx(expected([QUALITY / 4] * 4, error.tolist())), "masks start at a half"
    assert losses[MASK_NAME].item() == pytest.approx(QUALITY * math.log(2))
    doubled = plain_loss(projection=None)
    doubled.load_state_dict(loss.state_dict())
    doubled.weight = 2.0
    twice = doubled(student_of(tokens), knowledge(), [])
    assert twice[NAME] == 2 * losses[NAME] and twice[MASK_NAME] == losses[MASK_NAME]
    tokens.grad = None
    losses[MASK_NAME].backward()
    assert loss.mask_projection.weight.grad.any() and tokens.grad is None


def test_mask_loss_by_hand():
    place = memory(torch.zeros(1, 4, 1), mask=torch.tensor([[False, False, False, True]]))
    logits = torch.tensor([[[0.0, math.log(3), -math.log(3), 50]]])
    boxes = torch.tensor([[[0.25, 0.25, 0.1, 0.1]]])
    # The first cell is the object's, the last is padding.
    value = (math.log(2) + math.log(4) + math.log(4 / 3)) / 3
    assert mask_loss(logits, boxes, torch.tensor([[0.5]]), place).item() == pytest.approx(value * 0.5, rel=1e-5)
    several = [tensor.repeat(1, 6, *[1] * (tensor.dim() - 2)) for tensor in (logits, boxes, torch.tensor([[0.5]]))]
    assert mask_loss(*several, place).item() == pytest.approx(value, rel=1e-5), "a mean where there is enough"


def test_cells_that_a_box_touches():
    """Of all levels, over the image without its padding."""
    box = torch.tensor([[[0.25, 0.5, 0.3, 0.9]]])
    place = memory(torch.zeros(1, 8 + 2, 1), shapes=[(2, 4), (1, 2)])
    assert touched_cells(place, box).tolist() == [[[1, 1, 0, 0, 1, 1, 0, 0, 1, 0]]]
    tiny = torch.tensor([[[0.6, 0.1, 1e-3, 1e-3]]])
    assert touched_cells(place, tiny).tolist() == [[[0, 0, 1, 0, 0, 0, 0, 0, 0, 1]]], "never none"
    padding = torch.tensor([[False, False, True, True] * 2 + [False, True]])
    place = memory(torch.zeros(1, 10, 1), shapes=[(2, 4), (1, 2)], mask=padding)
    assert (touched_cells(place, box) * ~padding).tolist() == [[[1, 0, 0, 0, 1, 0, 0, 0, 1, 0]]]


def test_waiting_students_feel_nothing():
    """SCHEDULE.STUDENT_FROM trains adapters alone: the encoder's output is held back too."""
    tokens = torch.randn(1, 4, 4, requires_grad=True)
    loss = plain_loss()
    loss(scale_student(student_of(tokens), 0.0), knowledge(), [])[NAME].backward()
    assert not tokens.grad.any() and loss.adapter.weight.grad.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "head"}, "FEATURES is 'head'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        TargetAwareLoss(**{"weight": 1.0, "channels": 4, "teacher_channels": 4, **options})


CASES = {
    "single_scale": (CONDITIONAL, CONDITIONAL, ALONE),
    "single_scale_read": (CONDITIONAL, CONDITIONAL, READ),
    "multi_scale": (DEFORMABLE, DEFORMABLE, ALONE),
    "multi_scale_read": (DEFORMABLE, DEFORMABLE, READ),
    "encoder_free": (ADAMIXER, ADAMIXER, ALONE),
    "teacher_without_encoder": (ADAMIXER, DEFORMABLE, ALONE),
    "student_without_encoder": (DEFORMABLE, ADAMIXER, ALONE),
    "more_levels": (CONDITIONAL, DEFORMABLE, ALONE),
    "fewer_levels": (DEFORMABLE, CONDITIONAL, ALONE),
    "neck": (DEFORMABLE, DEFORMABLE, {**ALONE, "DISTILL__TARGET_AWARE_LOSS__FEATURES": "neck"}),
}


def step(model, counts=(2, 3)):
    losses = model(make_inputs(counts=counts))
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("case", CASES)
def test_a_step_of_every_kind_of_pair(case, tmp_path):
    """Another width, depth and number of queries; padded images; the encoder learns, if it is compared."""
    teacher, student, keys = CASES[case]
    model = distiller(tmp_path, teacher, student, LARGER, **keys)
    losses = step(model)
    own = {name: value.item() for name, value in losses.items() if "distill" in name}
    assert set(own) == ({NAME} if keys is READ else {NAME, MASK_NAME}) and all(value > 0 for value in own.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad is None for p in model.teacher.detector.parameters())
    model.zero_grad()
    model(make_inputs())[NAME].backward()
    reached = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    parts = {"backbone", "input_projection", "TargetAwareLoss"}
    encoded = case != "neck" and any(True for _ in model.student.encoder.parameters())
    assert reached == (parts | {"encoder"} if encoded else parts)
    parts = {"adapter"} if keys is READ else {"adapter", "mask_projection"}
    assert {name.split(".")[2] for name in model.state_dict() if name.startswith("losses.")} == parts
    with torch.no_grad():
        assert len(model.eval()(make_inputs(labels=False))) == 2


def test_batches_without_objects(tmp_path):
    model = distiller(tmp_path, ADAMIXER, ADAMIXER, LARGER, **ALONE)
    losses = step(model, counts=(0, 0))
    assert losses[NAME] == 0 and losses[MASK_NAME] == 0
    assert all(value.isfinite() for value in step(model, counts=(0, 2)).values())


def test_grids_of_other_strides(tmp_path):
    keys = {**LARGER, "DETR__IN_FEATURES": ["stage2"]}
    model = distiller(tmp_path, CONDITIONAL, CONDITIONAL, keys, **ALONE)
    assert step(model)[NAME] > 0


def test_weight_zero_removes_this_term_alone(tmp_path):
    keys = {"DISTILL__LOSSES": ["PredictionLoss", "TargetAwareLoss"], "DISTILL__MATCHERS": ["AdaptiveMatcher"]}
    losses = []
    for weight in (1.0, 0.0):
        model = distiller(tmp_path, CONDITIONAL, CONDITIONAL, **keys, DISTILL__TARGET_AWARE_LOSS__WEIGHT=weight)
        torch.manual_seed(0)
        losses.append(model(make_inputs()))
    assert set(losses[0]) - set(losses[1]) == {NAME, MASK_NAME}
    assert all(torch.equal(losses[0][name], value) for name, value in losses[1].items())
    assert "TargetAwareLoss" not in model.losses


def test_classes_are_found_by_name(tmp_path, named_sets):  # noqa: F811
    """An object of a class that the teacher does not know weighs nothing; others have the teacher's score."""
    keys = {"DETR__NUM_CLASSES": 4, "datasets": named_sets}
    model = distiller(tmp_path, CONDITIONAL, CONDITIONAL, {"DETR__NUM_CLASSES": 8}, **ALONE, **keys)
    seen = []
    model.losses["TargetAwareLoss"].register_forward_hook(lambda module, args, losses: seen.append((args[1], losses)))
    inputs = make_inputs(counts=(1, 1), num_classes=4)
    for entry, label in zip(inputs, (0, 2), strict=True):  # "g", the teacher's class 6, and "x"
        entry["instances"].gt_classes[:] = label
    model(inputs)
    known, losses = seen[0]
    pairs = known.assignment.slice_layers(slice(-1, None))
    quality = query_quality(known.output, known.targets, pairs, 1.0)
    scores = known.output.probabilities()[-1, 0, pairs.query[0, 0, 0]]
    assert known.targets.labels.tolist() == [[6], [-1]]
    assert quality.tolist() == [[pytest.approx(scores[6].item())], [0]] and losses[NAME] > 0
    inputs[0]["instances"].gt_classes[:] = 2
    assert model(inputs)[NAME] == 0


def test_mixed_precision(tmp_path):
    model = distiller(tmp_path, CONDITIONAL, CONDITIONAL, LARGER, **ALONE)
    inputs = make_inputs()
    plain = model(inputs)[NAME]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(inputs)[NAME]
    assert mixed.dtype == torch.float32 and mixed.item() == pytest.approx(plain.item(), rel=0.05)


@pytest.mark.parametrize(("family", "keys"), [(DEFORMABLE, READ), (ADAMIXER, ALONE)])
def test_one_device_read_a_step(family, keys, tmp_path, monkeypatch):
    """The teacher's matching is solved with the student's."""
    model, inputs = distiller(tmp_path, family, family, LARGER, **keys), make_inputs()
    reads, to_host = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: (reads.append("cpu"), to_host(self))[1])
    with ReadCounter() as counter:
        sum(model(inputs).values()).backward()
    assert reads + counter.reads == ["cpu"]


@pytest.mark.parametrize(
    ("teacher", "student", "keys", "message"),
    [
        (ADAMIXER, ADAMIXER, READ, "AdaMixerDecoder has no cross-attention"),
        (CONDITIONAL, CONDITIONAL, {**ALONE, "DISTILL__TARGET_AWARE_LOSS__PROJECTION": "own"}, "PROJECTION is 'own'"),
    ],
)
def test_pairs_that_cannot_be_compared_are_named(teacher, student, keys, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        distiller(tmp_path, teacher, student, **keys)


def convolutional_cfg(save_teacher, **keys):
    """A RetinaNet that learns from the memory of a DETR."""
    cfg = dense_cfg("RetinaNet")
    node = cfg.MODEL.DISTILL
    for key, value in save_teacher().items():
        cfg.merge_from_list([key.replace("__", "."), value])
    cfg.MODEL.META_ARCHITECTURE, node.STUDENT_ARCHITECTURE = "DistillDetector", "RetinaNet"
    node.LOSSES, node.MATCHERS = ["TargetAwareLoss"], []
    node.merge_from_list([part for key, value in keys.items() for part in (key.replace("__", "."), value)])
    return cfg


@pytest.mark.parametrize(
    ("keys", "message"),
    [({}, "FEATURES is 'memory'"), ({"TEACHER__NAME": "LabelEncoder"}, "LabelEncoder")],
)
def test_a_convolutional_student_has_no_memory(keys, message, save_teacher):
    with pytest.raises(ConfigError, match=message):
        build_model(convolutional_cfg(save_teacher, **keys))


def test_a_convolutional_students_pyramid_learns(save_teacher):
    model = build_model(convolutional_cfg(save_teacher, TARGET_AWARE_LOSS__FEATURES="neck")).train()
    with EventStorage(0):
        model(make_inputs())[NAME].backward()
    learned = {name for name, p in model.student.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("fpn_output" in name for name in learned) and not any("head" in name for name in learned)
