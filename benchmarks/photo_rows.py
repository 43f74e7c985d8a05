"""The rows of the study on real photos: what each trains, from what, and for how long."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PLAIN, FILE = "plain", "from the file"
TEACHER_ROW = "teacher"
MAPS, MAPS_START = "feature maps from the file", "feature maps from the file, started from the teacher"
FILE_START, PLAIN_START = "from the file, started from the teacher", "plain, started from the teacher"
D3ETR, DETRDISTILL = "D3ETR, teacher in every step", "DETRDistill, teacher in every step"
SAME_TIME = "plain, for the time of 'from the file'"
D3ETR_TIME = "plain, for D3ETR's time"
START_TIME = "plain, started from the teacher, for the time of 'from the file'"
TOTAL_TIME = "plain, for the total time (teacher's training included)"
BOXES = "plain, the teacher's hard boxes as labels"
PLAIN_FLAT, FILE_FLAT = "plain, until its curve is flat", "from the file, for as many iterations"
SELF = "averaged student as the teacher, unlabelled images"
OWNED, OWNED_BOXES = "from the file, unlabelled images", "plain, hard boxes on the unlabelled images"
FEW, FEW_BOXES = f"{OWNED}, teacher of the same labels", f"{OWNED_BOXES}, teacher of the same labels"
LABELS_TIME = f"plain, for the time of '{OWNED}'"
START_PARTS = ["encoder", "decoder", "queries", "heads"]


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        config: name of the configuration file.
        teacher: what of a teacher is used: "", "file", "maps", "live" or "boxes".
        start: the student begins with the teacher's parts. lasts: the row whose time it takes, "total" or "flat".
        few: the teacher has seen the same few labels, instead of all. control: a rival of the rows that distil.
        goes_on: it begins with the plain student of its seed, whose training counts.
    """

    name: str
    config: str = "student"
    teacher: str = ""
    start: bool = False
    lasts: str = ""
    few: bool = False
    control: bool = False
    goes_on: bool = False

    @property
    def owns(self) -> bool:
        """Whether it uses a teacher that has seen all labels."""
        return bool(self.teacher or self.start) and not self.few

    @property
    def slug(self) -> str:
        """The name as part of a file's name."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")


# In the order of importance: a study that is cut short has the first rows of all seeds.
ALL_LABELS = (
    Row(PLAIN, control=True),
    Row(FILE, "from_file", "file"),
    Row(SAME_TIME, lasts=FILE, control=True),
    Row(MAPS, "maps_from_file", "maps"),
    Row(FILE_START, "from_file", "file", start=True),
    Row(PLAIN_START, start=True, control=True),
    Row(START_TIME, start=True, lasts=FILE_START, control=True),
    Row(MAPS_START, "maps_from_file", "maps", start=True),
    Row(D3ETR, "d3etr", "live"),
    Row(D3ETR_TIME, lasts=D3ETR, control=True),
    Row(BOXES, teacher="boxes", control=True),
    Row("DETRDistill from the file", "detrdistill_from_file", "file"),
    Row("auxiliary group without a teacher", "group", control=True),
    Row(DETRDISTILL, "detrdistill", "live"),
    Row(TOTAL_TIME, lasts="total", control=True),
    Row(f"{D3ETR}, started from the teacher", "d3etr", "live", start=True),
    Row(f"{DETRDISTILL}, started from the teacher", "detrdistill", "live", start=True),
    Row("DETRDistill from the file, started from the teacher", "detrdistill_from_file", "file", start=True),
    Row(PLAIN_FLAT, lasts="flat", control=True),
    Row(FILE_FLAT, "from_file", "file", lasts="flat"),
)
FEW_LABELS = (
    Row(PLAIN, control=True),
    Row(OWNED, "unlabeled", "file"),
    Row(LABELS_TIME, lasts=OWNED, control=True),
    Row(SELF, "self_training", lasts=OWNED, control=True, goes_on=True),
    Row(OWNED_BOXES, teacher="boxes"),
    Row(FEW, "unlabeled", "file", few=True),
    Row(FEW_BOXES, teacher="boxes", few=True),
)
FIRST = (*ALL_LABELS[:8], *FEW_LABELS[:5])  # what comes before everything else
SHARES = (0.1, 0.05, 0.2, 0.5)
# Iterations of a plain student and of the teacher, by set.
MAP_NAMES = ("level0", "level1", "level2")  # that a file has for the students on photos
LENGTHS = {"bccd": (400, 800), "cards": (400, 800), "digits": (4000, 2400), "digits_short": (1600, 2400)}
FLAT = 10_240  # iterations after which more bring a plain student of the digits nothing (docs/benchmarks.md)


@dataclass(frozen=True)
class Collection:
    """A data set of the study.

    Attributes:
        name: of it. classes: how many. configs: name of a row's configuration -> file, and KEY VALUE beside it.
        teacher_config: of its teacher. entries: of ``DATASETS.REGISTER``. train, tests: its parts' names, ``tests`` by
            "val" and "test". iterations: of a plain student, and of the teacher.
        shares: of the labels, of which there are tables. flat: iterations until a plain student's curve is flat, or 0.
        shipped: the teacher's weights, where they need no training. starts: its parts fit the student.
    """

    name: str
    classes: int
    configs: dict[str, tuple[str, list[str]]]
    teacher_config: str
    entries: tuple[tuple[str, str, str], ...]
    train: str
    tests: dict[str, str]
    iterations: tuple[int, int]
    shares: tuple[float, ...] = (1.0,)
    flat: int = 0
    shipped: str = ""
    starts: bool = True

    def keys(self, iterations: int, part: str) -> list[str]:
        """KEY VALUE that name data and length of a run."""
        return [
            *("DATASETS.REGISTER", str([list(entry) for entry in self.entries])),
            *("DATASETS.TRAIN", str([self.train])),
            *("DATASETS.TEST", str([self.tests[part]])),
            *("MODEL.DETR.NUM_CLASSES", str(self.classes)),
            *("SOLVER.MAX_ITER", str(iterations), "SOLVER.CHECKPOINT_PERIOD", "1000000"),
            *("TEST.EVAL_PERIOD", "0", "TEST.BEST_METRIC", ""),
        ]


def rows_of(share: float, collection: Collection) -> list[Row]:
    """The rows of a set's table with this share of the labels."""
    rows = ALL_LABELS if share == 1 else FEW_LABELS
    return [
        row
        for row in rows
        if row.config in collection.configs
        and (collection.starts or not row.start)
        and (collection.flat or row.lasts != "flat")
    ]


PHOTO_METHODS = (
    *("student", "from_file", "maps_from_file", "detrdistill_from_file", "d3etr", "detrdistill", "group", "unlabeled"),
    "self_training",
)
FROM_FILE = ["MODEL.DISTILL.TEACHER.NAME", "PredictionsFile"]


def collections(
    sets: dict[str, list[tuple[str, str, str]]], iterations: dict[str, tuple[int, int]]
) -> list[Collection]:
    """The photo sets and the digits.

    Args:
        sets: entries of the parts of each photo set. iterations: of student and teacher, by set.
    """
    classes = {"bccd": 3, "cards": 6}
    found = [
        Collection(
            name,
            classes[name],
            {method: (f"configs/photos/{method}.yaml", []) for method in PHOTO_METHODS},
            "configs/photos/teacher.yaml",
            tuple(entries),
            f"{name}_train",
            {"val": f"{name}_val", "test": f"{name}_test"},
            iterations[name],
            (1.0,) if name == "cards" else (1.0, *SHARES),
        )
        for name, entries in sets.items()
    ]
    return [*found, digits("digits", iterations, (1.0,), FLAT), digits("digits_short", iterations, (1.0, *SHARES))]


def digits(name: str, iterations: dict[str, tuple[int, int]], shares: tuple[float, ...], flat: int = 0) -> Collection:
    """The digits with the better of their shipped teachers, which is no DETR."""
    return Collection(
        name,
        10,
        {
            "student": ("configs/digits/conditional_student.yaml", []),
            "from_file": ("configs/digits/predictions_conditional.yaml", FROM_FILE),
            "unlabeled": ("configs/digits/unlabeled_conditional.yaml", FROM_FILE),
            "self_training": ("configs/digits/self_training_conditional.yaml", []),
        },
        "configs/digits/fcos_teacher.yaml",
        (),
        "digits_train",
        {"val": "digits_val", "test": "digits_test"},
        iterations[name],
        shares,
        flat,
        str(Path("weights") / "digits_fcos_teacher.pth"),
        starts=False,
    )
