"""A detector as a folder that the library's ``from_pretrained`` reads: network, class names and image processor."""

from __future__ import annotations

import contextlib
import operator
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

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
    """Writes a detector of transformers as a folder.

    Args:
        class_names: in the order of their numbers; None: as the model calls them.

    Raises:
        OutputError: it cannot be written.
    """
    model = detector.network.detector
    if class_names:
        name_classes(model.config, class_names)
    write_folder(model, student_processor(detector), path)


def write_folder(model: Any, processor: Any, path: Path, check: Callable[[Path], None] = lambda folder: None) -> None:
    """Writes what ``AutoModelForObjectDetection`` and ``AutoImageProcessor`` read.

    What stood there before is replaced in one step.

    Args:
        model, processor: of the library. check: is given the folder before that step; what it raises leaves all as it
            was.

    Raises:
        OutputError: it cannot be written.
    """
    model.config.architectures = [type(model).__name__]
    temporary, earlier = (path.with_name(f"{path.name}.{state}") for state in ("tmp", "old"))
    try:
        for left in (temporary, earlier):
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(parents=True)
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        check(temporary)
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, earlier)
        os.replace(temporary, path)
        shutil.rmtree(earlier, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise OutputError(f"{explain_unwritable(path, error)} What was there before is unharmed.") from error


def student_processor(detector: TransformersStudent) -> Any:
    """The library's image processor that prepares images as a detector of transformers does."""
    size, (shortest, longest) = detector.size, detector.test_size
    kind = PROCESSORS[detector.network.config.model_type]
    if size is None:
        return build_processor(kind, detector.mean, detector.std, shortest, longest)
    stretched: dict[str, Any] = {"size": {"height": size[0], "width": size[1]}, "do_pad": False}
    return build_processor(kind, detector.mean, detector.std, **stretched)


def build_processor(kind: str, mean: Tensor, std: Tensor, shortest: int = 0, longest: int = 0, **settings: Any) -> Any:
    """An image processor of the library.

    Args:
        kind: its class. mean, std: of RGB pixels in the range 0 to 255, 3 numbers. shortest, longest: sides of an image
            that keeps its aspect ratio, in pixels. settings: what else it is told.
    """
    library = import_transformers("A detector is written as a folder of transformers")
    means, deviations = ([value / PIXEL_RANGE for value in x.flatten().tolist()] for x in (mean, std))
    statistics: dict[str, Any] = {"do_normalize": True, "image_mean": means, "image_std": deviations}
    if not any(means) and all(value == 1 for value in deviations):
        statistics = {"do_normalize": False}
    sides = {"size": {"shortest_edge": shortest, "longest_edge": longest}} if shortest else {}
    processor: Any = operator.attrgetter(kind)(library)
    return processor(do_rescale=True, rescale_factor=1 / PIXEL_RANGE, do_resize=True, **statistics, **sides, **settings)
