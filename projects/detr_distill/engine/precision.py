"""Mixed precision and gradient clipping of one training step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..checkpoint.export import undistributed
from ..errors import ConfigError
from ..protocols import student_in

CLIP_TYPES = ("full_model", "norm", "value")


class Precision:
    """Autocast around the forward pass and, for float16, loss scaling around the backward pass.

    Args:
        device: where the model computes.
        dtype: ``"float16"``, ``"bfloat16"``, or None for plain float32.

    Raises:
        ConfigError: an unknown type, or float16 on a CPU.
    """

    def __init__(self, device: torch.device | str, dtype: str | None = None):
        self.device_type = torch.device(device).type
        if dtype not in (None, "float16", "bfloat16"):
            raise ConfigError(f'SOLVER.AMP.DTYPE is "{dtype}". Use "float16" or "bfloat16".')
        if dtype == "float16" and self.device_type != "cuda":
            raise ConfigError(
                f"SOLVER.AMP.DTYPE float16 needs a CUDA device and the model is on {self.device_type}. "
                "Set SOLVER.AMP.DTYPE bfloat16, or SOLVER.AMP.ENABLED False."
            )
        self.dtype = getattr(torch, dtype) if dtype else None
        self.scaler = torch.amp.GradScaler("cuda", enabled=dtype == "float16")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Precision:
        return cls(cfg.MODEL.DEVICE, cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else None)

    @property
    def tolerates_infinite_gradients(self) -> bool:
        """True when a step with infinite gradients is skipped and the loss scale lowered: float16's normal course."""
        return self.scaler.is_enabled()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)


class GradientClipper:
    """Clips gradients in place and says how large they were.

    Args:
        clip_type: ``"full_model"`` bounds the norm of all gradients together, ``"norm"`` that of each parameter,
            ``"value"`` each entry; None only measures.
        clip_value: the bound. norm_type: the p of the p-norm that bounds.

    Raises:
        ConfigError: an unknown type.
    """

    def __init__(self, clip_type: str | None = None, clip_value: float = 0.0, norm_type: float = 2.0):
        if clip_type is not None and clip_type not in CLIP_TYPES:
            raise ConfigError(f'SOLVER.CLIP_GRADIENTS.CLIP_TYPE is "{clip_type}". Use one of {", ".join(CLIP_TYPES)}.')
        self.clip_type = clip_type
        self.clip_value = clip_value
        self.norm_type = norm_type

    @classmethod
    def from_config(cls, cfg: CfgNode) -> GradientClipper:
        node = cfg.SOLVER.CLIP_GRADIENTS
        return cls(node.CLIP_TYPE if node.ENABLED else None, node.CLIP_VALUE, node.NORM_TYPE)

    def __call__(self, *parts: Iterable[nn.Parameter]) -> Tensor:
        """Norm of all gradients before clipping, a scalar that stays on the device.

        Args:
            parts: parameters whose norm is bounded part by part.
        """
        return torch.linalg.vector_norm(torch.stack([self._clip(part) for part in parts]), self.norm_type)

    def _clip(self, part: Iterable[nn.Parameter]) -> Tensor:
        parameters = [parameter for parameter in part if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        total = nn.utils.get_total_norm(gradients, self.norm_type)
        if self.clip_type == "full_model":
            nn.utils.clip_grads_with_norm_(parameters, self.clip_value, total)
        elif self.clip_type == "norm":
            for parameter in parameters:
                nn.utils.clip_grad_norm_(parameter, self.clip_value, self.norm_type)
        elif self.clip_type == "value":
            nn.utils.clip_grad_value_(parameters, self.clip_value)
        return total


def clipped_apart(model: nn.Module) -> list[list[nn.Parameter]]:
    """A student's trainable parameters, and those that distillation adds, which must not shrink the former's steps.

    A label encoder's gradients are far larger at first than its student's; its authors train it with an optimizer of
    its own [C]. Any other model is one part.
    """
    model = undistributed(model)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    student = student_in(model)
    if student is None:
        return [trainable]
    own = set(student.parameters())
    parts = [[p for p in trainable if p in own], [p for p in trainable if p not in own]]
    return [part for part in parts if part]
