"""Classes are paired by name or not at all, and the log shows how."""

from __future__ import annotations

import unicodedata

from detr_distill.distill.classes import ClassMap, match_classes, pairing_table, report_pairing
from detr_distill.errors import ConfigError

import pytest

THREE = ["red", "green", "blue"]


def test_names_decide():
    assert match_classes(THREE, THREE, 3, 3).identical
    assert match_classes(THREE, THREE[::-1], 3, 3).teacher == (2, 1, 0)
    partial = match_classes(THREE, ["blue", "pink"], 3, 2)
    assert (partial.student, partial.teacher) == ((2,), (0,))


def test_one_character_is_one_however_it_is_written():
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert match_classes([composed, "tea"], [decomposed, "tea"], 2, 2).identical
    assert match_classes([composed, "tea"], ["tea", decomposed], 2, 2).teacher == (1, 0)
    with pytest.raises(ConfigError, match=r"teacher's class names, from its training set, have café more than once"):
        match_classes(["tea", composed], [decomposed, composed], 2, 2)


@pytest.mark.parametrize("names", [["red"] * 3, ["red", "red", "blue"], ["green", "pink", "pink"]])
def test_a_name_twice_is_refused(names):
    with pytest.raises(ConfigError, match=r"more than once\. Name each of its 3 classes once in .*CLASS_NAMES"):
        match_classes(THREE, names, 3, 3)
    with pytest.raises(ConfigError, match=r"student's class names, .* Give each category"):
        match_classes(names, THREE, 3, 3)


def test_an_index_without_a_class_may_be_marked():
    """COCO's DETRs predict 91 indices, of which 80 are classes."""
    classes = match_classes(["red", "blue"], ["N/A", "red", "N/A", "blue"], 2, 4)
    assert (classes.student, classes.teacher) == ((0, 1), (1, 3))
    with pytest.raises(ConfigError, match="share no name"):
        match_classes(["N/A"], ["N/A", "N/A"], 1, 2)


def test_unknown_names_of_a_teacher_are_refused():
    with pytest.raises(ConfigError, match=r"config\.json does not tell.*CLASS_NAMES \"\['red', 'green', 'blue'\]\""):
        match_classes(THREE, None, 3, 3, "id2label of config.json")
    with pytest.raises(ConfigError, match=r"teacher predicts 4 classes and the student 3, .*CLASS_NAMES"):
        match_classes(THREE, None, 3, 4)


@pytest.mark.parametrize(("teacher", "whose"), [(None, "student's and teacher's"), (THREE, "the student's")])
def test_unknown_names_of_a_student_are_warned_of(caplog, teacher, whose):
    assert match_classes(None, teacher, 3, 3).identical
    assert f"names of {whose} classes are unknown: 3 classes are paired by index" in caplog.text


def test_a_student_s_own_class_may_have_any_name():
    assert match_classes(["LABEL_1", "red"], ["red", "LABEL_1"], 2, 2).teacher == (1, 0)


def test_the_pairing_is_shown(caplog):
    caplog.set_level("INFO")
    classes = match_classes(THREE, ["blue", "pink", "red"], 3, 3)
    report_pairing(classes, THREE, ["blue", "pink", "red"])
    rows = [line.split() for line in caplog.text.splitlines()]
    assert ["red", "0", "2"] in rows and ["green", "1", "-"] in rows and ["blue", "2", "0"] in rows
    assert "knows 2 of the student's 3 classes. It teaches nothing of green" in caplog.text
    caplog.clear()
    report_pairing(classes, None, THREE)
    assert not caplog.text


def test_a_long_list_is_shown_in_columns():
    def table(count):
        everything = tuple(range(count))
        return pairing_table(ClassMap(everything, everything, True, count), [f"c{n}" for n in everything]).splitlines()

    assert len(table(80)) == 2 + 27 and table(80)[-1].split() == ["c78", "78", "78", "c79", "79", "79"]
    assert len(table(500)) == 2 + 40 + 1 and table(500)[-1] == "and 380 more"
