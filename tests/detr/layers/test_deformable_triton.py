"""Triton's kernels of deformable attention: against PyTorch's form in the interpreter, and what the compiler makes."""

from __future__ import annotations

import os
import subprocess
import sys

from detr_distill.detr.layers.deformable import attend_with_pytorch

import pytest
import torch
from helpers.detr.deformable_cases import CASES, TRITON_FILE, assert_close, make_case, results_of

# What runs apart from the tests: Triton reads TRITON_INTERPRET when it is imported. The file is loaded by its path,
# with detectron2 and the package out of reach.
INTERPRET = """
import importlib.util, sys, torch
sys.modules["detectron2"] = sys.modules["detr_distill"] = None
spec = importlib.util.spec_from_file_location("deformable_triton", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
torch.set_num_threads(1)
results = {}
for name, (values, shapes, locations, weights, upstream) in torch.load(sys.argv[2]).items():
    leaves = [x.requires_grad_() for x in (values, locations, weights)]
    output = module.attend_with_triton(values, shapes, locations, weights)
    results[name] = [output.detach(), *torch.autograd.grad(output, leaves, upstream)]
torch.save(results, sys.argv[3])
"""


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """Triton's output and gradients of every case, out of one process that interprets the kernels on the CPU."""
    folder = tmp_path_factory.mktemp("triton")
    torch.save(CASES, folder / "cases.pth")
    command = [sys.executable, "-c", INTERPRET, TRITON_FILE, folder / "cases.pth", folder / "results.pth"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "results.pth")


@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_pytorch(interpreted, name):
    expected = results_of(attend_with_pytorch, *CASES[name])
    assert all(x.isfinite().all() for x in interpreted[name])
    assert_close(interpreted[name], expected)
    if name not in ("far_outside", "no_queries"):
        assert all(x.abs().max() > 0 for x in expected)


def test_kernels_compile_for_hopper(monkeypatch, tmp_path):
    """Channels are read and the values' gradient is added four numbers at a time."""
    triton = pytest.importorskip("triton")
    if triton.knobs.runtime.interpret:
        pytest.skip("the interpreter replaces what is to be compiled")
    from detr_distill.detr.layers import deformable_triton as module

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sizes = {
        "heads": 8,
        "channels": 32,
        "levels": 4,
        "points": 4,
        "query_block": 4,
        "point_block": 4,
        "channel_block": 32,
    }
    other = {"sizes": ("fp32",) * 8, "queries": "i32", "tokens": "i32", **dict.fromkeys(sizes, "constexpr")}
    for kernel, vectorised in ((module.forward_kernel, "ld.global.v4"), (module.backward_kernel, "add.v4.f32")):
        names = kernel.arg_names
        aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if name not in other}
        constants = {(names.index(name),): value for name, value in sizes.items()}
        source = triton.compiler.ASTSource(
            kernel, {name: other.get(name, "*fp32") for name in names}, constants, aligned
        )
        target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
        compiled = triton.compile(source, target=target, options={"num_warps": 4})
        assert vectorised in compiled.asm["ptx"]


def test_shapes_that_do_not_fit_are_refused():
    """A kernel would read outside its tensors."""
    attend_with_triton = pytest.importorskip("detr_distill.detr.deformable_triton").attend_with_triton
    values, shapes, locations, weights, _ = make_case([(3, 4), (2, 1)], heads=2)
    for changed in (
        (values, [(3, 4), (2, 2)], locations, weights),
        (values, [(3, 4)], locations, weights),
        (values, shapes, locations[:, :2], weights),
        (values[:, :, :1], shapes, locations, weights),
        (values.expand(2, -1, -1, -1), shapes, locations, weights),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            attend_with_triton(*changed)
