"""Deformable attention by Triton: forward and gradients against PyTorch's form, in Triton's interpreter and on CUDA,
what the compiler makes of the kernels, and which form runs when."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

from detr_distill.detr import deformable, deformable_kernel
from detr_distill.detr.adamixer import AdaptiveSampling
from detr_distill.detr.deformable import DeformableAttention, attend_with_pytorch, multi_scale_deformable_attention
from detr_distill.detr.deformable_kernel import choose_deformable_kernel, find_triton_form
from detr_distill.distill.frozen import load_teacher_config
from detr_distill.errors import ConfigError
from detr_distill.structures import Memory

import pytest
import torch
from builders import ROOT, small_cfg
from detectron2.modeling import build_model

TRITON_FILE = ROOT / "projects/detr_distill/detr/deformable_triton.py"
HALF = {torch.bfloat16: 2**-7, torch.float16: 2**-10}  # a unit in the last place
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

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


def make_case(
    shapes, *, images=1, queries=3, heads=1, channels=4, points=2, dtype=torch.float32, locations=None, device="cpu"
):
    """Arguments and an upstream gradient; points lie inside, at the border, and outside."""
    generator = torch.Generator().manual_seed(queries)
    grid = (images, queries, heads, len(shapes), points)
    values = torch.randn(images, sum(h * w for h, w in shapes), heads, channels, generator=generator).to(dtype)
    if locations is None:
        locations = torch.rand(*grid, 2, generator=generator) * 1.8 - 0.4
    weights = torch.rand(grid, generator=generator)
    upstream = torch.randn(images, queries, heads * channels, generator=generator).to(dtype)
    values, locations, weights, upstream = (x.to(device) for x in (values, locations, weights, upstream))
    return values, list(shapes), locations, weights, upstream


def border_locations(side: int) -> torch.Tensor:
    """(1, Q, 1, 1, 1, 2): all pairs of corners, centres and borders of cells, and of as much beyond the level's border.

    Halves of cells are exact in float32 where the side is a power of two: both forms see the same side of a kink.
    """
    steps = torch.arange(-2, 2 * side + 3) / (2 * side)
    return torch.cartesian_prod(steps, steps).view(1, -1, 1, 1, 1, 2)


FAR = torch.tensor([1e4, -1e4, 1e30])
CASES = {
    "odd_sizes": make_case([(3, 7), (5, 2)], images=2, queries=5, heads=3, channels=5, points=3),
    "several_blocks": make_case([(2, 3)], images=2, queries=19, heads=2, channels=36, points=1),
    "borders": make_case([(4, 4)], queries=169, channels=3, points=1, locations=border_locations(4)),
    "far_outside": make_case([(1, 1), (2, 3)], locations=FAR.repeat(8).view(1, 3, 1, 2, 2, 2)),
    "bfloat16": make_case([(3, 4), (2, 1)], heads=2, dtype=torch.bfloat16),
    "float16": make_case([(3, 4), (2, 1)], heads=2, dtype=torch.float16),
    "no_queries": make_case([(3, 4), (2, 1)], images=2, queries=0),
}  # fmt: skip


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


@pytest.fixture
def kernel():
    """Chooses a form for a test; the choice before it comes back."""
    before = deformable_kernel._chosen
    yield choose_deformable_kernel
    choose_deformable_kernel(before)


def results_of(form, values, shapes, locations, weights, upstream):
    leaves = [x.detach().requires_grad_() for x in (values, locations, weights)]
    output = form(leaves[0], shapes, *leaves[1:])
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


def assert_close(found, expected, rtol=None):
    """Each of output, gradients of values, locations and weights, relative to its largest entry in float32."""
    for name, ours, theirs in zip(("output", "values", "locations", "weights"), found, expected, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, name
        last_place = HALF.get(ours.dtype, 0.0)
        scale = theirs.float().abs().max().item() if theirs.numel() else 0.0
        assert torch.allclose(ours.float(), theirs.float(), rtol=last_place or 1e-5, atol=(rtol or 2e-6) * scale), name


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
    from detr_distill.detr import deformable_triton as module

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sizes = {"heads": 8, "channels": 32, "levels": 4, "points": 4, "query_block": 16, "channel_block": 32}
    other = {"sizes": ("fp32",) * 8, "queries": "i32", "tokens": "i32", **dict.fromkeys(sizes, "constexpr")}
    for kernel, vectorised in ((module._forward_kernel, "ld.global.v4"), (module._backward_kernel, "add.v4.f32")):
        names = kernel.arg_names
        aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if name not in other}
        constants = {(names.index(name),): value for name, value in sizes.items()}
        source = triton.compiler.ASTSource(
            kernel, {name: other.get(name, "*fp32") for name in names}, constants, aligned
        )
        target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
        compiled = triton.compile(source, target=target, options={"num_warps": module.WARPS})
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


def on_gpu(**changes):
    """What the choice asks of a tensor."""
    values = {"is_cuda": True, "dtype": torch.float32, "requires_grad": True, "device": torch.device("cuda")}
    return SimpleNamespace(**{**values, **changes})


def test_choice_of_the_form(kernel, monkeypatch):
    attend_with_triton = pytest.importorskip("detr_distill.detr.deformable_triton").attend_with_triton
    for word, works, expected in (
        ("auto", True, attend_with_triton),
        ("auto", False, None),
        ("triton", False, attend_with_triton),
        ("pytorch", True, None),
    ):
        kernel(word)
        monkeypatch.setattr(deformable_kernel, "_triton_works", lambda device, works=works: works)
        assert find_triton_form(on_gpu(), on_gpu()) is expected
    kernel("triton")
    assert find_triton_form(on_gpu(dtype=torch.bfloat16), on_gpu()) is attend_with_triton
    assert find_triton_form(on_gpu(is_cuda=False), on_gpu(is_cuda=False)) is None
    assert find_triton_form(on_gpu(dtype=torch.float64), on_gpu()) is None
    assert find_triton_form(on_gpu(), on_gpu(dtype=torch.float64)) is None
    for module, name in ((torch.compiler, "is_compiling"), (torch.jit, "is_tracing")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda: True)
            assert find_triton_form(on_gpu(), on_gpu()) is None


def test_deterministic_gradients_are_left_to_pytorch(kernel, monkeypatch):
    attend_with_triton = pytest.importorskip("detr_distill.detr.deformable_triton").attend_with_triton
    monkeypatch.setattr(deformable_kernel, "_triton_works", lambda device: True)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert find_triton_form(on_gpu(), on_gpu()) is None
    kernel("triton")
    with pytest.raises(ConfigError, match='DEFORMABLE_KERNEL is "triton".*Set the key to "auto" or "pytorch"'):
        find_triton_form(on_gpu(), on_gpu())
    assert find_triton_form(on_gpu(requires_grad=False), on_gpu()) is attend_with_triton
    with torch.no_grad():
        assert find_triton_form(on_gpu(), on_gpu()) is attend_with_triton


def test_triton_may_be_missing(kernel, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "detr_distill.detr.deformable_triton", raising=False)
    monkeypatch.delattr("detr_distill.detr.deformable_triton", raising=False)
    with pytest.raises(ConfigError, match='DEFORMABLE_KERNEL is "triton", which cannot be imported.*Install triton'):
        kernel("triton")
    kernel("auto")
    deformable_kernel._triton_works.cache_clear()
    assert find_triton_form(on_gpu(), on_gpu()) is find_triton_form(on_gpu(), on_gpu()) is None
    assert len(caplog.records) == 1 and "PyTorch's operators" in caplog.text
    deformable_kernel._triton_works.cache_clear()
    importers = {
        file.name for file in (ROOT / "projects/detr_distill").rglob("*.py") if "\nimport triton" in file.read_text()
    }
    assert importers == {TRITON_FILE.name}


def test_the_choice_is_made_when_a_detector_is_built(kernel, tmp_path):
    build_model(small_cfg(MODEL__DETR__DEFORMABLE_KERNEL="pytorch"))
    assert deformable_kernel._chosen == "pytorch"
    with pytest.raises(ConfigError, match='DEFORMABLE_KERNEL is "cuda". Set it to one of auto, triton, pytorch'):
        build_model(small_cfg(MODEL__DETR__DEFORMABLE_KERNEL="cuda"))
    (tmp_path / "teacher.yaml").write_text(small_cfg().dump())
    cfg = small_cfg(
        MODEL__DETR__DEFORMABLE_KERNEL="pytorch", MODEL__DISTILL__TEACHER__CONFIG_FILE=str(tmp_path / "teacher.yaml")
    )
    assert load_teacher_config(cfg).MODEL.DETR.DEFORMABLE_KERNEL == "pytorch", "a teacher must not undo the choice"


def test_all_that_samples_follows_the_choice(monkeypatch):
    used = []
    form = lambda *arguments: used.append(1) or attend_with_pytorch(*arguments)  # noqa: E731
    monkeypatch.setattr(deformable, "find_triton_form", lambda values, locations: form)
    tokens, sizes = torch.randn(1, 15, 8), torch.tensor([[4.0, 3.0], [3.0, 1.0]])
    memory = Memory(tokens, tokens, None, [(3, 4), (1, 3)], level_sizes=sizes)
    DeformableAttention(8, 2, 2, 3)(torch.randn(1, 5, 8), torch.rand(1, 5, 2, 2), tokens, memory)
    assert len(used) == 1
    AdaptiveSampling(8, 2, 3)(torch.randn(1, 5, 8), torch.rand(1, 5, 4), tokens, memory)
    assert len(used) == 2
    others = [
        file.name for file in (ROOT / "projects/detr_distill/detr").glob("*.py") if "grid_sample(" in file.read_text()
    ]
    assert others == ["deformable.py"]


class Sampler(torch.nn.Module):
    def forward(self, values, locations, weights):
        return multi_scale_deformable_attention(values, [(3, 7), (5, 2)], locations, weights)


def test_export_takes_pytorch(kernel):
    kernel("triton")
    values, _, locations, weights, _ = CASES["odd_sizes"]
    program = torch.export.export(Sampler(), (values, locations, weights))
    found = program.module()(values, locations, weights)
    assert torch.allclose(found, Sampler()(values, locations, weights), atol=1e-6)


def test_benchmark_says_that_it_needs_cuda(tmp_path):
    """It runs without detectron2, and so do the files that it measures."""
    command = "import runpy, sys; sys.modules['detectron2'] = None; del sys.argv[0]; "
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
    from detr_distill.detr.deformable_triton import attend_with_triton

    case = [x.cuda() if isinstance(x, torch.Tensor) else x for x in CASES[name]]
    assert_close(results_of(attend_with_triton, *case), results_of(attend_with_pytorch, *case), rtol=1e-5)


@on_cuda
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_an_encoder_of_a_large_image_on_cuda(dtype):
    from detr_distill.detr.deformable_triton import attend_with_triton

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
