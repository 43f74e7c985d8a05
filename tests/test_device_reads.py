"""A step whose matchings are solved on the device reads nothing back, and its losses are those of the host's solver."""

from __future__ import annotations

import pytest
import torch
from detectron2.utils.events import EventStorage
from helpers.builders import make_inputs
from helpers.detr.device_solver import pretend_to_assign, solve_as_on_device
from helpers.golden_cases import DIGITS
from helpers.host_reads import host_reads
from helpers.make_golden import SIZES, build_untrained, golden_losses
from helpers.pretended_cuda import pretended_cuda

NAMES = ["d3etr_conditional", "detrdistill_deformable", "kd_detr_conditional", "detrdistill_adamixer", "dino_student"]


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_step_reads_nothing(name, monkeypatch):
    solve_as_on_device(monkeypatch)
    cfg, model = build_untrained(DIGITS / f"{name}.yaml")
    inputs = make_inputs(SIZES, num_classes=cfg.MODEL.DETR.NUM_CLASSES)
    with EventStorage(), host_reads() as reads:
        losses = model(inputs)
        sum(losses.values()).backward()
    assert not reads


def test_losses_are_those_of_the_host_solver(monkeypatch):
    expected = golden_losses("d3etr_conditional")
    solve_as_on_device(monkeypatch)
    assert golden_losses("d3etr_conditional") == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", ["d3etr_conditional", "detrdistill_adamixer"])
def test_a_forward_pass_copies_to_cuda_from_pinned_memory_alone(name, monkeypatch):
    """Of the backward pass, pretended tensors have none; the count of reads above sees it."""
    solve_as_on_device(monkeypatch, assign=pretend_to_assign)
    cfg, model = build_untrained(DIGITS / f"{name}.yaml")
    inputs = make_inputs(SIZES, num_classes=cfg.MODEL.DETR.NUM_CLASSES)
    with EventStorage(), pretended_cuda(model, model.teacher.detector) as copies:
        model(inputs)
    assert len(copies) >= 8 and set(copies) == {"transfer.py"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", NAMES)
def test_a_step_on_cuda_waits_for_nothing(name):
    cfg, model = build_untrained(DIGITS / f"{name}.yaml")
    model = model.cuda()
    inputs = make_inputs(SIZES, num_classes=cfg.MODEL.DETR.NUM_CLASSES)
    with EventStorage():
        for mode in ("default", "error"):  # kernels are compiled, and constants made, in the first step
            torch.cuda.set_sync_debug_mode(mode)
            try:
                sum(model(inputs).values()).backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
