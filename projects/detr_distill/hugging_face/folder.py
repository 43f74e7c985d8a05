"""A detector as a folder that the library's ``from_pretrained`` reads: network, class names and image processor."""

from __future__ import annotations

import contextlib
import operator
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.writing import explain_unwritable
from ..errors import OutputError
from .detector import TransformersStudent
from .network import import_transformers, name_classes

PIXEL_RANGE = 255.0
# Of each model type; those of RT-DETR stretch images, the others keep their aspect ratio and pad.
PROCESSORS = {
    "rt_detr": "RTDetrImageProcessor",
    "rt_detr_v2": "RTDetrImageProcessor",
    "d_fine": "RTDetrImageProcessor",
    "deimv2": "RTDetrImageProcessor",
    "detr": "DetrImageProcessor",
    "conditional_detr": "ConditionalDetrImageProcessor",
    "dab-detr": "ConditionalDetrImageProcessor",  # it has none of its own
    "deformable_detr": "DeformableDetrImageProcessor",
    "lw_detr": "DeformableDetrImageProcessor",
    "rf_detr": "DeformableDetrImageProcessor",
}


def save_folder(detector: TransformersStudent, path: Path, class_names: Sequence[str] | None = None) -> None:
    """Writes a detector as a folder that ``AutoModelForObjectDetection`` and ``AutoImageProcessor`` read.

    What stood there before is replaced in one step.

    Args:
        class_names: in the order of their numbers; None: as the model calls them.

    Raises:
        OutputError: it cannot be written.
    """
    model = detector.network.detector
    if class_names:
        name_classes(model.config, class_names)
    model.config.architectures = [type(model).__name__]
    temporary, earlier = (path.with_name(f"{path.name}.{state}") for state in ("tmp", "old"))
    try:
        for left in (temporary, earlier):
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(parents=True)
        model.save_pretrained(temporary)
        _processor(detector).save_pretrained(temporary)
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, earlier)
        os.replace(temporary, path)
        shutil.rmtree(earlier, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OutputError(f"{explain_unwritable(path, error)} What was there before is unharmed.") from error


def _processor(detector: TransformersStudent) -> Any:
    """Prepares images as the detector does."""
    library = import_transformers("A TransformersStudent is written as a folder")
    mean, std = ([value / PIXEL_RANGE for value in x.flatten().tolist()] for x in (detector.mean, detector.std))
    is_plain = not any(mean) and all(value == 1 for value in std)
    statistics = {"do_normalize": False} if is_plain else {"do_normalize": True, "image_mean": mean, "image_std": std}
    if detector.size is None:
        shortest, longest = detector.test_size
        size: dict[str, Any] = {"size": {"shortest_edge": shortest, "longest_edge": longest}}
    else:
        size = {"size": {"height": detector.size[0], "width": detector.size[1]}, "do_pad": False}
    processor: Any = operator.attrgetter(PROCESSORS[detector.network.config.model_type])(library)
    return processor(do_rescale=True, rescale_factor=1 / PIXEL_RANGE, do_resize=True, **statistics, **size)
