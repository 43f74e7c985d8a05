"""What a training step of each method costs, beside a plain student's; and so how long "the same time" is."""

from __future__ import annotations

import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from detr_distill.data import register_configured
from detr_distill.engine import build_config
from detr_distill.engine.model import build_named_model
from detr_distill.engine.trainer import DistillTrainer

import torch
from common import ROOT, time_in_turn
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage
from photo_places import Places
from photo_rows import ALL_LABELS, FEW_LABELS, Collection, Row
from photo_runs import student_keys
from study import training_iteration
from workers import Job

TEACHER, PLAIN = "teacher", "student"
LOOK = "look"  # of the teacher at an image, for the file of predictions
LOOKS = {"file": 1, "boxes": 1, "maps": 2}  # at each image, for what is used of the teacher
FAMILY = {"cards": "bccd", "digits_short": "digits"}  # sets whose detectors and image sizes are the same


class Steps:
    """Seconds of a training step of each configuration, measured in turn on one device, kept in a JSON file.

    On a CPU they are the processor's seconds of one thread, which other work on the machine does not change.

    Args:
        file: of what was measured. places: where the teachers are.
    """

    def __init__(self, file: Path, places: Places, rounds: int = 10):
        self.file, self.places, self.rounds = file, places, rounds
        self.seconds: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.is_file() else {}

    def needs(self, collected: Iterable[Collection], teacher_job: Callable[[Collection, float, Places], Job]) -> list:
        """The teachers that a measurement needs."""
        return [teacher_job(each, 1.0, self.places) for each in self._unknown(collected)]

    def _unknown(self, collected: Iterable[Collection]) -> list[Collection]:
        families = {FAMILY.get(each.name, each.name): each for each in reversed(list(collected))}
        return [each for family, each in families.items() if family not in self.seconds]

    def measure(self, collected: Iterable[Collection]) -> None:
        """Measures what is not known yet; nothing else should run meanwhile."""
        for collection in self._unknown(collected):
            self.seconds[FAMILY.get(collection.name, collection.name)] = self._measure(collection)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(self.seconds, indent=1))

    def _measure(self, collection: Collection) -> dict[str, float]:
        torch.set_num_threads(1)
        rows: dict[str, tuple[Row, float]] = {}
        for share, table in ((1.0, ALL_LABELS), (0.1, FEW_LABELS)):
            for row in table:
                rows.setdefault(row.config, (row, share))
        device = ["MODEL.DEVICE", self.places.device]
        with tempfile.TemporaryDirectory() as folder, EventStorage():
            iterations = {
                name: training_iteration(config, folder, [*keys, *device])
                for name, (row, share) in rows.items()
                if name in collection.configs
                for config, keys in [student_keys(collection, row, share, 1000, self.places)]
            }
            data = collection.keys(1000, self.places.part)
            iterations[TEACHER] = training_iteration(collection.teacher_config, folder, [*data, *device])
            iterations[LOOK] = look_at_images(collection.teacher_config, folder, [*data, *device])
            clock = time.process_time if self.places.device == "cpu" else time.perf_counter
            seconds = time_in_turn(iterations, self.rounds, self.places.device, clock)
        return {name: statistics.median(found) for name, found in seconds.items()}

    def known(self, collection: Collection) -> bool:
        """Whether a set's steps were measured."""
        return FAMILY.get(collection.name, collection.name) in self.seconds

    def ratio(self, config: str, collection: Collection) -> float:
        """A step of a configuration in steps of the plain student."""
        return self._of(collection)[config] / self._of(collection)[PLAIN]

    def _of(self, collection: Collection) -> dict[str, float]:
        return self.seconds[FAMILY.get(collection.name, collection.name)]

    def iterations(self, row: Row, collection: Collection) -> int:
        """How long a row trains."""
        own, teachers = collection.iterations
        if not row.lasts:
            return own
        if row.lasts == "flat":
            return collection.flat
        if row.lasts == "total":
            file = next(other for other in ALL_LABELS if other.teacher == "file")
            return round(self.steps(file, own, collection) + teachers * self.ratio(TEACHER, collection))
        other = next(found for rows in (ALL_LABELS, FEW_LABELS) for found in rows if found.name == row.lasts)
        left = self.steps(other, own, collection) - (own if row.goes_on else 0)
        return max(1, round(left / self.ratio(row.config, collection)))

    def steps(self, row: Row, iterations: int, collection: Collection) -> float:
        """The time of a training in steps of the plain student, the teacher's look at the images included."""
        before = collection.iterations[0] if row.goes_on else 0
        looks = count_images(collection.train) * LOOKS.get(row.teacher, 0)
        return before + looks * self.ratio(LOOK, collection) + iterations * self.ratio(row.config, collection)

    def time(self, row: Row, iterations: int, collection: Collection) -> float:
        """Seconds of a training, were it alone on the device."""
        return self.steps(row, iterations, collection) * self._of(collection)[PLAIN]


@functools.cache
def count_images(name: str) -> int:
    """Of a registered set, which every row of a table asks for."""
    return len(DatasetCatalog.get(name))


def look_at_images(config: str, folder: str, keys: Sequence[str]) -> Callable[[], None]:
    """At a call the detector reads and sees the next test image."""
    cfg = build_config(str(ROOT / config), [*keys, "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", folder])
    register_configured(cfg)
    detector = build_named_model(cfg).eval()
    loader = iter(DistillTrainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]))

    @torch.no_grad()
    def look() -> None:
        detector(next(loader))

    return look
