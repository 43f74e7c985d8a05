"""Divergences between distributions and class scores, as pure functions in float32.

The first argument is always the teacher's. Nothing is averaged: the last axis is summed, all others stay.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..detr.layers.cpu_operators import kl_and_ratio, kl_gradient

TINY = 1e-8


def mse(teacher: Tensor, student: Tensor) -> Tensor:
    """Sum of squared differences: (..., N) and (..., N) to (...)."""
    return (teacher.float() - student.float()).square().sum(-1)


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Kullback-Leibler divergence ``sum t log(t / p)`` in nats of two distributions over the last axis.

    No gradient reaches the teacher. Attention maps are the largest tensors of a step, so the backward pass is written
    out: one product with the ratio ``t / p`` instead of the five elementwise passes that autograd would make.
    """
    return _KullbackLeibler.apply(teacher.float(), student.float())


class _KullbackLeibler(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor) -> Tensor:
        compare = torch.ops.detr_distill.kl if teacher.device.type == "cpu" else kl_and_ratio
        value, ratio = compare(teacher, student, TINY)
        ctx.save_for_backward(ratio)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (ratio,) = ctx.saved_tensors
        differentiate = torch.ops.detr_distill.kl_backward if ratio.device.type == "cpu" else kl_gradient
        return None, differentiate(gradient, ratio)


def binary_cross_entropy(teacher: Tensor, student_logits: Tensor) -> Tensor:
    """``-(t log p + (1 - t) log(1 - p))`` summed over classes, p the sigmoid of ``student_logits`` and t soft."""
    return F.binary_cross_entropy_with_logits(student_logits.float(), teacher.float(), reduction="none").sum(-1)


def focal_binary_cross_entropy(teacher: Tensor, student_logits: Tensor) -> Tensor:
    """Soft binary cross-entropy with each class scaled by ``|p - t|^2``, summed over classes.

    The scale keeps thousands of agreeing background scores from outweighing the few objects. Source: the quality focal
    loss (2006.04388) [P] with the teacher's score as its soft label [R].
    """
    student_logits, teacher = student_logits.float(), teacher.float()
    scale = (student_logits.sigmoid() - teacher).square()
    return (scale * F.binary_cross_entropy_with_logits(student_logits, teacher, reduction="none")).sum(-1)


def binary_kl(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """KL of independent Bernoulli scores softened by a temperature, times its square, summed over classes."""
    entropy = binary_entropy((teacher_logits.float() / temperature).sigmoid())
    return softened_cross_entropy(teacher_logits, student_logits, temperature) - temperature**2 * entropy


def binary_entropy(scores: Tensor) -> Tensor:
    """``-(t log t + (1 - t) log(1 - t))`` in nats, summed over classes: what KL is less than the cross-entropy."""
    scores = scores.float()
    return -(torch.xlogy(scores, scores) + torch.xlogy(1 - scores, 1 - scores)).sum(-1)


def softened_cross_entropy(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """:func:`binary_cross_entropy` of scores softened by a temperature, times its square."""
    soft = (teacher_logits.float() / temperature).sigmoid()
    return temperature**2 * binary_cross_entropy(soft, student_logits.float() / temperature)


def softmax_kl(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """KL of two softmax distributions softened by a temperature, times its square (1503.02531) [P]."""
    teacher = (teacher_logits.float() / temperature).log_softmax(-1)
    student = (student_logits.float() / temperature).log_softmax(-1)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(-1)


def jensen_shannon(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Jensen-Shannon divergence in bits, in [0, 1], of two softmax distributions over the last axis.

    ``(KL(a || m) + KL(b || m)) / 2`` with ``m = (a + b) / 2``, in log-space. Its root is a distance. Source: SSSD
    (2303.05015) [P].
    """
    teacher = (teacher_logits.float() / temperature).log_softmax(-1)
    student = (student_logits.float() / temperature).log_softmax(-1)
    mixture = torch.logaddexp(teacher, student) - math.log(2)
    terms = teacher.exp() * (teacher - mixture) + student.exp() * (student - mixture)
    return terms.sum(-1) / (2 * math.log(2))
