"""A folder of Hugging Face transformers, as the import and the teacher read it: network, images, weights.

Nothing is downloaded. ``key`` is always the configuration key or the option that names the folder, for messages.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from .files import read_checkpoint, read_json

TASK = "ForObjectDetection"
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # where newer versions keep it, with those of other kinds of input
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# A model's name on the hub, alone or in the address of its page.
_HUB_NAME = re.compile(r"(?:https?://(?:huggingface\.co|hf\.co)/)?([\w.-]+(?:/[\w.-]+)?)(?:/tree/.*)?/*")
UNNAMED = re.compile(r"LABEL_\d+")  # what transformers calls a class without a name
# Pixels have 0 to 255: no mean lies outside, no deviation is larger, and one below a unit is of another range.
LARGEST, SMALLEST_STD = 255.0, 1.0


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images.

    Attributes:
        mean, std: of RGB pixels in the range 0 to 255; 3 numbers each.
        size: (height, width) to which every image is stretched; None keeps its aspect ratio.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None


def open_folder(path: str | Path, key: str) -> Path:
    """The folder itself.

    Raises:
        CheckpointError: there is none, or it holds no model; a name of the hub is told from a path.
    """
    folder = Path(path).expanduser()
    if folder.is_dir() and (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise CheckpointError(f"{key} {path}: a folder of transformers holds config.json; this one does not.")
    if folder.is_file():
        raise CheckpointError(f"{key} {path} is a file. Name the folder that holds it and its config.json.")
    hub = _HUB_NAME.fullmatch(str(path))
    if hub:
        raise CheckpointError(
            f"{key} {path}: there is no such folder that holds config.json (working folder: {Path.cwd()}), and names "
            f"of the hub are not downloaded here. Fetch it, for example by: hf download {hub[1]} --local-dir FOLDER, "
            "and name FOLDER."
        )
    raise CheckpointError(
        f"{key} {path}: there is no such folder that holds config.json. Nothing is downloaded here: name a folder of "
        "this machine."
    )


def read_config(folder: Path, key: str) -> dict[str, Any]:
    """Content of ``config.json``.

    Raises:
        CheckpointError: unreadable, or of a model of another task.
    """
    config = read_json(folder / "config.json", key)
    classes = config.get("architectures") or []
    if isinstance(classes, list) and classes and not any(str(name).endswith(TASK) for name in classes):
        raise CheckpointError(
            f"{key} {folder}: config.json is of {', '.join(map(str, classes))}, a model of another task. Name the "
            f"folder of a ...{TASK}."
        )
    return config


def read_class_names(config: Mapping[str, Any], folder: Path, key: str) -> tuple[str, ...]:
    """Names in ``id2label``, in the order of their numbers; none where it is absent or holds placeholders.

    Raises:
        CheckpointError: it does not number its names from 0.
    """
    labels = config.get("id2label") or {}
    numbered = isinstance(labels, Mapping) and sorted(map(str, labels)) == sorted(map(str, range(len(labels))))
    if not numbered or not all(isinstance(name, str) for name in labels.values()):
        raise CheckpointError(
            f"{key} {folder}: id2label of config.json is {str(labels)[:200]}; "
            '{"0": NAME, "1": NAME, ...} is expected.'
        )
    names = {int(number): name for number, name in labels.items()}
    listed = tuple(names[number] for number in range(len(names)))
    return () if all(UNNAMED.fullmatch(name) for name in listed) else listed


def read_preprocessing(folder: Path, key: str) -> Preprocessing | None:
    """Normalisation and size of images; None where the folder has no file of them.

    A model sees ``(pixel * rescale_factor - image_mean) / image_std`` with either step switched off by ``do_rescale``
    or ``do_normalize``; here both are one, on pixels.

    Raises:
        CheckpointError: unreadable, a setting of the wrong type, or statistics that no images have.
    """
    file = next((folder / name for name in (PREPROCESSOR, PROCESSOR) if (folder / name).is_file()), None)
    if file is None:
        return None
    content = read_json(file, key)
    if isinstance(content.get("image_processor"), dict):
        content = content["image_processor"]
    where = f"{key}: {file}"
    if _switch(content, "do_flip_channel_order", False, where):
        raise CheckpointError(f"{where}: do_flip_channel_order is true, and only RGB is known here.")
    factor = _positive(content, "rescale_factor", where) if _switch(content, "do_rescale", True, where) else 1.0
    normalises = _switch(content, "do_normalize", True, where)
    mean = _three_numbers(content, "image_mean", where) if normalises else (0.0, 0.0, 0.0)
    std = _three_numbers(content, "image_std", where) if normalises else (1.0, 1.0, 1.0)
    scale = 1 / factor  # 255 in the usual case, exactly
    pixels = Preprocessing(
        tuple(scale * value for value in mean), tuple(scale * value for value in std), _read_size(content, where)
    )
    if normalises:
        _check_statistics(pixels, content, where)
    return pixels


def read_weights(folder: Path, key: str) -> tuple[dict[str, Tensor], Path]:
    """The tensors of a folder, of one file or of all parts that its index names, and the file that was read first.

    Raises:
        CheckpointError: there is no such file, a part of it is missing, or one cannot be read.
    """
    for name in WEIGHTS:
        file, index = folder / name, folder / f"{name}.index.json"
        if file.is_file():
            return read_checkpoint(file)["model"], file
        if index.is_file():
            return _read_parts(index, key), index
    raise CheckpointError(f"{key} {folder} holds neither {' nor '.join(WEIGHTS)}, nor the index of their parts.")


def _read_parts(index: Path, key: str) -> dict[str, Tensor]:
    places = read_json(index, key).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{key}: {index} has no weight_map that names the parts. Copy or download it again.")
    parts = sorted(set(places.values()))
    # A part is a file beside its index, whatever else the index says.
    absent = [name for name in parts if Path(name).name != name or not (index.parent / name).is_file()]
    if absent:
        raise CheckpointError(
            f"{key}: {index} names {len(parts)} parts, and {', '.join(absent)} is not beside it. Copy it there."
        )
    weights: dict[str, Tensor] = {}
    for name in parts:
        weights.update(read_checkpoint(index.parent / name)["model"])
    lost = sorted(places.keys() - weights.keys())
    if lost:
        raise CheckpointError(f"{key}: the parts that {index} names lack {len(lost)} of its tensors, first {lost[0]}.")
    return weights


def _switch(content: Mapping[str, Any], name: str, default: bool, where: str) -> bool:
    value = content.get(name)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{where}: {name} is {value!r}; true or false is expected.")
    return default if value is None else value


def _positive(content: Mapping[str, Any], name: str, where: str) -> float:
    value = content.get(name, 1 / 255)
    if not _is_number(value) or value <= 0:
        raise CheckpointError(f"{where}: {name} is {value!r}; a number above 0, such as 1/255, is expected.")
    return float(value)


def _three_numbers(content: Mapping[str, Any], name: str, where: str) -> tuple[float, ...]:
    found = content.get(name)
    if not isinstance(found, list) or len(found) != 3 or not all(map(_is_number, found)):
        raise CheckpointError(
            f"{where}: {name} is {found!r}; three numbers are expected, for red, green and blue. Take the file that "
            "belongs to the weights, or write into it what they were trained with."
        )
    return tuple(map(float, found))


def _check_statistics(pixels: Preprocessing, content: Mapping[str, Any], where: str) -> None:
    """Means of 0..255 after a division by 255, or the reverse, would show the model images that it has never seen."""
    tolerance = 1.001
    if all(0 <= value <= LARGEST * tolerance for value in pixels.mean) and all(
        SMALLEST_STD / tolerance <= value <= LARGEST * tolerance for value in pixels.std
    ):
        return
    settings = {name: content.get(name) for name in ("image_mean", "image_std", "do_rescale", "rescale_factor")}
    raise CheckpointError(
        f"{where}: with {', '.join(f'{name} {value!r}' for name, value in settings.items())} the mean is "
        f"{_short(pixels.mean)} and the deviation {_short(pixels.std)} in pixels of 0 to 255, which images do not "
        "have. Means and deviations are in the range that images have after rescale_factor: correct either."
    )


def _read_size(content: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    if not _switch(content, "do_resize", True, where):
        return None
    size = content.get("size")
    if not isinstance(size, dict) or "height" not in size:
        return None
    height, width = (_pixels(size.get(side), size, where) for side in ("height", "width"))
    return height, width


def _pixels(value: Any, size: Mapping[str, Any], where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{where}: size is {size!r}; whole numbers of pixels are expected, height and width.")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"
