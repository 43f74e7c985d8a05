"""The assignment on the device: Triton's kernel in its interpreter against SciPy, and what the step makes of it."""

from __future__ import annotations

import os
import subprocess
import sys

from detr_distill.detr.supervision import solver
from detr_distill.detr.supervision.assignment import Cost, solve_assignments
from detr_distill.detr.supervision.cost_flags import CostFlags, count_flags

import pytest
import torch
from helpers.builders import ROOT
from helpers.detr.device_solver import assign_on_host, solve_as_on_device

from benchmarks.assignment import KINDS, make_cases, total_difference

# What runs apart from the tests: Triton reads TRITON_INTERPRET when it is imported.
INTERPRET = """
import sys, torch
from detr_distill.detr.supervision.assignment import Cost
from detr_distill.detr.supervision.cost_flags import collect_cost_flags
from detr_distill.detr.supervision.solver import solve_on_device, triton_works
torch.set_num_threads(1)
with collect_cost_flags() as flags:
    pairs = [solve_on_device(Cost(*case)) for case in torch.load(sys.argv[1])]
torch.save(([vars(found) for found in pairs], [found.describe() for found in flags]), sys.argv[2])
assert triton_works(torch.device("cpu"))
"""
PROBLEMS = 28
SPECIAL = {
    "one": (torch.tensor([[[[0.5]]]]), [1]),
    "none": (torch.zeros(2, 1, 3, 0), [0]),
    "one_image_of_two": (torch.rand(2, 2, 5, 3, generator=torch.Generator().manual_seed(0)), [0, 3]),
    "more_targets": (torch.rand(1, 3, 3, 6, generator=torch.Generator().manual_seed(1)), [6, 2, 3]),
    "nan": (torch.ones(2, 2, 3, 2), [2, 2]),
    "infinite": (torch.ones(1, 1, 4, 4), [4]),
}
SPECIAL["nan"][0][1, 0, 2, 0] = float("nan")
SPECIAL["infinite"][0][..., 1, :] = -float("inf")


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """The pairs of every case and the flags, out of one process that interprets the kernel on the CPU."""
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("triton")
    cases = [(kind, costs, counts) for kind, costs, counts in make_cases(PROBLEMS, 6)]
    cases += [(name, *case) for name, case in SPECIAL.items()]
    torch.save(cases, folder / "cases.pth")
    command = [sys.executable, "-W", "ignore", "-c", INTERPRET, folder / "cases.pth", folder / "results.pth"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(ROOT / "projects")
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pairs, flags = torch.load(folder / "results.pth")
    return {name: (*case, found) for (name, *case), found in zip(cases, pairs, strict=True)}, flags


@pytest.mark.parametrize("kind", [*KINDS, "one", "one_image_of_two", "more_targets"])
def test_pairs_cost_as_little_as_scipys(interpreted, kind):
    costs, counts, found = interpreted[0][kind]
    length, by_query = found["query"].shape[2], found["target_in_order"] is False
    assert length == (costs.shape[2] if by_query else costs.shape[3])
    own, other = ("query", "target") if by_query else ("target", "query")
    assert torch.equal(found[own], torch.arange(length).expand_as(found[own]))
    for layer in range(len(costs)):
        part = costs[layer : layer + 1], counts, found[other][layer, None], found["weight"][layer, None], by_query
        assert total_difference(*part) < 1e-6
    padding = found["weight"] == 0
    assert not found[other][padding].any()
    real = [min(count, costs.shape[2]) for count in counts]
    assert (found["weight"] > 0).sum(-1).tolist() == [real] * len(costs)


def test_nothing_to_pair(interpreted):
    assert interpreted[0]["none"][-1]["query"].shape == (2, 1, 0)


def test_costs_that_are_not_finite_are_flagged(interpreted):
    """By layer and image, with the words of the host's error, and what follows from them is not finite either."""
    results, flags = interpreted
    words = [sentence for sentences in flags for sentence in sentences]
    assert len(words) == 2
    assert words[0].startswith("The matching cost 'nan' of decoder layer 1 and image 0 of the batch is not finite.")
    assert words[1].startswith("The matching cost 'infinite' of decoder layer 0 and image 0 of the batch")
    assert results["nan"][-1]["weight"].isnan().any(-1).tolist() == [[False, False], [True, False]]
    assert results["infinite"][-1]["weight"].isnan().all()


@pytest.mark.parametrize("fault", ["raises", "wrong"])
def test_a_kernel_that_fails_its_trial_is_not_used(fault, monkeypatch, caplog):
    """Costs on CUDA are then solved on the host, which is said once."""

    def assign(costs, counts, by_query):
        if fault == "raises":
            raise RuntimeError("no C compiler")
        partners, weights, flags = assign_on_host(costs, counts, by_query)
        return partners.flip(-1), weights.flip(-1), flags

    solve_as_on_device(monkeypatch, assign)
    solver.triton_works.cache_clear()
    assert not solver.triton_works(torch.device("cpu")) and not solver.triton_works(torch.device("cpu"))
    assert len(caplog.records) == 1 and "Matchings are solved on the host" in caplog.text
    solve_as_on_device(monkeypatch)
    solver.triton_works.cache_clear()
    assert solver.triton_works(torch.device("cpu"))
    solver.triton_works.cache_clear()


def test_flags_are_counted():
    flags = [CostFlags("a", torch.tensor([[0.0, 1.0]])), CostFlags("b", torch.ones(2, 1))]
    assert count_flags(flags, torch.device("cpu")) == 3
    assert count_flags([], torch.device("cpu")) == 0


def test_both_forms_lead_to_the_same_rows(interpreted):
    """What is compared is the same, in another order."""
    costs, counts, found = interpreted[0]["padded"]
    (expected,) = solve_assignments([Cost("padded", costs, counts)])
    values = torch.randn(1, costs.shape[1], costs.shape[2], 2)
    rows = torch.gather(values, 2, found["query"].unsqueeze(-1).expand(-1, -1, -1, 2)) * found["weight"].unsqueeze(-1)
    assert torch.allclose(rows.sum(2), (expected.take_query(values) * expected.weight.unsqueeze(-1)).sum(2), atol=1e-5)


def test_kernel_compiles_for_hopper(monkeypatch, tmp_path):
    """With everything that a problem of 512 columns has in registers."""
    triton = pytest.importorskip("triton")
    if triton.knobs.runtime.interpret:
        pytest.skip("the interpreter replaces what is to be compiled")
    from detr_distill.detr.supervision.assignment_triton import LANES_A_WARP, assignment_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pointers = {"costs": "*fp32", "counts": "*i64", "partners": "*i64", "weights": "*fp32", "flags": "*fp32"}
    constants = {"has_counts": True, "by_query": False, "block": 512}
    names = assignment_kernel.arg_names
    types = {**dict.fromkeys(names, "i32"), **pointers, **dict.fromkeys(constants, "constexpr")}
    source = triton.compiler.ASTSource(assignment_kernel, types, {(names.index(n),): v for n, v in constants.items()})
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": 512 // LANES_A_WARP})
    assert "ld.local" not in compiled.asm["ptx"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_kernel_equals_scipy_on_cuda():
    from benchmarks.assignment import check

    assert max(found["difference"] for found in check(140, "cuda").values()) < 1e-5
