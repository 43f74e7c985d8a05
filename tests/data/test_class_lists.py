"""Class lists of a run's sets: equal, or refused with both shown."""

from __future__ import annotations

import unicodedata

from detr_distill.checkpoint.class_names import names_twice
from detr_distill.config.build import build_config
from detr_distill.data.class_lists import check_class_lists
from detr_distill.errors import DataError

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

MANY = [f"class {index}" for index in range(80)]
LISTS = {
    "list_a": ["cat", "dog", "owl"],
    "list_reversed": ["owl", "dog", "cat"],
    "list_fewer": ["cat", "dog"],
    "list_more": ["cat", "dog", "owl", "elk"],
    "list_other": ["cat", "dog", "ape"],
    "list_many": MANY,
    "list_many_other": [*MANY[:40], "tree", *MANY[41:]],
    "list_composed": [unicodedata.normalize("NFC", "café"), "dog"],
    "list_decomposed": [unicodedata.normalize("NFD", "café"), "dog"],
}


@pytest.fixture(autouse=True, scope="module")
def _sets():
    for name, classes in LISTS.items():
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).thing_classes = classes
    yield
    for name in LISTS:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def settings(train, test):
    return build_config("", ["DATASETS.TRAIN", repr(train), "DATASETS.TEST", repr(test)])


def test_equal_and_unknown_lists_pass():
    check_class_lists(settings(("list_a", "list_a"), ("list_a", "never_registered")))
    check_class_lists(settings(("never_registered",), ("list_fewer",)))
    check_class_lists(settings((), ()))
    check_class_lists(settings(("list_a",), ()))


def test_one_character_is_one_however_it_is_written():
    assert LISTS["list_composed"] != LISTS["list_decomposed"]
    check_class_lists(settings(("list_composed",), ("list_decomposed",)))
    assert names_twice([*LISTS["list_composed"], *LISTS["list_decomposed"]]) == LISTS["list_composed"]


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (("list_a",), ("list_reversed",), r"TRAIN list_a and DATASETS.TEST list_reversed .* class 0 .*another order"),
        (("list_a", "list_reversed"), (), r"TRAIN list_a and DATASETS.TRAIN list_reversed .*another order"),
        (("list_a",), ("list_a", "list_fewer"), r"TEST list_fewer .* from class 2 on: the second lacks 'owl'"),
        (("list_fewer",), ("list_a",), r"class 2 on: the second adds 'owl'.*\['cat', 'dog'\].*\['cat', 'dog', 'owl'\]"),
        (("list_a",), ("list_other",), r"the second lacks 'owl' and the second adds 'ape'"),
        (("list_many",), ("list_many_other",), r"class 40 .*\[\.\.\., 'class 39', 'class 40', .*\] \(80 in all\)"),
        ((), ("list_a", "list_more"), r"TEST list_a and DATASETS.TEST list_more .*adds 'elk'"),
    ],
)
def test_different_lists_are_shown(train, test, words):
    with pytest.raises(DataError, match=rf"(?s){words}.*the same categories in the same order"):
        check_class_lists(settings(train, test))
