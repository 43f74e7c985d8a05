"""A detector of transformers with our criterion: its losses are the library's where those are right."""

from __future__ import annotations

import dataclasses

from detr_distill.structures import QueryGroup

import pytest
import torch
import torch.nn.functional as F
from helpers.builders import make_inputs
from helpers.detr.device_solver import solve_as_on_device
from helpers.host_reads import host_reads
from helpers.hugging_face import CLASSES, KINDS, LARGE, LAYERS, SIZE, build_student, labels_of, solved

transformers = pytest.importorskip("transformers")
EQUAL_COUNTS = {"counts": (3, 3)}


def library_loss(student):
    """The library's criterion with the keys' weights of losses and costs."""
    config = student.model.config
    config.matcher_class_cost, config.matcher_bbox_cost, config.matcher_giou_cost = (
        student.criterion.matcher.cost_class, student.criterion.matcher.cost_l1, student.criterion.matcher.cost_giou,
    )  # fmt: skip
    library = transformers.loss
    kind = library.loss_rt_detr.RTDetrLoss if student.distribution is None else library.loss_d_fine.DFineLoss
    return kind(config)


def expected_terms(criterion, outputs, labels, indices=None, copies=1):
    """The library's class, L1, GIoU and, where there are edges, distribution losses of one layer, without weights."""
    indices = criterion.matcher(outputs, labels) if indices is None else indices
    count = max(1, sum(len(x["class_labels"]) for x in labels)) * copies
    found = {
        **criterion.loss_labels_vfl(outputs, labels, indices, count),
        **criterion.loss_boxes(outputs, labels, indices, count),
    }
    if "pred_corners" in outputs:
        found.update(criterion.loss_local(outputs, labels, indices, count))
    return {name.removeprefix("loss_"): value for name, value in found.items()}


def layer_of(output, layer):
    found = {"logits": output.logits[layer], "pred_boxes": output.boxes[layer].clamp(0, 1)}
    if output.edges is not None:
        found["pred_corners"] = output.edges.logits[layer].flatten(-2)
        found["ref_points"] = output.edges.references[layer]
        found["teacher_corners"] = output.edges.logits[-1].flatten(-2)
        found["teacher_logits"] = output.logits[-1]
    return found


def weighted(student, terms):
    criterion, distribution = student.criterion, student.distribution
    weights = {"vfl": criterion.class_weight, "bbox": criterion.l1_weight, "giou": criterion.giou_weight}
    if distribution is not None:
        weights |= {"fgl": distribution.fgl_weight, "ddf": distribution.ddf_weight}
    return {name: weights[name] * value for name, value in terms.items()}


OURS = {"vfl": "class", "bbox": "box", "giou": "giou", "fgl": "fgl", "ddf": "ddf"}


def compare(student, losses, expected, suffix, layer, last):
    number = "" if layer == last else f"_{layer}"
    for name, value in weighted(student, expected).items():
        if name == "ddf" and layer == last:  # it would learn from itself
            assert f"loss_ddf{suffix}" not in losses
            continue
        assert torch.allclose(losses[f"loss_{OURS[name]}{suffix}{number}"], value, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("kind", KINDS[1:])  # the first two share their losses
def test_losses_are_the_librarys_on_the_right_layers(kind, tmp_path):
    student = build_student(tmp_path, kind)
    if student.distribution is not None:  # large boxes, some of which reach beyond 0 and 1
        torch.nn.init.constant_(student.model.model.decoder.pre_bbox_head.layers[-1].bias, 5.0)
        for head in student.model.bbox_embed:
            torch.nn.init.normal_(head.layers[-1].bias, std=1.5)
    losses, decoded, truth = solved(student, make_inputs())
    criterion, labels, own = library_loss(student), labels_of(truth), decoded.outputs["own"]
    for layer in range(LAYERS):
        compare(student, losses, expected_terms(criterion, layer_of(own, layer), labels), "", layer, LAYERS - 1)
    one_layer = {"_encoder": decoded.encoder["own"], **({"_first": decoded.first["own"]} if decoded.first else {})}
    for suffix, output in one_layer.items():
        compare(student, losses, expected_terms(criterion, layer_of(output, 0), labels), suffix, 0, 0)
    assert bool(decoded.first) == (own.edges is not None)
    assert own.edges is None or (own.boxes == 1).any()


@pytest.mark.parametrize("kind", ["rt_detr_v2", "d_fine"])
def test_denoising_losses_are_the_librarys_without_padding(kind, tmp_path):
    student = build_student(tmp_path, kind)
    losses, decoded, truth = solved(student, make_inputs(**EQUAL_COUNTS))
    criterion, labels = library_loss(student), labels_of(truth)
    group = decoded.groups[1]
    copies = student.model.config.num_denoising // 3
    assert group.name == "denoising" and group.content.shape[1] == 2 * copies * 3
    query = torch.arange(3 * copies)
    indices = [(query, query // copies)] * 2
    for layer in range(LAYERS):
        outputs = layer_of(decoded.outputs["denoising"], layer)
        expected = expected_terms(criterion, outputs, labels, indices, copies)
        compare(student, losses, expected, "_denoising", layer, LAYERS - 1)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_two_halves_are_the_librarys_forward(kind, tmp_path):
    """Also with other groups beside the model's own, none of which another sees."""
    student = build_student(tmp_path, kind).eval()
    inputs = make_inputs()
    images = student.start(inputs).images.tensor
    with student.network.every_layer():
        expected = student.model.model(images)
        alone = student.finish(student.start(inputs)).outputs["own"]
        content, position = torch.randn(2, 4, 32), torch.randn(2, 4, 4)
        groups = [QueryGroup(name, content + shift, position) for name, shift in (("a", 0.0), ("b", 3.0))]
        both = student.finish(student.start(inputs), extra=groups).outputs
        changed = [groups[0], dataclasses.replace(groups[1], position=position + 1)]
        other = student.finish(student.start(inputs), extra=changed).outputs
    layers = slice(-LAYERS, None)
    assert torch.equal(alone.logits.transpose(0, 1), expected.intermediate_logits[:, layers])
    assert torch.equal(alone.boxes.transpose(0, 1), expected.intermediate_reference_points[:, layers])
    assert expected.intermediate_logits.std() > 0.01 and expected.intermediate_reference_points.std() > 1e-3
    assert torch.allclose(both["own"].logits, alone.logits, atol=1e-5)
    assert torch.allclose(both["own"].hidden, alone.hidden, atol=1e-5)
    assert torch.allclose(both["a"].logits, other["a"].logits, atol=1e-5)
    assert not torch.allclose(both["b"].logits, other["b"].logits, atol=1e-2)


@pytest.mark.parametrize("kind", ["rt_detr_v2", "d_fine", "detr", "deformable_detr", "rf_detr"])
def test_every_parameter_learns_from_a_batch_without_objects(kind, tmp_path):
    student = build_student(tmp_path, kind)
    losses = student(make_inputs(LARGE, counts=(0, 0)))
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert [name for name, p in student.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_step_reads_the_device_for_the_matchings_alone(tmp_path, monkeypatch):
    """On the device all are solved there; on the host one copy brings them all, as tests of the solver show."""
    student = build_student(tmp_path, "d_fine", settings={"decoder_layers": 2})
    solve_as_on_device(monkeypatch)
    with host_reads() as reads:
        sum(student(make_inputs()).values()).backward()
    assert not reads


@torch.no_grad()
def test_detections_are_those_of_the_librarys_own_program(tmp_path):
    """Images of unequal sizes in BGR, stretched to one size; boxes in their own pixels."""
    student = build_student(tmp_path, "rt_detr_v2", INPUT__FORMAT="BGR").eval()
    assert student.mean.flatten().tolist() == [80.0] * 3
    inputs = make_inputs()
    found = student(inputs)
    stretched = [F.interpolate(x["image"].flip(0)[None], (SIZE, SIZE), mode="bilinear", antialias=True) for x in inputs]
    expected = student.model((torch.cat(stretched) - 80) / 60)
    sizes = [tuple(x["image"].shape[-2:]) for x in inputs]
    reference = transformers.RTDetrImageProcessor().post_process_object_detection(expected, 0.0, sizes)
    for ours, theirs in zip(found, reference, strict=True):
        instances = ours["instances"]
        count = len(theirs["scores"])
        assert torch.allclose(instances.scores[:count], theirs["scores"], atol=1e-6)
        assert torch.equal(instances.pred_classes[:count], theirs["labels"])
        height, width = instances.image_size
        limit = torch.tensor([width, height, width, height])
        assert torch.allclose(
            instances.pred_boxes.tensor[:count], theirs["boxes"].clamp(min=0).minimum(limit), atol=1e-3
        )
    assert max(int(x["instances"].pred_classes.max()) for x in found) < CLASSES
