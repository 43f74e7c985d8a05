"""A DETR of this project as a model of transformers: what the library has no class for leaves as this one.

Importing this module imports transformers, and makes the class known to its ``AutoModelForObjectDetection``. So
:mod:`.registration` waits with it until that is imported.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling import build_model
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForObjectDetection
from transformers.models.detr.modeling_detr import DetrObjectDetectionOutput

from ..config.detecting import read_detecting_yaml
from ..detr import DetrDetector
from .images import run_detr
from .own_configuration import DetrDistillConfig


class DetrDistillForObjectDetection(PreTrainedModel):
    """The detector, with the images and outputs of the library's DETRs.

    Raises:
        ConfigError: the configuration names what is not there, such as a plug-in whose module is not imported.
    """

    config_class = DetrDistillConfig
    main_input_name = "pixel_values"
    detector: DetrDetector

    def __init__(self, config: DetrDistillConfig):
        super().__init__(config)
        # The library builds on a device without memory, and afterwards fills in what its file holds: so all buffers
        # are in it, and what is computed when a detector is built has memory.
        with torch.device("cpu"):
            self.detector = build_model(read_detecting_yaml(config.configuration))
        for module in self.detector.modules():
            for name, value in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, value, persistent=True)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, pixel_mask: Tensor | None = None, **unread: Any
    ) -> DetrObjectDetectionOutput:
        """Predictions of the last layer.

        Args:
            pixel_values: (B, 3, height, width), RGB as the folder's image processor gives it. pixel_mask: (B, height,
                width), 1 on the image and 0 on padding; None: no image is padded.

        Returns:
            ``logits`` (B, Q, K), with a softmax head (B, Q, K + 1), and ``pred_boxes`` (B, Q, 4), normalised centres
            and sizes.
        """
        output = run_detr(self.detector, pixel_values, pixel_mask)
        return DetrObjectDetectionOutput(logits=output.logits[-1], pred_boxes=output.boxes[-1])


AutoModelForObjectDetection.register(DetrDistillConfig, DetrDistillForObjectDetection, exist_ok=True)
