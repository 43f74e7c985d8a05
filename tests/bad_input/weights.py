"""Files of weights: what they hold, and whether it fits."""

from __future__ import annotations

from pathlib import Path

from detr_distill.checkpoint import SafeCheckpointer, load_strict
from detr_distill.checkpoint.files import read_checkpoint
from detr_distill.commands import export_student

import torch
from torch import nn

from bad_input import Row


def detector(width=4):
    return nn.ModuleDict({"backbone": nn.Linear(3, width), "head": nn.Linear(width, 2)})


def spoiled(value, name="head.bias"):
    weights = detector().state_dict()
    weights[name].view(-1)[0] = value
    return weights


def file(content, use=read_checkpoint):
    """A file of some content, and what is done with it."""

    def call(folder):
        path = folder / "weights.pth"
        torch.save(content() if callable(content) else content, path)
        return use(str(path))

    return call


def evaluate(path):
    SafeCheckpointer(detector()).load_complete(path)


def initialise(path):
    SafeCheckpointer(detector()).load(path)


def resume(path):
    SafeCheckpointer(detector(), str(Path(path).parent)).resume(path)


def teach(path):
    load_strict(detector(), path)


def export(path):
    """The tool's own error, which its command prints."""
    try:
        export_student.main(["--weights", path, "--output", f"{path}.out.pth"])
    except SystemExit as end:
        raise end.__cause__ or end from None


NAN = float("nan")
DETREX = {"transformer.decoder.layers.0.attentions.0.attn.in_proj_weight": torch.zeros(3)}
TRANSFORMERS = {"model.decoder.layers.0.fc1.weight": torch.zeros(3)}
ROWS = [
    Row("nan_evaluated", file({"model": spoiled(NAN)}, evaluate), r"weights\.pth: 1 of 4 tensors hold NaN.*head\.bias"),
    Row("nan_of_a_teacher", file({"model": spoiled(NAN)}, teach), r"weights\.pth: 1 of 4 tensors hold NaN"),
    Row("nan_exported", file({"model": spoiled(NAN)}, export), r"weights\.pth: 1 of 4 tensors hold NaN"),
    Row("nan_to_start_from", file({"model": spoiled(NAN)}, initialise), r"weights\.pth: 1 of 4 tensors hold NaN"),
    Row("nan_to_resume_from", file({"model": spoiled(NAN)}, resume), r"(?s)weights\.pth: 1 of 4.*No other checkpoint"),
    *(
        Row(
            f"{name}_numbers",
            file(lambda make=make: {"model": {"a": make(torch.ones(2, 2))}}),
            rf"a is a tensor of {name}",
        )
        for name, make in (
            ("float8_e4m3fn", lambda x: x.to(torch.float8_e4m3fn)),
            ("complex64", lambda x: x.to(torch.complex64)),
            ("qint8", lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)),
            ("sparse_coo", lambda x: x.to_sparse()),
            ("a shape without numbers", lambda x: x.to("meta")),
        )
    ),
    Row("infinite", file({"state_dict": spoiled(float("-inf"))}, evaluate), "hold NaN or infinite numbers"),
    Row("nothing_fits", file({"a": torch.zeros(1)}, initialise), "nothing that this model could use: the file has a;"),
    Row(
        "another_width", file(lambda: detector(9).state_dict(), evaluate), r"head\.weight \(2, 9\) instead of \(2, 4\)"
    ),
    Row(
        "other_widths", file(lambda: {"head.bias": torch.zeros(7)}, initialise), r"has head\.bias \(7,\); the model has"
    ),
    Row("of_detrex", file(DETREX, initialise), "a checkpoint of detrex: bring it over .* --source detrex"),
    Row("of_transformers", file(TRANSFORMERS, teach), r"import_checkpoint\.py --source transformers"),
    Row("two_kinds", file({"a": {"w": torch.ones(1)}, "b": {"w": torch.ones(1)}}), "under 'a' and 'b', and it is not"),
    Row("no_weights", file({"epoch": 3, "args": {}}), "under 'epoch' it has a int, not a tensor"),
    Row("a_name_twice", file({"module.a": torch.ones(1), "a": torch.zeros(1)}), "two tensors for a"),
    Row("empty_model", file({"model": {}}), "its weights are an empty dict"),
    Row("a_list", file([torch.ones(1)]), "holds a list, not a dictionary"),
]
