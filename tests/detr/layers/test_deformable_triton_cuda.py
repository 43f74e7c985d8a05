"""Triton's kernels of deformable attention on CUDA, and what their benchmark says where there is none."""

from __future__ import annotations

import os
import subprocess
import sys

from detr_distill.detr.layers.deformable import DeformableAttention, attend_with_pytorch
from detr_distill.structures import Memory

import pytest
import torch
from helpers.builders import ROOT
from helpers.detr.deformable_cases import CASES, HALF, Sampler, assert_close, make_case, results_of

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def test_benchmark_says_that_it_needs_cuda(tmp_path):
    """It runs without detectron2, and so do the files that it measures."""
    command = "import runpy, sys; sys.modules['detectron2'] = None; del sys.argv[0]; "
    command += "sys.path.insert(0, sys.argv[0].rpartition('/')[0]); "
    command += "runpy.run_path(sys.argv[0], run_name='__main__')"
    file = str(ROOT / "benchmarks/deformable_attention.py")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""}
    words = [sys.executable, "-c", command, file, "--json", str(tmp_path / "result.json")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "needs CUDA" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "result.json").exists()


@on_cuda
@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_pytorch_on_cuda(name):
    from detr_distill.detr.layers.deformable_triton import attend_with_triton

    case = [x.cuda() if isinstance(x, torch.Tensor) else x for x in CASES[name]]
    assert_close(results_of(attend_with_triton, *case), results_of(attend_with_pytorch, *case), rtol=1e-5)


@on_cuda
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_an_encoder_of_a_large_image_on_cuda(dtype):
    from detr_distill.detr.layers.deformable_triton import attend_with_triton

    shapes = [(100, 167), (50, 84), (25, 42), (13, 21)]
    case = make_case(shapes, images=2, queries=22_223, heads=8, channels=32, points=4, dtype=dtype, device="cuda")
    # The locations' gradient jumps at the cells' centres: rounding puts some of millions of points on the other side.
    limits = {"output": 1e-5, "values": 1e-4, "locations": 2e-2, "weights": 1e-4}
    found, expected = (results_of(form, *case) for form in (attend_with_triton, attend_with_pytorch))
    for (name, limit), ours, theirs in zip(limits.items(), found, expected, strict=True):
        error = (ours.double() - theirs.double()).norm() / theirs.double().norm()
        assert error < max(limit, HALF.get(ours.dtype, 0.0)), name


@on_cuda
def test_a_layer_follows_the_choice_and_autocast_on_cuda(kernel):
    torch.manual_seed(0)
    layer = DeformableAttention(32, 4, 2, 3).cuda()
    tokens, query = torch.randn(2, 15, 32, device="cuda"), torch.randn(2, 5, 32, device="cuda")
    reference = torch.rand(2, 5, 2, 2, device="cuda")
    sizes = torch.tensor([[4.0, 3.0], [3.0, 1.0]], device="cuda")
    memory = Memory(tokens, tokens, None, [(3, 4), (1, 3)], level_sizes=sizes)
    for precision, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)):
        results = {}
        for word in ("auto", "triton", "pytorch"):
            kernel(word)
            layer.zero_grad()
            with torch.autocast("cuda", precision, enabled=precision != torch.float32):
                output = layer(query, reference, tokens, memory)
            output.float().square().sum().backward()
            results[word] = [output.detach().float(), *(p.grad.clone() for p in layer.parameters())]
            assert output.dtype == precision
        for word in ("auto", "triton"):
            for ours, theirs in zip(results[word], results["pytorch"], strict=True):
                assert (ours - theirs).norm() <= tolerance * theirs.norm() + 1e-6


@on_cuda
def test_compiled_graphs_hold_pytorch_on_cuda(kernel):
    kernel("triton")
    values, _, locations, weights, _ = (x.cuda() if isinstance(x, torch.Tensor) else x for x in CASES["odd_sizes"])
    found = torch.compile(Sampler(), fullgraph=True, backend="aot_eager")(values, locations, weights)
    assert torch.allclose(found, Sampler()(values, locations, weights), atol=1e-5)
