"""Training and evaluation: what ``train_net.py`` runs."""

from ..config.build import build_config
from .evaluation import BoxEvaluator, build_evaluator
from .launch import main
from .solver import build_optimizer
from .step import StepTrainer
from .trainer import DistillTrainer

__all__ = [
    "BoxEvaluator",
    "DistillTrainer",
    "StepTrainer",
    "build_config",
    "build_evaluator",
    "build_optimizer",
    "main",
]
