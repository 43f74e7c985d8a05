"""The attention loss by hand: the order of the pairs, fewer pairs, other heads and other grids."""

from __future__ import annotations

from detr_distill.distill.losses.attention import AttentionLoss
from detr_distill.distill.losses.prediction import PredictionLoss

import torch
from helpers.distill.one_image import BOX, SAME, match, memory, output, random_maps, run


def attention_case(teacher_queries=3, teacher_heads=2, cells=(2, 3)):
    student = output([[0.0, 0.0]] * 3, [BOX[0]] * 3)
    student.self_attention, student.cross_attention = (random_maps(1, 2, 3, 3),), (random_maps(1, 2, 3, 6, seed=1),)
    teacher = output([[0.0, 0.0]] * teacher_queries, [BOX[0]] * teacher_queries)
    teacher.self_attention = (random_maps(1, teacher_heads, teacher_queries, teacher_queries, seed=2),)
    teacher.cross_attention = (random_maps(1, teacher_heads, teacher_queries, cells[0] * cells[1], seed=3),)
    return student, teacher, {"student_memory": memory(2, 3), "teacher_memory": memory(*cells)}


def test_attention_loss_orders_both_axes_by_the_pairs():
    student, teacher, setting = attention_case()
    order = [2, 0, 1]
    found = run(AttentionLoss(divergence="kl"), student, teacher, match([0, 1, 2], order), **setting)
    goal = teacher.self_attention[0][0][:, order][:, :, order]
    expected = (goal * (goal / student.self_attention[0][0]).log()).sum(-1).mean()
    assert torch.allclose(found["self_attention"], expected, atol=1e-5)
    goal = teacher.cross_attention[0][0][:, order]
    expected = (goal * (goal / student.cross_attention[0][0]).log()).sum(-1).mean()
    assert torch.allclose(found["cross_attention"], expected, atol=1e-5)


def test_attention_of_a_permuted_copy_costs_nothing():
    student, _, setting = attention_case()
    order = torch.tensor([2, 0, 1])
    copy = output([[0.0, 0.0]] * 3, [BOX[0]] * 3)
    copy.self_attention = (student.self_attention[0][:, :, order][..., order],)
    copy.cross_attention = (student.cross_attention[0][:, :, order],)
    found = run(
        AttentionLoss(divergence="mse"), student, copy, match([0, 1, 2], torch.argsort(order).tolist()), **setting
    )
    assert all(value.abs() < 1e-7 for value in found.values())


def test_attention_with_fewer_pairs_is_a_distribution_again():
    student, teacher, setting = attention_case(teacher_queries=2)
    found = run(AttentionLoss(divergence="kl", cross_weight=0.0), student, teacher, match([0, 2], [1, 0]), **setting)
    pred = student.self_attention[0][0][:, [0, 2]][:, :, [0, 2]]
    goal = teacher.self_attention[0][0][:, [1, 0]][:, :, [1, 0]]
    pred = pred / pred.sum(-1, keepdim=True)
    assert torch.allclose(found["self_attention"], (goal * (goal / pred).log()).sum(-1).mean(), atol=1e-5)
    assert "cross_attention" not in found


def test_attention_with_other_heads_and_other_memory_grid():
    student, teacher, setting = attention_case(teacher_heads=4, cells=(4, 6))
    found = run(AttentionLoss(), student, teacher, match([0, 1, 2], [0, 1, 2]), **setting)
    assert all(value.isfinite() and value >= 0 for value in found.values())
    teacher.cross_attention = (torch.full((1, 4, 3, 24), 1 / 24),)
    student.cross_attention = (torch.full((1, 2, 3, 6), 1 / 6),)
    found = run(AttentionLoss(), student, teacher, match([0, 1, 2], [0, 1, 2]), **setting)
    assert found["cross_attention"].abs() < 1e-5, "a uniform map stays uniform on another grid"


def test_requires_only_what_has_a_weight():
    assert AttentionLoss(self_weight=0.0).requires == {"cross_attention"}
    assert AttentionLoss().requires == {"self_attention", "cross_attention"}
    assert PredictionLoss(classes=SAME, class_weight=1, l1_weight=1, giou_weight=1).requires == frozenset()
