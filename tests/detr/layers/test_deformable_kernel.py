"""Which form of deformable attention runs when: the choice, what overrules it, and all that follows it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

from detr_distill.detr.layers import deformable, deformable_kernel
from detr_distill.detr.layers.adamixer import AdaptiveSampling
from detr_distill.detr.layers.deformable import DeformableAttention, attend_with_pytorch
from detr_distill.detr.layers.deformable_kernel import find_triton_form
from detr_distill.distill.teachers.configuration import load_teacher_config
from detr_distill.errors import ConfigError
from detr_distill.structures import Memory

import pytest
import torch
from detectron2.modeling import build_model
from helpers.builders import ROOT, small_cfg
from helpers.detr.deformable_cases import CASES, TRITON_FILE, Sampler


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
        monkeypatch.setattr(deformable_kernel, "triton_works", lambda device, works=works: works)
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
    monkeypatch.setattr(deformable_kernel, "triton_works", lambda device: True)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert find_triton_form(on_gpu(), on_gpu()) is None
    kernel("triton")
    with pytest.raises(ConfigError, match=r'DEFORMABLE_KERNEL is "triton".*Set the key to "auto" or "pytorch"'):
        find_triton_form(on_gpu(), on_gpu())
    assert find_triton_form(on_gpu(requires_grad=False), on_gpu()) is attend_with_triton
    with torch.no_grad():
        assert find_triton_form(on_gpu(), on_gpu()) is attend_with_triton


def test_triton_may_be_missing(kernel, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "detr_distill.detr.deformable_triton", raising=False)
    monkeypatch.delattr("detr_distill.detr.deformable_triton", raising=False)
    with pytest.raises(ConfigError, match=r'DEFORMABLE_KERNEL is "triton", which cannot be imported.*Install triton'):
        kernel("triton")
    kernel("auto")
    deformable_kernel.triton_works.cache_clear()
    assert find_triton_form(on_gpu(), on_gpu()) is find_triton_form(on_gpu(), on_gpu()) is None
    assert len(caplog.records) == 1 and "PyTorch's operators" in caplog.text
    deformable_kernel.triton_works.cache_clear()
    importers = {
        file.name for file in (ROOT / "projects/detr_distill").rglob("*.py") if "\nimport triton" in file.read_text()
    }
    assert importers == {TRITON_FILE.name, "assignment_triton.py", "attention_triton.py"}


def test_the_choice_is_made_when_a_detector_is_built(kernel, tmp_path):
    pytest.importorskip("triton")
    for word in ("triton", "pytorch"):
        build_model(small_cfg(MODEL__DETR__DEFORMABLE_KERNEL=word))
        assert (find_triton_form(on_gpu(), on_gpu()) is None) == (word == "pytorch")
    with pytest.raises(ConfigError, match=r"DEFORMABLE_KERNEL is 'cuda'. Known: 'auto', 'pytorch', 'triton'"):
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
        file.name for file in (ROOT / "projects/detr_distill/detr").rglob("*.py") if "grid_sample(" in file.read_text()
    ]
    assert others == ["deformable.py"]


def test_export_takes_pytorch(kernel):
    kernel("triton")
    values, _, locations, weights, _ = CASES["odd_sizes"]
    program = torch.export.export(Sampler(), (values, locations, weights))
    found = program.module()(values, locations, weights)
    assert torch.allclose(found, Sampler()(values, locations, weights), atol=1e-6)
