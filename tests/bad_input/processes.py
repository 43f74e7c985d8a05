"""Kernels that do not run here, and command lines that contradict torchrun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from detr_distill.config.build import build_config
from detr_distill.distill.losses.attention import compares_without_maps
from detr_distill.engine.launch import argument_parser
from detr_distill.engine.processes.torchrun import Place

import torch
from helpers.builders import ROOT

from bad_input import Row

D3ETR = str(ROOT / "configs/digits/d3etr_conditional.yaml")


def joined(*words: str) -> Callable[[Path], object]:
    """A process of eight that torchrun started, with a command line of its own."""
    return lambda folder: Place(0, 8, 0, 8).adapt(argument_parser().parse_args(list(words)))


ROWS = [
    Row(
        "attention_kernel_without_cuda",
        lambda folder: compares_without_maps("triton", torch.device("cpu")),
        r'MODEL.DISTILL.ATTENTION_LOSS.KERNEL is "triton".*MODEL.DEVICE is cpu. Set the key to "auto" or "pytorch"',
    ),
    Row(
        "attention_kernel_unknown",
        lambda folder: build_config(D3ETR, ["MODEL.DISTILL.ATTENTION_LOSS.KERNEL", "cuda"]),
        r"ATTENTION_LOSS.KERNEL is 'cuda'. Known: 'auto', 'pytorch', 'triton'",
    ),
    Row("gpus_beside_torchrun", joined("--num-gpus", "4"), r"--num-gpus 4: torchrun started 8.*Leave --num-gpus away"),
    Row("machines_beside_torchrun", joined("--num-machines", "2"), r"--num-machines and --machine-rank are for a run"),
    Row("machine_rank_beside_torchrun", joined("--machine-rank", "1"), r"counts machines by its own --nnodes"),
]
