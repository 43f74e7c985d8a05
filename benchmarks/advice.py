"""docs/when-to-distil.md: what the measured gains say to somebody who has to decide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from photo_rows import D3ETR, DETRDISTILL, FEW, FEW_BOXES, FILE, FILE_FLAT, MAPS, MAPS_START, OWNED, OWNED_BOXES

STARTED = ", started from the teacher"
# What a reader has -> the rows that use it.
SITUATIONS = {
    "Few labels, more images, and a teacher that has seen more labels": (OWNED, OWNED_BOXES),
    "Few labels, more images, and nothing else": (FEW, FEW_BOXES),
    "All labels, and a teacher's predictions or feature maps on disk": (FILE, MAPS, "DETRDistill from the file"),
    "The same, and time until more of it brings nothing": (FILE_FLAT,),
    "All labels, predictions on disk, and the teacher's encoder, decoder and heads fit the student": (
        *(FILE + STARTED, MAPS_START, "DETRDistill from the file" + STARTED),
    ),
    "All labels, and the teacher in every step": (D3ETR, DETRDISTILL, D3ETR + STARTED, DETRDISTILL + STARTED),
}
INTRODUCTION = """
# When to distil

Each sentence is a row of [evidence.md](evidence.md): the gain in AP over the best control that takes no longer, with
its 95 % interval over the test images. A control may use the teacher too, by its hard boxes or its parts, where the row
does: then a row that does not pay says that the cheaper use of the teacher does as well. Written by
`benchmarks/photos.py` from `benchmarks/results/photos_gains.csv`; what is not here was not measured.
"""


def describe_gain(gain: dict) -> str:
    """Difference in AP with its interval, and the rival."""
    return (
        f"{float(gain['AP']):+.1f} [{float(gain['AP_low']):+.1f}, {float(gain['AP_high']):+.1f}] over {gain['rival']}"
    )


def verdict(gain: dict) -> str:
    """What the interval says."""
    low, high = float(gain["AP_low"]), float(gain["AP_high"])
    return "pays" if low > 0 else "costs" if high < 0 else "makes no difference that could be shown"


def advice_page(gains: Sequence[tuple[dict, str]]) -> str:
    """The page.

    Args:
        gains: each with the title of its table.
    """
    found = [INTRODUCTION.strip(), ""]
    for situation, rows in SITUATIONS.items():
        lines = list(_sentences(gains, rows))
        if lines:
            found += [f"## {situation}", "", *lines, ""]
    return "\n".join(found)


def _sentences(gains: Sequence[tuple[dict, str]], rows: Iterable[str]) -> Iterable[str]:
    """One for each gain of these rows, the largest first."""
    chosen = [(gain, title) for gain, title in gains if gain["row"] in rows]
    for gain, title in sorted(chosen, key=lambda entry: -float(entry[0]["AP"])):
        seeds = "1 seed" if int(gain["seeds"]) == 1 else f"{gain['seeds']} seeds"
        yield f"- {title}: *{gain['row']}* **{verdict(gain)}**: {describe_gain(gain)} ({seeds})."
