"""A file appears whole or not at all, and why not is said."""

import os

from detr_distill.checkpoint.export import save_weights
from detr_distill.checkpoint.writing import check_place, write_atomically
from detr_distill.commands import export_student, visualize, write_key_reference
from detr_distill.errors import OutputError

import pytest
import torch


@pytest.fixture
def full(tmp_path):
    """A file whose next version finds no room."""
    path = tmp_path / "a.pth"
    path.write_bytes(b"good")
    (tmp_path / "a.pth.tmp").symlink_to("/dev/full")
    return path


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_without_room_the_old_file_stays_and_nothing_else(full, size):
    """torch writes small tensors when it closes the file, large ones at once."""
    with pytest.raises(OutputError, match=r"a\.pth cannot be written: No space left on device\. Make room.*unharmed"):
        save_weights({"a": torch.zeros(size)}, full)
    assert full.read_bytes() == b"good" and os.listdir(full.parent) == ["a.pth"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_another_error_passes_and_leaves_nothing(tmp_path, error):
    def fail(file):
        file.write(b"half")
        raise error

    with pytest.raises(error):
        write_atomically(tmp_path / "a.pth", fail)
    assert not os.listdir(tmp_path)


def test_a_place_is_checked_with_the_folders_that_do_not_exist_yet(tmp_path):
    check_place("--output", tmp_path / "new" / "folder" / "a.pth")
    assert not os.listdir(tmp_path)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="gone is no folder that can be written to"):
        check_place("--output", tmp_path / "gone" / "a.pth")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (export_student, ["--weights", "none.pth"]),
        (visualize, ["--weights", "none.pth", "--config-file", "none.yaml"]),
        (write_key_reference, []),
    ],
)
def test_programs_name_an_output_that_cannot_be_written(tmp_path, capsys, program, words):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as caught:
        program.main([*words, "--output", str(tmp_path / "file" / "a.pth")])
    printed = capsys.readouterr().err
    assert caught.value.code == 1 and "OutputError: " in printed and "file" in printed and "Traceback" not in printed
