"""The attention loss by hand: the order of the pairs, fewer pairs, other heads and other grids."""

from __future__ import annotations

from detr_distill.distill.losses import attention
from detr_distill.distill.losses.attention import AttentionLoss
from detr_distill.distill.losses.prediction import PredictionLoss
from detr_distill.errors import ConfigError
from detr_distill.structures import CROSS_ATTENTION, CROSS_FACTORS, SELF_ATTENTION, SELF_FACTORS, AttentionFactors

import pytest
import torch
from helpers.distill.attention_cases import compare_maps
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


@pytest.fixture
def without_maps(monkeypatch):
    """Factors are compared as on CUDA, but for the kernels."""
    compared = []

    def compare(loss, student, teacher):
        compared.append(student)
        return compare_maps(student, teacher, kind=loss.divergence)

    monkeypatch.setattr(attention, "fits_kernels", lambda query: True)
    monkeypatch.setattr(AttentionLoss, "_compare_factors", compare)
    return compared


def random_factors(queries, keys, heads, mask=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(1, heads, count, 8, generator=generator) for count in (queries, keys))
    return AttentionFactors(query.requires_grad_(), key.requires_grad_(), mask)


@pytest.mark.parametrize(
    ("query", "target", "weight", "heads"),
    [
        ([0, 1, 2, 3], [2, 0, 1, 4], [1.0, 1.0, 1.0, 1.0], 2),
        ([2, 0], [1, 3], [1.0, 1.0], 2),
        ([2, 0, 1, 3], [1, 3, 4, 0], [1.0, 1.0, 1.0, 1.0], 4),
        ([2, 0, 1], [1, 3, 0], [1.0, 1.0, 0.0], 2),
    ],
)
@pytest.mark.parametrize("kind", ["kl", "mse"])
def test_factors_give_what_their_maps_give(without_maps, query, target, weight, heads, kind):
    """Permuted, unmatched and padded queries, other heads, hidden keys."""
    hidden = torch.zeros(1, 1, 1, 6, dtype=torch.bool)
    hidden[..., 4:] = True
    inner = torch.zeros(5, 5, dtype=torch.bool)
    inner[[0, 1, 2], [1, 3, 3]] = True
    sides = [
        (random_factors(4, 4, 2), random_factors(4, 6, 2, hidden, seed=1)),
        (random_factors(5, 5, heads, inner, seed=2), random_factors(5, 6, heads, hidden, seed=3)),
    ]
    results = []
    for form in ("maps", "factors"):
        outputs = [output([[0.0, 0.0]] * count, [BOX[0]] * count) for count in (4, 5)]
        for found, (own, cross) in zip(outputs, sides, strict=True):
            if form == "maps":
                found.self_attention, found.cross_attention = (own.map(),), (cross.map(),)
            else:
                found.self_factors, found.cross_factors = (own,), (cross,)
        setting = {"student_memory": memory(2, 3), "teacher_memory": memory(2, 3)}
        losses = run(AttentionLoss(divergence=kind), *outputs, match(query, target, weight), **setting)
        leaves = [values for factors in sides[0] for values in (factors.query, factors.key)]
        results.append([*losses.values(), *torch.autograd.grad(sum(losses.values()), leaves)])
        assert len(without_maps) == (0 if form == "maps" else 2)
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6) and theirs.abs().max() > 0


def test_factors_on_another_grid_or_in_float64_are_compared_as_maps(without_maps, monkeypatch):
    outputs = [output([[0.0, 0.0]] * 3, [BOX[0]] * 3) for _ in range(2)]
    for found, cells in zip(outputs, (6, 24), strict=True):
        found.cross_factors = (random_factors(3, cells, 2),)
    loss, pairs = AttentionLoss(self_weight=0.0), match([0, 1, 2], [0, 1, 2])
    found = run(loss, *outputs, pairs, student_memory=memory(2, 3), teacher_memory=memory(4, 6))
    assert found["cross_attention"] > 0 and not without_maps
    monkeypatch.undo()
    outputs[1].cross_factors = outputs[0].cross_factors
    same = run(loss, *outputs, pairs, student_memory=memory(2, 3), teacher_memory=memory(2, 3))
    assert same["cross_attention"].abs() < 1e-6, "not on CUDA"


def test_kernel_decides_what_decoders_keep(monkeypatch):
    assert AttentionLoss(factors=frozenset({SELF_ATTENTION})).requires == {SELF_FACTORS, CROSS_ATTENTION}
    assert AttentionLoss(factors=frozenset({CROSS_ATTENTION}), self_weight=0.0).requires == {CROSS_FACTORS}
    on_cpu, on_cuda = torch.device("cpu"), torch.device("cuda")
    assert not attention.compares_without_maps("auto", on_cpu)
    with pytest.raises(ConfigError, match=r'ATTENTION_LOSS.KERNEL is "triton".*MODEL.DEVICE is cpu.*"pytorch"'):
        attention.compares_without_maps("triton", on_cpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for works in (True, False):
        monkeypatch.setattr(attention, "attention_kernels_work", lambda device, works=works: works)
        assert attention.compares_without_maps("auto", on_cuda) == works
        assert not attention.compares_without_maps("pytorch", on_cuda)
