"""A run's folder belongs to one process, for as long as that lives."""

import errno
import os
import signal

from detr_distill.engine.folder import lock as folder_lock
from detr_distill.engine.folder.lock import locked
from detr_distill.errors import ConfigError

import pytest


@pytest.fixture
def child():
    """Forks; the child says on a pipe that it is ready and then sleeps until it is killed."""
    started = []

    def fork(act):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                act(lambda: os.write(writing, b"x"))
            finally:
                os._exit(1)
        started.append(pid)
        assert os.read(reading, 1) == b"x"
        return pid

    yield fork
    for pid in started:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_second_run_is_told_who_has_the_folder(tmp_path):
    with locked(tmp_path / "run"):
        words = rf"OUTPUT_DIR .*run is in use by process {os.getpid()} on "
        with pytest.raises(ConfigError, match=words), locked(tmp_path / "run"):
            pass
        with locked(tmp_path / "other"):
            pass
    with locked(tmp_path / "run"):
        pass


def test_the_lock_of_a_killed_process_is_gone(tmp_path, child):
    def hold(ready):
        with locked(tmp_path):
            ready()
            signal.pause()

    pid = child(hold)
    with pytest.raises(ConfigError, match=f"in use by process {pid}"), locked(tmp_path):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with locked(tmp_path):
        pass


def test_a_process_that_was_forked_does_not_keep_it(tmp_path, child):
    def sleep(ready):
        ready()
        signal.pause()

    with locked(tmp_path):
        child(sleep)
    with locked(tmp_path):
        pass


def test_a_disk_without_locks_costs_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "flock", refuse)
    with locked(tmp_path):
        pass
    assert "knows no locks" in caplog.text
