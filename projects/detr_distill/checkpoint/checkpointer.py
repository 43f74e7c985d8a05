"""detectron2's checkpointer, with safe reading, atomic writing and errors in words."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from ..errors import CheckpointError, first
from .class_names import differing_names, entry, stored_class_names
from .contents import say_average
from .export import AVERAGED, STUDENT, TEACHER, detector_in, fit_to_model, is_distilling, is_training_only
from .files import read_checkpoint
from .locate import local_file
from .matching import Fit, advise, compare, match_suffixes
from .torchvision_resnet import PREFIX as TORCHVISION
from .torchvision_resnet import rename_resnet
from .writing import write_atomically

LAST = "last_checkpoint"
FINAL = "model_final"
BEST = "model_best"  # stands beside the line of checkpoints


def last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The checkpoint that a folder's file ``last_checkpoint`` names, where both are there and sound."""
    try:
        path = os.path.join(folder, Path(folder, LAST).read_text().strip())
    except (OSError, ValueError):
        return None
    return path if os.path.isfile(path) else None


class SafeCheckpointer(DetectionCheckpointer):
    """Saves and restores a model and what is registered beside it.

    A save is visible only when it is complete. A file is read without running code from it. ``load`` initialises a
    model and tolerates gaps, ``load_complete`` evaluates one and tolerates none, ``resume_or_load`` continues a run.

    Args:
        model, save_dir: what is saved, and where. class_names: kept in every file, and compared with those of what
            is loaded. parts: are saved beside the model.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", class_names: Sequence[str] | None = None, **parts: Any):
        super().__init__(model, save_dir, **parts)
        self.class_names = class_names

    def save(self, name: str, **extra: Any) -> None:
        """Writes ``NAME.pth`` and makes it the checkpoint that a resumed run continues from."""
        if self.save_untagged(name, **extra):
            self.tag_last_checkpoint(f"{name}.pth")

    def save_untagged(self, name: str, **extra: Any) -> bool:
        """Writes ``NAME.pth`` beside the line of checkpoints; False where this process does not write."""
        if not self.save_dir or not self.save_to_disk:
            return False
        state = {"model": self.model.state_dict()}
        state.update({key: part.state_dict() for key, part in self.checkpointables.items()})
        state.update(entry(self.class_names))
        state.update(extra)
        path = Path(self.save_dir) / f"{name}.pth"
        write_atomically(path, lambda file: torch.save(state, file))
        self.logger.info("Saved %s", path)
        return True

    def has_checkpoint(self) -> bool:
        """Whether there is one to go on from."""
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """The checkpoint that ``last_checkpoint`` names or, where that file is lost or damaged, the newest that loads.

        A run that is killed between its first checkpoint and the file that names it leaves the one without the other.
        """
        named = last_checkpoint(self.save_dir)
        if named is not None:
            return named
        newest = self._newest()
        if newest is None:
            return ""
        self.logger.warning(
            "%s names no checkpoint: taking %s, the newest that loads.", Path(self.save_dir, LAST), newest
        )
        return str(newest)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_atomically(Path(self.save_dir) / LAST, lambda file: file.write(last_filename_basename.encode()))

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Initialises the model from ``MODEL.WEIGHTS``; backbones and other tasks' detectors naturally leave gaps.

        Args:
            path: a file or an address; empty leaves the random initialisation.
            checkpointables: which registered parts to restore too; None: all that the file has.

        Returns:
            What else the file holds.

        Raises:
            CheckpointError: the file cannot be found, fetched or read, or nothing in it fits the model.
        """
        if not path:
            self.logger.info("MODEL.WEIGHTS is empty: the model keeps its random initialisation.")
            return {}
        checkpoint, fit = self._read(path)
        if not fit.matched:
            found, wanted = fit.both_sides()
            raise CheckpointError(
                f"{path} has nothing that this model could use: the file has {first(found)}; the model has "
                f"{first(wanted)}. {advise(fit, 'Is MODEL.WEIGHTS meant for another architecture?')}"
            )
        self.model.load_state_dict(fit.matched, strict=False)
        words, _ = self._differing_names(path)
        if words:
            self.logger.warning("MODEL.WEIGHTS %s: %s. Its rows of classes start as those of others.", path, words)
        if fit.is_poor:
            remedy = advise(fit, "Name the weights of this architecture, or leave MODEL.WEIGHTS empty.")
            self.logger.warning("MODEL.WEIGHTS %s hardly fits: %s %s", path, fit.summary(), remedy)
        else:
            self.logger.info("Loaded %s: %s", path, fit.summary())
        return self._restore_parts(checkpoint, checkpointables)

    def load_complete(self, path: str) -> None:
        """Loads a trained detector for evaluation.

        Raises:
            CheckpointError: no file given, unreadable, or a tensor of the detector is missing or misshaped.
        """
        if not path:
            raise CheckpointError("--eval-only needs trained weights: set MODEL.WEIGHTS to a checkpoint.")
        _, fit = self._read(path)
        # Inference uses the student alone: the trainable parts around it may be absent, and its training groups.
        if is_distilling(self.model.state_dict()):
            fit = fit.without(lambda name: not name.startswith(STUDENT))
        fit = fit.without(is_training_only)
        if fit.missing or fit.misshaped:
            raise CheckpointError(
                f"{path} does not fit this model:\n{fit.problems()}\n"
                f"{advise(fit, 'Use the configuration that it was trained with.')}"
            )
        words, moved = self._differing_names(path)
        if moved:
            raise CheckpointError(
                f"{path} was trained on other classes than those of the data: {words}. Each would be counted as "
                "another. Evaluate it on a set that lists its classes in this order."
            )
        if words:
            self.logger.warning("%s: %s. Classes are counted by their index.", path, words)
        self.model.load_state_dict(fit.matched, strict=False)
        self.logger.info("Loaded %s: %s", path, fit.summary())

    def _differing_names(self, path: str) -> tuple[str, bool]:
        """See :func:`differing_names`; of lists of another length no rows of classes fit."""
        stored = stored_class_names(local_file(path))
        same_length = stored is not None and self.class_names is not None and len(stored) == len(self.class_names)
        return differing_names(stored, self.class_names) if same_length else ("", False)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Continues from the last checkpoint of the folder; where there is none, or none is wanted, ``load(path)``."""
        if not resume:
            return self.load(path, checkpointables=[])
        if self.has_checkpoint():
            return self.resume(self.get_checkpoint_file())
        if self._numbered():
            raise CheckpointError(
                f"--resume: {self.save_dir} holds checkpoints that do not load, and starting afresh would overwrite "
                f"them.\n{self._advise('')}"
            )
        self.logger.warning("--resume: %s holds no checkpoint, so this run starts afresh.", self.save_dir)
        return self.load(path, checkpointables=[])

    def resume(self, path: str) -> dict[str, Any]:
        """Restores the model and every registered part.

        Raises:
            CheckpointError: unreadable, or anything is missing, unknown or misshaped.
        """
        try:
            checkpoint = read_checkpoint(path)
        except CheckpointError as error:
            raise CheckpointError(f"Cannot resume: {error}\n{self._advise(path)}") from error
        fit = compare(checkpoint["model"], self.model)
        absent = [key for key in self.checkpointables if key not in checkpoint]
        if not fit.is_complete or absent:
            problems = "\n".join(filter(None, [fit.problems(), *(f"  no {key} state" for key in absent)]))
            raise CheckpointError(
                f"Cannot resume from {path}, it belongs to another run or configuration:\n{problems}\n"
                "Use that configuration, or start without --resume in another OUTPUT_DIR."
            )
        self.model.load_state_dict(fit.matched, strict=False)
        self.logger.info("Resuming from %s", path)
        return self._restore_parts(checkpoint, None)

    def _read(self, address: str) -> tuple[dict[str, Any], Fit]:
        checkpoint = read_checkpoint(local_file(address))
        names = list(self.model.state_dict())
        if AVERAGED in checkpoint:
            self.logger.info("%s: its moving average is taken.", address)
        weights = detector_in(checkpoint)
        # A backbone is the student's: a teacher that averages it has one of the same names.
        detector_names = [name for name in names if not name.startswith(TEACHER)]
        if address.startswith(TORCHVISION):
            weights = match_suffixes(rename_resnet(weights), detector_names)
        elif checkpoint.pop("by_suffix", False):
            weights = match_suffixes(weights, detector_names)
        if not is_distilling(names):
            say_average(weights, address)
        checkpoint["model"] = fit_to_model(weights, names)
        return checkpoint, compare(checkpoint["model"], self.model)

    def _restore_parts(self, checkpoint: dict[str, Any], keys: list[str] | None) -> dict[str, Any]:
        for key in self.checkpointables if keys is None else keys:
            if key in checkpoint:
                self.checkpointables[key].load_state_dict(checkpoint.pop(key))
        return {key: value for key, value in checkpoint.items() if key != "model"}

    def _advise(self, damaged: str) -> str:
        """Names the newest checkpoint of the folder that a run could resume from instead."""
        newest = self._newest(besides=Path(damaged).name)
        if newest is None:
            return f"No other checkpoint in {self.save_dir} loads. Start again without --resume in another OUTPUT_DIR."
        tag = Path(self.save_dir) / LAST
        return f"The newest checkpoint here that loads is {newest}. To use it: echo {newest.name} > {tag}"

    def _numbered(self) -> list[Path]:
        """The line of checkpoints, newest first."""
        files = [path for path in Path(self.save_dir).glob("model_*.pth") if path.stem != BEST]
        return sorted(files, key=lambda path: (path.stat().st_mtime, path.name), reverse=True)

    def _newest(self, besides: str = "") -> Path | None:
        """The newest of them that has all that a resumed run needs."""
        for path in self._numbered():
            if path.name == besides:
                continue
            with contextlib.suppress(CheckpointError):
                if read_checkpoint(path).keys() >= self.checkpointables.keys():
                    return path
        return None
