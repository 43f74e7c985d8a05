"""Any DETR as a folder of transformers: in the library's own class where it has the network, else in ours.

Letters: B images, Q queries, K class scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..checkpoint.export import detecting_weights
from ..config.detecting import write_detecting_yaml
from ..detr import DetrDetector
from ..errors import CheckpointError, ConfigError
from .as_library import LibraryForm, build_library_model, find_library_form
from .detector import TransformersStudent
from .folder import PROCESSORS, build_processor, student_processor, write_folder
from .images import run_detr
from .network import import_transformers, name_classes

FORMAT = "--format transformers"
TOLERANCE = 1e-4  # of logits, in parts of the largest where that is above 1, and of boxes in [0, 1]
CHECKED = (96, 160)  # height and width of the images that a folder is compared on, in pixels
# Images and their mask (B, height, width), 1 on the image, to logits (B, Q, K) and boxes (B, Q, 4).
Run = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def find_form(cfg: CfgNode, detector: nn.Module) -> LibraryForm | str:
    """In which of the library's classes a detector leaves, or in words why it leaves in ours.

    A detector of transformers leaves as it is, for which there are no words.

    Raises:
        ConfigError: it is no DETR, or transformers is not installed.
    """
    if not isinstance(detector, TransformersStudent | DetrDetector):
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {type(detector).__name__} cannot leave as a folder of transformers, which has no "
            "convolutional detectors. Export it whole, --format onnx or program, or its weights, --format safetensors."
        )
    import_transformers(FORMAT)
    return find_library_form(cfg, detector) if isinstance(detector, DetrDetector) else ""


def write_detector_folder(
    cfg: CfgNode, detector: nn.Module, form: LibraryForm | str, names: Sequence[str], path: Path
) -> tuple[str, float]:
    """Writes a trained detector, and reads the folder back before it is left there.

    Args:
        form: of :func:`find_form`. names: of its classes.

    Returns:
        The class in which it left, and how far outputs of the folder are from those of the detector.

    Raises:
        OutputError: it cannot be written. CheckpointError: it gives other outputs.
    """
    found: list[float] = []
    size = CHECKED
    if isinstance(detector, TransformersStudent):
        model, processor = detector.network.detector, student_processor(detector)
        name_classes(model.config, names)
        size, expected = detector.size or CHECKED, partial(_run_library, model)
    else:
        assert isinstance(detector, DetrDetector)
        if isinstance(form, LibraryForm):
            model = build_library_model(form, detector, names)
        else:
            model = _own(cfg, detector, names)
        processor, expected = _processor(cfg, detector, form), partial(_run_ours, detector)

    def check(folder: Path) -> None:
        transformers = import_transformers(FORMAT)
        again = transformers.AutoModelForObjectDetection.from_pretrained(str(folder), local_files_only=True)
        found.append(compare(expected, partial(_run_library, again.eval()), size, str(path)))

    write_folder(model, processor, path, check)
    return type(model).__name__, found[0]


@torch.no_grad()
def compare(expected: Run, run: Run, size: tuple[int, int], name: str) -> float:
    """The largest difference on two images, one of them padded.

    Raises:
        CheckpointError: it is above 1e-4.
    """
    height, width = size
    generator = torch.Generator().manual_seed(0)
    images, mask = torch.randn(2, 3, height, width, generator=generator), torch.ones(2, height, width)
    mask[0, height // 2 :] = mask[1, :, width // 2 + 3 :] = 0
    images = images * mask.unsqueeze(1)
    parts = [
        (wanted - found).abs().max() / wanted.abs().max().clamp(min=1)
        for wanted, found in zip(expected(images, mask), run(images, mask), strict=True)
    ]
    difference = float(torch.stack(parts).max())  # NaN where either is
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"{name}: what transformers reads from this folder differs from the detector by {difference:.1e}, and more "
            f"than {TOLERANCE:g} is no rounding. It was not written. Report it with the configuration; --format "
            "safetensors exports the weights."
        )
    return difference


def _own(cfg: CfgNode, detector: DetrDetector, names: Sequence[str]) -> Any:
    """The detector in our own class of the library's models."""
    from .own import DetrDistillForObjectDetection
    from .own_configuration import DetrDistillConfig

    config = name_classes(DetrDistillConfig(configuration=write_detecting_yaml(cfg)), names)
    model = DetrDistillForObjectDetection(config)
    model.detector.load_state_dict(detecting_weights({**dict(detector.named_buffers()), **detector.state_dict()}))
    return model.eval()


def _processor(cfg: CfgNode, detector: DetrDetector, form: LibraryForm | str) -> Any:
    mean, std = detector.pixel_mean, detector.pixel_std
    if detector.input_format == "BGR":
        mean, std = mean.flip(0), std.flip(0)
    if isinstance(form, LibraryForm):
        kind = PROCESSORS[form.model_type]
    else:  # that whose post-processing is for such class heads
        kind = PROCESSORS["detr" if detector.decoder.activation == "softmax" else "deformable_detr"]
    return build_processor(kind, mean, std, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)


def _run_library(model: Any, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    output = model(pixel_values=images, pixel_mask=mask.long())
    return output.logits, output.pred_boxes


def _run_ours(detector: DetrDetector, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    output = run_detr(detector, images, mask)
    return output.logits[-1], output.boxes[-1]
