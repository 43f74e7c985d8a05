"""Pairs of student queries with teacher queries.

Letters: B images, Ls student layers, M pairs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..structures import GroundTruth, Pairs


@dataclass
class Match:
    """Pairs of student queries with teacher queries.

    Attributes:
        name: the matcher's short name. student_group: name of the student's query group.
        teacher_layer: for each student layer, the teacher layer it is compared with (host integers).
        pairs: ``query`` indexes the student, ``target`` the teacher, one row a student layer.
        teacher_group: name of the teacher's query group.
    """

    name: str
    student_group: str
    teacher_layer: tuple[int, ...]
    pairs: Pairs
    teacher_group: str = "own"

    def select(self, images: slice) -> Match:
        """The pairs of some of the images."""
        return dataclasses.replace(self, pairs=self.pairs.select(images))


@dataclass
class LabelMatch(Match):
    """Pairs of student queries with objects that nobody labelled.

    Attributes:
        targets: the objects; ``pairs.target`` indexes these, and not the teacher's queries.
    """

    targets: GroundTruth = dataclasses.field(kw_only=True)

    def select(self, images: slice) -> LabelMatch:
        """The pairs and the objects of some of the images."""
        return dataclasses.replace(self, pairs=self.pairs.select(images), targets=self.targets.select(images))
