"""Attention compared without maps: the kernels in Triton's interpreter and in its compiler, against maps."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

from detr_distill.structures import AttentionFactors

import pytest
import torch
from helpers.builders import ROOT
from helpers.distill.attention_cases import BLIND, CASES, INTERPRET, expected_of, make_case

HALF = {torch.bfloat16: 2**-7, torch.float16: 2**-10}  # a unit in the last place, of gradients
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """Divergence and gradients of every case, out of one process that interprets the kernels on the CPU."""
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("triton")
    torch.save({**CASES, "blind": BLIND}, folder / "cases.pth")
    words = [sys.executable, "-c", INTERPRET, ROOT / "projects", folder / "cases.pth", folder / "results.pth"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([str(word) for word in words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "results.pth")


def assert_close(found, expected):
    for name, ours, theirs in zip(("divergence", "queries", "keys"), found, expected, strict=True):
        assert ours.shape == theirs.shape and ours.isfinite().all(), name
        last_place = HALF.get(ours.dtype, 0.0)
        scale = theirs.abs().max().item() if theirs.numel() else 0.0
        assert torch.allclose(ours.float(), theirs, rtol=last_place, atol=1e-5 * scale), name


@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_maps(interpreted, name):
    expected = expected_of(*CASES[name])
    assert_close(interpreted[name], expected)
    assert name == "no_rows" or all(x.abs().max() > 0 for x in expected)


def test_a_query_that_sees_nothing_has_no_divergence_and_no_gradient(interpreted):
    for values in interpreted["blind"]:
        assert values[0].abs().max() > 0 and (values[1] == 0).all()


class Translated(Exception):
    """The compiler's first step is done."""


@pytest.mark.parametrize("heads", [(8, 8), (2, 4)])
def test_kernels_are_in_tritons_language(monkeypatch, tmp_path, heads):
    """The interpreter runs more than the compiler takes, whose first step is made here for a GPU that is not there."""
    triton = pytest.importorskip("triton")
    if triton.knobs.runtime.interpret:
        pytest.skip("the interpreter replaces what is to be compiled")
    from detr_distill.distill import attention_fused

    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    gpu = SimpleNamespace(
        get_current_device=lambda: 0, get_current_stream=lambda device: 0, get_current_target=lambda: target
    )
    make_ir, translated = triton.compiler.ASTSource.make_ir, []

    def stop_after(source, *arguments):
        translated.append((source.name, str(make_ir(source, *arguments))))
        raise Translated

    def launch(kernel, grid, place, *arguments):
        with pytest.raises(Translated):
            kernel.warmup(*arguments, grid=grid)
        kernel.device_caches.clear()

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", gpu)
    monkeypatch.setattr(triton.compiler.ASTSource, "make_ir", stop_after)
    monkeypatch.setattr(attention_fused, "_launch", launch)
    student, teacher, kind, upstream = make_case(5, 7, heads=heads, mask="keys", dtype=torch.bfloat16)
    leaves = [x.requires_grad_() for x in student[:2]]
    sides = AttentionFactors(*leaves, student[2]), AttentionFactors(*teacher)
    found = attention_fused.attention_divergence(*sides, kind=kind, tiny=1e-8)
    torch.autograd.grad(found, leaves, upstream)
    assert len(translated) == 5 and all("tt.dot" in text for _, text in translated)


def test_sides_that_do_not_fit_are_refused():
    """A kernel would read outside its tensors."""
    pytest.importorskip("triton")
    from detr_distill.distill.attention_fused import attention_divergence

    student, teacher, *_ = make_case(5, 7, images=2, mask="keys")
    for query, key, mask in (
        (teacher[0][:, :, :4], *teacher[1:]),
        (teacher[0], teacher[1][:, :, :6], None),
        (*teacher[:2], teacher[2][..., :5]),
        (teacher[0][..., :4], *teacher[1:]),
        (*(x[:1] for x in teacher),),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            attention_divergence(AttentionFactors(*student), AttentionFactors(query, key, mask), kind="kl", tiny=1e-8)


@on_cuda
@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_maps_on_cuda(name):
    from detr_distill.distill.attention_fused import attention_divergence

    student, teacher, kind, upstream = CASES[name]
    student, teacher = ([x if x is None else x.cuda() for x in side] for side in (student, teacher))
    leaves = [x.requires_grad_() for x in student[:2]]
    found = attention_divergence(
        AttentionFactors(*leaves, student[2]), AttentionFactors(*teacher), kind=kind, tiny=1e-8
    )
    results = [found.detach(), *torch.autograd.grad(found, leaves, upstream.cuda())]
    expected = [x.cuda() for x in expected_of(*CASES[name])]
    for ours, theirs in zip(results, expected, strict=True):
        last_place = HALF.get(ours.dtype, 0.0)
        scale = theirs.abs().max().item() if theirs.numel() else 0.0
        assert torch.allclose(ours.float(), theirs, rtol=max(last_place, 1e-4), atol=1e-4 * scale)
