"""Cases of two sides' attention, their divergence from maps, and running the kernels in Triton's interpreter."""

from __future__ import annotations

from detr_distill.distill import divergence
from detr_distill.structures import AttentionFactors

import torch

# What runs apart from the tests: Triton reads TRITON_INTERPRET when it is imported. The package's folders stand for
# it without its ``__init__`` files, which import detectron2.
INTERPRET = """
import importlib, sys, torch, types
import triton.runtime.interpreter as interpreter
torch.set_num_threads(1)
for name in ("detr_distill", "detr_distill.distill", "detr_distill.structures"):
    package = types.ModuleType(name)
    package.__path__ = [sys.argv[1] + "/" + name.replace(".", "/")]
    sys.modules[name] = package
# Triton 3.6 makes numbers of arrays that hold one by int(), which NumPy 2.4 refuses.
patch = interpreter._patch_lang_tensor
def patched(tensor, scope):
    patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())
interpreter._patch_lang_tensor = patched
fused = importlib.import_module("detr_distill.distill.attention_fused")
factors = importlib.import_module("detr_distill.structures.attention").AttentionFactors
fused.TILE = 16  # several tiles with fewer numbers
results = {}
for name, (student, teacher, kind, upstream) in torch.load(sys.argv[2]).items():
    leaves = [x.requires_grad_() for x in student[:2]]
    found = fused.attention_divergence(factors(*leaves, student[2]), factors(*teacher), kind=kind, tiny=1e-8)
    results[name] = [found.detach(), *torch.autograd.grad(found, leaves, upstream)]
torch.save(results, sys.argv[3])
"""


def make_case(
    rows, columns, heads=(2, 2), widths=(8, 8), *, images=1, mask=None, kind="kl", dtype=torch.float32, spread=1.0
):
    """Factors of student and teacher as tuples, the kind, and an upstream gradient.

    Args:
        mask: "keys", the last ones of an image, or "queries", others for each; a query sees one key at least.
        spread: of queries and keys; the larger, the sharper the maps.
    """
    generator = torch.Generator().manual_seed(rows)

    def draw(count, side):
        # As heads are split: a head's rows are not in one piece.
        values = torch.randn(images, count, heads[side], widths[side], generator=generator)
        return (spread * values).to(dtype).transpose(1, 2)

    masks = [None, None]
    if mask == "keys":
        lengths = torch.tensor([columns - 3, *[columns] * (images - 1)])
        masks = [(torch.arange(columns) >= lengths[:, None])[:, None, None]] * 2
    elif mask == "queries":
        masks = [torch.rand(size, 1, rows, columns, generator=generator) < 0.3 for size in (images, 1)]
        for values in masks:
            values[..., 0] = False
    student, teacher = ((draw(rows, side), draw(columns, side), masks[side]) for side in (0, 1))
    groups = heads[0] if heads[0] == heads[1] else 1
    return student, teacher, kind, torch.rand(images, groups, rows, generator=generator)


CASES = {
    "several_tiles": make_case(17, 33, heads=(1, 1), widths=(12, 8), mask="keys", images=2),
    "unequal_heads": make_case(9, 17, heads=(3, 2), mask="queries"),
    "unequal_heads_mse": make_case(6, 11, heads=(1, 4), kind="mse"),
    "sharp": make_case(11, 16, widths=(32, 16), spread=3.0),
    "mse": make_case(12, 15, kind="mse", mask="queries", images=2),
    "bfloat16": make_case(13, 15, dtype=torch.bfloat16, mask="keys"),
    "float16": make_case(14, 15, dtype=torch.float16, spread=3.0),
    "no_rows": make_case(0, 5),
}  # fmt: skip
# An image without any pair, all of whose keys are padding.
HIDDEN = torch.tensor([False, True])[:, None, None, None].expand(-1, -1, -1, 7)
_student, _teacher, *_rest = make_case(5, 7, images=2)
BLIND = ((*_student[:2], HIDDEN), (*_teacher[:2], HIDDEN), *_rest)


def compare_maps(student: AttentionFactors, teacher: AttentionFactors, *, kind: str, tiny: float = divergence.TINY):
    """What the fused form computes, from maps."""
    assert tiny == divergence.TINY
    student_map, teacher_map = student.map(), teacher.map()
    if student_map.shape[1] != teacher_map.shape[1]:
        student_map, teacher_map = student_map.mean(1, keepdim=True), teacher_map.mean(1, keepdim=True)
    return {"kl": divergence.kl, "mse": divergence.mse}[kind](teacher_map, student_map)


def expected_of(student, teacher, kind, upstream):
    """Divergence and gradients from maps in float32."""
    leaves = [x.detach().float().requires_grad_() for x in student[:2]]
    sides = AttentionFactors(*leaves, student[2]), AttentionFactors(*(x.float() for x in teacher[:2]), teacher[2])
    found = compare_maps(*sides, kind=kind)
    return [found.detach(), *torch.autograd.grad(found, leaves, upstream)]
