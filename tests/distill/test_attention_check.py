"""The trial of the kernels that compare attention without maps."""

import sys
from types import SimpleNamespace

from detr_distill.distill import attention_check, divergence

import pytest
import torch

CPU = torch.device("cpu")


def by_maps(student, teacher, *, kind, tiny):
    return getattr(divergence, kind)(teacher.map(), student.map())


def without_gradient_of_keys(student, teacher, *, kind, tiny):
    student.key, kept = student.key.detach(), student.key
    found = by_maps(student, teacher, kind=kind, tiny=tiny)
    student.key = kept
    return found + 0 * kept.sum()


def failing(*_, **__):
    raise RuntimeError("no such device")


@pytest.fixture
def tried(monkeypatch):
    def with_kernels(function):
        attention_check.attention_kernels_work.cache_clear()
        name = "detr_distill.distill.attention_fused"
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(attention_divergence=function))
        return attention_check.attention_kernels_work(CPU)

    yield with_kernels
    attention_check.attention_kernels_work.cache_clear()


def test_right_kernels_are_taken(tried, caplog):
    assert tried(by_maps) and not caplog.records


@pytest.mark.parametrize(
    ("kernels", "words"),
    [
        (lambda *sides, **how: 1.01 * by_maps(*sides, **how), "'kl' is not that of the maps"),
        (without_gradient_of_keys, "'kl' is not that of the maps"),
        (failing, "no such device"),
    ],
)
def test_wrong_ones_are_left_with_a_warning(tried, caplog, kernels, words):
    assert not tried(kernels)
    assert "compared as maps" in caplog.text and words in caplog.text
