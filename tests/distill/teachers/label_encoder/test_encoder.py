"""The label encoder alone: its guides, images without objects, gradients, and turns at the head."""

from __future__ import annotations

import dataclasses

from detr_distill.detr.preprocess import read_ground_truth
from detr_distill.distill.students import StudentStep
from detr_distill.distill.teachers.label_encoder.descriptor import LabelDescriptor
from detr_distill.distill.teachers.label_encoder.encoder import LabelEncoder

import pytest
import torch
from helpers.builders import make_inputs, randomise


def small_encoder(**options) -> LabelEncoder:
    descriptor = LabelDescriptor(5, options.pop("context", True), 0, False)
    encoder = LabelEncoder(in_features=["p"], channels=8, descriptor=descriptor, num_heads=2, **options)
    return randomise(encoder).train()


def random_step(counts=(2, 3), size=(64, 96), cells=(8, 12)) -> StudentStep:
    inputs = make_inputs(sizes=(size,) * len(counts), counts=counts)
    maps = torch.randn(len(counts), 8, *cells, generator=torch.Generator().manual_seed(5))
    return StudentStep(inputs, {"p": maps}, size, ground_truth=read_ground_truth(inputs, "cpu"))


@pytest.mark.parametrize("guide", ["student", "label"])
@pytest.mark.parametrize("context", [True, False])
def test_maps_of_an_image_do_not_depend_on_its_neighbours(guide, context):
    encoder = small_encoder(guide=guide, context=context)
    step = random_step((2, 5))
    together = encoder(step, frozenset()).features["p"]
    first = step.batched_inputs[:1]
    step_alone = dataclasses.replace(
        step,
        batched_inputs=first,
        features={"p": step.features["p"][:1]},
        ground_truth=read_ground_truth(first, "cpu"),
    )
    alone = encoder(step_alone, frozenset()).features["p"]
    assert together.shape == step.features["p"].shape
    assert torch.allclose(together[:1], alone, atol=1e-5)


def test_guides_differ_and_the_context_matters():
    step = random_step()
    maps = [
        small_encoder(**options)(step, frozenset()).features["p"]
        for options in ({"guide": "student"}, {"guide": "label"}, {"context": False})
    ]
    assert not torch.allclose(maps[0], maps[1], atol=1e-3) and not torch.allclose(maps[0], maps[2], atol=1e-3)


@pytest.mark.parametrize("counts", [(0, 0), (0, 2)])
@pytest.mark.parametrize("cells", [(8, 12), (1, 1)])
@pytest.mark.parametrize("context", [True, False])
def test_images_without_objects_and_maps_of_one_cell(counts, cells, context):
    encoder = small_encoder(context=context)
    maps = encoder(random_step(counts, cells=cells), frozenset()).features["p"]
    assert maps.isfinite().all()
    maps.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_detached_appearance_sends_no_gradient_to_the_student():
    for detach in (True, False):
        step = random_step()
        step.features["p"].requires_grad_()
        small_encoder(detach_appearance=detach)(step, frozenset()).features["p"].square().sum().backward()
        assert (step.features["p"].grad is None) == detach


def test_a_kept_label_is_added_to_what_attention_tells():
    related, embeddings = [], []
    for encoder in (small_encoder(), small_encoder(keep_label=True)):
        encoder.object_projection.register_forward_pre_hook(lambda _, inputs: related.extend(inputs))
        encoder.label_projection.register_forward_hook(lambda _module, _inputs, output: embeddings.append(output))
        encoder(random_step(), frozenset())
    plain, keeping = related
    assert torch.equal(*embeddings)
    assert torch.allclose(keeping - plain, embeddings[0].unsqueeze(0), atol=1e-5)


def test_images_take_turns_at_the_head():
    encoder = small_encoder(head_share=0.5)
    step = random_step((1, 1, 1, 1))
    turns = []
    for iteration in range(3):
        chosen = encoder(dataclasses.replace(step, iteration=iteration), frozenset()).second_run.images
        turns.append((chosen.start, chosen.stop))
    assert turns == [(0, 2), (2, 4), (0, 2)]


@pytest.mark.parametrize(("images", "share"), [(3, 0.5), (5, 0.5), (3, 0.67), (4, 0.3), (1, 0.1), (7, 1.0)])
def test_every_image_has_its_turn(images, share):
    encoder, read, parts = small_encoder(head_share=share), set(), set()
    for iteration in range(8):
        step = dataclasses.replace(random_step((1,) * images, cells=(1, 1)), iteration=iteration)
        part = range(images)[encoder(step, frozenset()).second_run.images]
        read.update(part)
        parts.add(len(part))
    assert read == set(range(images)) and parts == {max(1, round(share * images))}
