"""Predictions of a detector on many images, kept on disk: a folder of memory-mapped parts and a description.

Letters: N images of a part, L decoder layers, Q queries, K class scores, k of them that are kept.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...checkpoint.writing import explain_unwritable, write_atomically
from ...errors import DataError, OutputError
from .description import DESCRIPTION, Description, StoredImage, check_goes_on, read_description
from .maps import MAP, SHAPE, SPAN, StoredMap, as_tensors

NOTHING = -20.0  # logit of a class that was not kept: its probability is 2e-9
_STORE = "store"  # in a part's header: the digest of the description that it was written under
IN_MEMORY = 50_000_000  # numbers of a store that is read as a whole
DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass
class StoredPredictions:
    """Predictions of some images, on the host.

    Attributes:
        logits: (L, B, Q, K) float32. boxes: (L, B, Q, 4) float32, shares of the image as it is in its file.
        counts: how many queries each image has; those behind are padding. maps: name -> the map of each image.
    """

    logits: Tensor
    boxes: Tensor
    counts: list[int]
    maps: dict[str, list[StoredMap]] = field(default_factory=dict)


class PredictionStore:
    """Reads a folder that :func:`write_part` filled.

    Args:
        folder: with the description and every part that it names.

    Attributes:
        images: in the order of writing, which numbers the rows. rows: numbers of the rows of an id; images of several
            sets may share one.

    Raises:
        DataError: no such folder, damaged, not finished, or with a part of another one.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self.description = read_description(self.folder)
        absent = [n for n in range(self.description.parts) if not part_file(self.folder, n).is_file()]
        if absent:
            raise DataError(
                f"{self.folder} has {self.description.parts - len(absent)} of {self.description.parts} parts: the "
                "program that made it was stopped. Start it again with the same command; it goes on where it was."
            )
        self._files = [_open_part(self.folder, n, self.description) for n in range(self.description.parts)]
        self.images: list[StoredImage] = []
        self.rows: dict[int | str, list[int]] = {}
        self._places: list[tuple[int, int]] = []
        for n, file in enumerate(self._files):
            for place, image in enumerate(_images_of(part_file(self.folder, n), file)):
                self.rows.setdefault(image.id, []).append(len(self.images))
                self.images.append(image)
                self._places.append((n, place))

    def __contains__(self, image_id: int | str) -> bool:
        return image_id in self.rows

    def read(self, image_ids: Sequence[int | str]) -> StoredPredictions:
        """The predictions of some images, in this order.

        Raises:
            KeyError: an image that is not in the store. DataError: an id that several images have.
        """
        shared = [image_id for image_id in image_ids if len(self.rows[image_id]) > 1]
        if shared:
            raise DataError(
                f"{self.folder} has {len(self.rows[shared[0]])} images of the id {shared[0]!r}: it is of sets that "
                "share ids. Read them by row."
            )
        return self.read_rows([self.rows[image_id][0] for image_id in image_ids])

    def read_rows(self, rows: Sequence[int]) -> StoredPredictions:
        """The predictions of some rows, in this order."""
        found = self._take(rows)
        logits = found["logits"].float()
        if self.description.best_classes:
            width = len(self.description.class_names)
            logits = logits.new_full((*logits.shape[:3], width), NOTHING).scatter_(-1, found["classes"].long(), logits)
        maps = {name: [self._read_map(name, *self._places[row]) for row in rows] for name in self.description.maps}
        boxes = found["boxes"].float().transpose(0, 1).contiguous()
        return StoredPredictions(logits.transpose(0, 1).contiguous(), boxes, found["counts"].tolist(), maps)

    def _take(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Some rows of each tensor, maps apart, as they are kept."""
        if self._in_memory is not None:
            index = torch.tensor(rows)
            return {name: values[index] for name, values in self._in_memory.items()}
        places = [self._places[row] for row in rows]
        return {
            name: torch.cat([self._files[part].get_slice(name)[row : row + 1] for part, row in places])
            for name in self._names
        }

    @functools.cached_property
    def _in_memory(self) -> dict[str, Tensor] | None:
        """All rows of each tensor, maps apart; slices of a step's rows take 3 ms. None where they are too large."""
        described = self.description
        width = described.best_classes or len(described.class_names)
        if described.images * described.layers * described.queries * (width + 4) > IN_MEMORY:
            return None
        return {name: torch.cat([file.get_tensor(name) for file in self._files]) for name in self._names}

    @property
    def _names(self) -> list[str]:
        return ["logits", "boxes", "counts", *(["classes"] if self.description.best_classes else [])]

    def _read_map(self, name: str, part: int, row: int) -> StoredMap:
        shapes, starts, spans = self._index_of(name, part)
        cells = self._files[part].get_slice(f"{MAP}{name}")[starts[row] : starts[row + 1]]
        return StoredMap(cells.T.unflatten(1, shapes[row]), spans[row])

    @functools.cache  # noqa: B019 - a store lives as long as its run
    def _index_of(self, name: str, part: int) -> tuple[list[list[int]], list[int], list[tuple[float, float]]]:
        """Of each image of a part: the map's rows and columns, its first cell, and its span."""
        file = self._files[part]
        shapes = file.get_tensor(f"{MAP}{name}{SHAPE}")
        starts = [0, *shapes.prod(1).cumsum(0).tolist()]
        spans = [(rows, columns) for rows, columns in file.get_tensor(f"{MAP}{name}{SPAN}").tolist()]
        return shapes.tolist(), starts, spans


def part_file(folder: Path, number: int) -> Path:
    """File of a part, counted from 0."""
    return folder / f"part-{number:05d}.safetensors"


def begin_store(folder: Path, described: Description) -> Description:
    """Starts a store, or goes on with one of the same detector, images and settings, whose description it returns.

    Raises:
        DataError: the folder holds another store, or parts of one. OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(explain_unwritable(folder, error)) from error
    path = folder / DESCRIPTION
    begun = path.exists()
    if begun:
        found = read_description(folder)
        check_goes_on(folder, found, described)
        described = found
    for n in range(described.parts):
        if part_file(folder, n).is_file():
            _open_part(folder, n, described)
    if not begun:
        text = json.dumps(dataclasses.asdict(described), indent=2)
        write_atomically(path, lambda file: file.write(text.encode()))
    return described


def missing_parts(folder: Path, described: Description) -> Iterator[int]:
    """The parts of a store that are still to be written."""
    return (n for n in range(described.parts) if not part_file(folder, n).is_file())


def write_part(
    folder: Path,
    number: int,
    described: Description,
    images: Sequence[StoredImage],
    values: Mapping[str, Tensor],
    maps: Mapping[str, Sequence[StoredMap]] | None = None,
) -> None:
    """Writes one part, whole or not at all.

    Args:
        images: N. values: ``logits`` (N, L, Q, K), ``boxes`` (N, L, Q, 4) shares of the image, ``counts`` (N,) long.
        maps: name -> N maps.
    """
    dtype = DTYPES[described.dtype]
    tensors = {"counts": values["counts"], "boxes": values["boxes"].to(dtype)}
    if described.best_classes:
        logits, classes = values["logits"].topk(described.best_classes, dim=-1)
        tensors |= {"logits": logits.to(dtype), "classes": classes.to(torch.int16)}
    else:
        tensors["logits"] = values["logits"].to(dtype)
    for name, found in (maps or {}).items():
        tensors |= as_tensors(name, found, dtype)
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    content = safetensors.torch.save(tensors, {"images": json.dumps(images), _STORE: described.digest})
    write_atomically(part_file(folder, number), lambda file: file.write(content))


def _images_of(path: Path, file: safe_open) -> list[StoredImage]:
    try:
        return [StoredImage(*entry) for entry in json.loads((file.metadata() or {})["images"])]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} does not name its images ({error!r}): another version wrote it, or it is damaged. Remove the "
            "folder and make it again with tools/predict.py."
        ) from error


def _open_part(folder: Path, number: int, described: Description) -> safe_open:
    path = part_file(folder, number)
    try:
        file = safe_open(str(path), "pt")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} is damaged: {error}. Remove it and start tools/predict.py again.") from error
    if (file.metadata() or {}).get(_STORE, "") != (described.digest if described.dataset else ""):
        raise DataError(
            f"{path} is of other predictions than the {DESCRIPTION} beside it, or than those that would be written "
            "here. Remove it and start tools/predict.py again, or choose another --output."
        )
    return file
