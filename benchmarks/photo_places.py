"""Where the files of the study on real photos are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common import ROOT
from photo_rows import Collection


@dataclass(frozen=True)
class Places:
    """Where the study's files are, and what it runs on.

    Attributes:
        work: teachers and what they predicted. results: a JSON file and the detections of each run.
        imagenet: weights of the teacher's backbone. device: "cuda" or "cpu". part: "val" or "test".
    """

    work: Path
    results: Path
    imagenet: str
    device: str
    part: str

    def weights(self, collection: Collection, share: float) -> Path:
        """The checkpoint of the teacher that was trained on a share of the labels."""
        shipped = collection.shipped and share == 1
        return ROOT / collection.shipped if shipped else self.work / "teachers" / f"{collection.name}_{share:g}.pth"

    def predictions(self, collection: Collection, share: float) -> Path:
        """What this teacher predicted on the training images."""
        return self.work / "predictions" / f"{collection.name}_{share:g}"

    def maps(self, collection: Collection, share: float) -> Path:
        """Feature maps of these images and of their mirror images, at the student's size."""
        return self.work / "predictions" / f"{collection.name}_{share:g}_maps"

    def result(self, name: str) -> Path:
        """The file of a run."""
        return self.results / f"{name}.json"

    def student(self, collection: Collection, share: float, seed: int) -> Path:
        """The weights of the plain student with a share of the labels, with which others begin."""
        return self.work / "students" / f"{collection.name}_{share:g}_{collection.iterations[0]}_{seed}.pth"
