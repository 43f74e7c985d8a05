"""The optimizer: one parameter group for each distinct pair of learning rate and weight decay."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from detectron2.config import CfgNode
from torch import nn

from ..config.ranges import NOT_NEGATIVE
from ..errors import ConfigError

NORMALISATION_LAYERS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.RMSNorm,
)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Optimizer of ``SOLVER.OPTIMIZER`` over every trainable parameter.

    Gradient clipping is not part of it: ``StepTrainer`` clips, because it needs the gradient norm anyway.

    Raises:
        ConfigError: an unknown optimizer, or an expression of ``SOLVER.LR_FACTORS`` that matches nothing.
    """
    solver = cfg.SOLVER
    groups = group_parameters(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        lr_factors=solver.LR_FACTORS,
    )
    # The fused kernels are the fastest on both devices and give the same result in every run.
    fused = all(parameter.is_floating_point() for group in groups for parameter in group["params"])
    if solver.OPTIMIZER == "AdamW":
        return torch.optim.AdamW(groups, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, fused=fused)
    if solver.OPTIMIZER == "SGD":
        # The fused kernel wants a momentum for all of a group or for none; frozen parameters get theirs later.
        fused = fused and not solver.FREEZE
        return torch.optim.SGD(
            groups,
            lr=solver.BASE_LR,
            momentum=solver.MOMENTUM,
            nesterov=solver.NESTEROV,
            weight_decay=solver.WEIGHT_DECAY,
            fused=fused,
        )
    raise ConfigError(f'SOLVER.OPTIMIZER is "{solver.OPTIMIZER}". Use "AdamW" or "SGD".')


def group_parameters(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    weight_decay_norm: float | None = None,
    weight_decay_bias: float | None = None,
    bias_lr_factor: float | None = 1.0,
    lr_factors: Sequence = (),
) -> list[dict]:
    """Trainable parameters grouped by their settings, in the model's own order.

    Args:
        weight_decay_norm: weight decay of normalisation layers; None: as everywhere.
        weight_decay_bias: weight decay of biases, also those of normalisation layers; None: as everywhere.
        bias_lr_factor: factor of a bias's learning rate.
        lr_factors: (regular expression, factor) pairs; the first expression found in a name scales its learning rate.

    Returns:
        One dictionary of ``params``, ``lr`` and ``weight_decay`` a group.

    Raises:
        ConfigError: a malformed pair, or an expression that is found in no trainable parameter's name.
    """
    factors = _compile_factors(lr_factors)
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if not parameters:
        raise ConfigError("The model has no trainable parameter: look at MODEL.BACKBONE.FREEZE_AT and its kin.")
    for pattern, _ in factors:
        if not any(pattern.search(name) for name in parameters):
            raise ConfigError(
                f'SOLVER.LR_FACTORS: "{pattern.pattern}" is found in no trainable parameter. '
                f"The names look like {_sample(parameters)}. Correct the expression or remove the pair."
            )
    norms = _normalisation_parameters(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        is_bias = name.endswith("bias")
        rate = base_lr * next((factor for pattern, factor in factors if pattern.search(name)), 1.0)
        if is_bias and bias_lr_factor is not None:
            rate *= bias_lr_factor
        decay = weight_decay
        if parameter in norms and weight_decay_norm is not None:
            decay = weight_decay_norm
        if is_bias and weight_decay_bias is not None:
            decay = weight_decay_bias
        groups.setdefault((rate, decay), []).append(parameter)
    grouped = [parameter for members in groups.values() for parameter in members]
    assert len(grouped) == len(set(grouped)) == len(parameters), "each trainable parameter belongs to one group"
    return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]


def _compile_factors(lr_factors: Sequence) -> list[tuple[re.Pattern, float]]:
    factors = []
    for pair in lr_factors:
        try:
            expression, factor = pair
            pattern, factor = re.compile(expression), float(factor)
        except (TypeError, ValueError, re.error) as error:
            raise ConfigError(
                f"SOLVER.LR_FACTORS holds {pair!r} ({error}). Expected [regular expression, factor] pairs, "
                'for example [["backbone", 0.1]].'
            ) from error
        # Below 0 a parameter would climb its loss.
        NOT_NEGATIVE.check(f'SOLVER.LR_FACTORS: the factor of "{expression}"', factor)
        factors.append((pattern, factor))
    return factors


def _normalisation_parameters(model: nn.Module) -> set[nn.Parameter]:
    return {
        parameter
        for module in model.modules()
        if isinstance(module, NORMALISATION_LAYERS)
        for parameter in module.parameters(recurse=False)
    }


def _sample(names: Iterable[str]) -> str:
    names = list(names)
    chosen = names[:: max(1, len(names) // 4)][:4]
    return ", ".join(chosen)
