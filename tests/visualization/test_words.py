"""Names in pictures: their own characters where a font has them, their numbers where none has, never placeholders."""

from __future__ import annotations

import warnings

from detr_distill.visualization import words
from detr_distill.visualization.draw import label_box
from detr_distill.visualization.words import drawable, style

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


@pytest.fixture
def without_fonts(monkeypatch):
    """As on a machine with matplotlib's font alone."""
    monkeypatch.setattr(words, "_installed", list)
    words._font_of.cache_clear()
    words._say_lacking.cache_clear()
    yield
    words._font_of.cache_clear()


def drawn(name: str) -> np.ndarray:
    """Pixels of a label; a character without a glyph would warn, and fail here."""
    figure = Figure(figsize=(4, 1))
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        label_box(figure.add_subplot(), np.array([0.0, 0, 1, 1]), drawable(name), "red")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())


@pytest.mark.usefixtures("without_fonts")
@pytest.mark.parametrize("name", ["кошка", "γάτα", "chaîne", "قطة", "חתול", "Đèn giao thông"])
def test_scripts_that_the_font_has_are_drawn_as_they_are(name):
    assert drawable(name) == name and drawn(name).std() > 0
    assert not np.array_equal(drawn(name), drawn(name[::-1]))


@pytest.mark.usefixtures("without_fonts")
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("猫", "\\u732b"),
        ("고양이 2", "\\uace0\\uc591\\uc774 2"),
        ("cat 🐈", "cat \\U0001f408"),
        ("a\nb\tc", "a b c"),
        ("\x07", "\\x07"),
        ("\ud800", "\\ud800"),
        ("$\\frac{1}$ and $x$", "$\\frac{1}$ and $x$"),
        ("n" * 300, "n" * 39 + "…"),
        ("", ""),
    ],
)
def test_what_no_font_has_is_spelled_out(name, shown):
    assert drawable(name) == shown
    drawn(name)


@pytest.mark.usefixtures("without_fonts")
def test_it_is_said_once_for_a_name(caplog):
    drawable("猫"), drawable("猫")
    assert caplog.text.count("No installed font has all characters of the name '\\u732b'") == 1


def test_an_installed_font_is_taken(monkeypatch):
    """The first that has the character: here one that stands for an installed one."""
    words._font_of.cache_clear()
    other = words.findfont("DejaVu Sans Mono")
    monkeypatch.setattr(words, "_installed", lambda: ["/no/such/font.ttf", other])
    monkeypatch.setattr(words, "_characters", lambda path: {ord("猫")} if path == other else set())
    assert style("猫")["fontfamily"] == ["DejaVu Sans", "DejaVu Sans Mono"] and drawable("猫") == "猫"
    words._font_of.cache_clear()
