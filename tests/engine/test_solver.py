"""Parameter groups: each parameter once, its learning rate and weight decay by the configuration."""

from detr_distill.config.build import default_config
from detr_distill.engine.solver import build_optimizer, group_parameters
from detr_distill.errors import ConfigError

import pytest
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)
        self.tied = self.head
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def settings_by_name(model, **options):
    options = {"base_lr": 1.0, "weight_decay": 0.1, **options}
    names = {id(value): name for name, value in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in group_parameters(model, **options)
        for parameter in group["params"]
    }


def test_one_group_when_all_is_alike():
    groups = group_parameters(Small(), base_lr=1.0, weight_decay=0.1)
    assert len(groups) == 1 and len(groups[0]["params"]) == 6


def test_every_setting_reaches_its_parameters():
    found = settings_by_name(
        Small(),
        weight_decay_norm=0.0,
        weight_decay_bias=0.2,
        bias_lr_factor=2.0,
        lr_factors=[["backbone", 0.1], ["head", 3.0], ["0.weight", 9.0]],
    )
    assert found == {
        "backbone.0.weight": (0.1, 0.1),
        "backbone.0.bias": (0.2, 0.2),
        "backbone.1.weight": (0.1, 0.0),
        "backbone.1.bias": (0.2, 0.2),
        "head.weight": (3.0, 0.1),
        "head.bias": (6.0, 0.2),
    }


def test_none_leaves_normalisation_and_biases_at_the_common_decay():
    assert {decay for _, decay in settings_by_name(Small()).values()} == {0.1}


def test_an_expression_without_effect_is_an_error():
    with pytest.raises(ConfigError, match=r"(?s)LR_FACTORS.*backbon_e.*backbone.0.weight"):
        group_parameters(Small(), base_lr=1.0, weight_decay=0.0, lr_factors=[["backbon_e", 0.1]])
    with pytest.raises(ConfigError, match="frozen"):
        group_parameters(Small(), base_lr=1.0, weight_decay=0.0, lr_factors=[["frozen", 0.1]])


@pytest.mark.parametrize("pair", [["backbone"], ["(", 0.1], ["backbone", "fast"]])
def test_a_malformed_pair_is_an_error(pair):
    with pytest.raises(ConfigError, match="LR_FACTORS"):
        group_parameters(Small(), base_lr=1.0, weight_decay=0.0, lr_factors=[pair])


@pytest.mark.parametrize(("name", "kind"), [("AdamW", torch.optim.AdamW), ("SGD", torch.optim.SGD)])
def test_optimizers_by_name(name, kind):
    cfg = default_config()
    cfg.SOLVER.OPTIMIZER = name
    assert type(build_optimizer(cfg, Small())) is kind


def test_an_unknown_optimizer_is_named():
    cfg = default_config()
    cfg.SOLVER.OPTIMIZER = "Adam"
    with pytest.raises(ConfigError, match=r'"Adam".*"AdamW" or "SGD"'):
        build_optimizer(cfg, Small())


def test_a_model_without_trainable_parameters_is_an_error():
    with pytest.raises(ConfigError, match="no trainable parameter"):
        group_parameters(nn.Linear(2, 2).requires_grad_(False), base_lr=1.0, weight_decay=0.0)
