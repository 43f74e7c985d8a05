"""The configuration of a DETR of this project as a model of transformers; its own module, since it is needed first."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PretrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig

MODEL_TYPE = "detr_distill"


class DetrDistillConfig(PretrainedConfig):
    """How the detector is built.

    Args:
        configuration: YAML, as a file of the training program has it, of the detector alone.
    """

    model_type = MODEL_TYPE

    def __init__(self, configuration: str = "", **kwargs: Any):
        self.configuration = configuration
        super().__init__(**kwargs)


AutoConfig.register(MODEL_TYPE, DetrDistillConfig, exist_ok=True)
