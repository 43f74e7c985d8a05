"""metrics.json is JSON line by line, whatever happened to the run or the disk."""

import json

from detr_distill.engine.metrics_file import MetricsWriter, TensorBoardWriter, was_evaluated

import pytest
from detectron2.utils.events import EventStorage


def lines(path):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@pytest.fixture
def storage():
    with EventStorage() as found:
        yield found


def test_what_is_no_number_is_null(tmp_path, storage):
    writer = MetricsWriter(tmp_path / "metrics.json")
    for name, value in (("a", float("nan")), ("b", float("-inf")), ("c", 1.5)):
        storage.put_scalar(name, value)
    writer.write()
    assert lines(tmp_path / "metrics.json") == [{"iteration": 0, "a": None, "b": None, "c": 1.5}]


def test_every_scalar_is_written_once(tmp_path, storage):
    """Losses before a checkpoint, the evaluation of the same iteration after it."""
    writer = MetricsWriter(tmp_path / "metrics.json")
    storage.put_scalar("loss", 2.0, smoothing_hint=False)
    writer.write()
    storage.put_scalar("bbox/AP", 30.0)
    writer.write()
    writer.write()
    storage.iter = 4
    storage.put_scalar("loss", 1.0, smoothing_hint=False)
    writer.write()
    assert lines(tmp_path / "metrics.json") == [
        {"iteration": 0, "loss": 2.0},
        {"iteration": 0, "bbox/AP": 30.0},
        {"iteration": 4, "loss": 1.0},
    ]
    assert was_evaluated(tmp_path / "metrics.json", 0) and not was_evaluated(tmp_path / "metrics.json", 4)
    assert not was_evaluated(tmp_path / "none.json", 0)


@pytest.mark.parametrize("damage", [b'{"iteration": 9, "lo', b"\0\0\0\n", b'{"iteration": 9}', b"[1]\n", b"\xff\xfe\n"])
def test_a_damaged_line_is_left_out(tmp_path, storage, caplog, damage):
    path = tmp_path / "metrics.json"
    path.write_bytes(b'{"iteration": 0}\n' + damage)
    writer = MetricsWriter(path)
    storage.put_scalar("loss", 2.0, smoothing_hint=False)
    writer.write()
    assert lines(path) == [{"iteration": 0}, {"iteration": 0, "loss": 2.0}]
    assert "1 lines are no JSON" in caplog.text


def test_a_full_disk_costs_lines_and_not_the_run(tmp_path, storage, caplog):
    path = tmp_path / "metrics.json"
    path.symlink_to("/dev/full")
    writer = MetricsWriter(path)
    storage.put_scalar("loss", 2.0, smoothing_hint=False)
    writer.write()
    assert "No space left on device" in caplog.text and "without these lines" in caplog.text
    path.unlink()
    storage.iter = 1
    storage.put_scalar("loss", 3.0, smoothing_hint=False)
    writer.write()
    assert lines(path) == [{"iteration": 1, "loss": 3.0}]


def test_tensorboard_without_room_is_given_up_with_one_warning(tmp_path, storage, caplog, monkeypatch):
    writer = TensorBoardWriter(str(tmp_path))

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer._writer, "add_scalar", fail)
    storage.put_scalar("loss", 2.0, smoothing_hint=False)
    writer.write()
    writer.write()
    writer.close()
    assert caplog.text.count("without them") == 1
