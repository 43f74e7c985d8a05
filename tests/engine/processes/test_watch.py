"""How the processes of a run learn that one of them failed or was killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

from detr_distill.engine.processes.watch import PeerWatch, watching_peers

import pytest
import torch.distributed as dist


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def watches(count=3):
    """Of processes that share a store; none has a thread."""
    store = dist.HashStore()
    return [PeerWatch(store, rank, count, lambda words, rank: None, silence=40, grace=10) for rank in range(count)]


def test_silence_tells_that_a_process_is_gone(clock):
    first, second, third = watches()
    for clock[0] in range(0, 100, 2):
        assert first.look() is None and second.look() is None
        if clock[0] == 20:
            break
        third.look()
    clock[0] = 59
    assert second.look() is None and first.look() is None, "39 seconds after its last sign was heard"
    clock[0] = 61
    for watch in (first, second):
        words, gone = watch.look()
        assert "process 2 gave no sign of life for 40 s" in words and gone == 2


def test_a_process_that_is_done_is_missed_by_nobody(clock):
    first, second, third = watches()
    for watch in (first, second, third):
        watch.look()
    third.stop("done")
    clock[0] = 30
    assert first.look() is None and second.look() is None
    clock[0] = 65
    assert first.look() is None


def test_a_failure_leaves_the_others_time_for_their_own_words(clock):
    first, second, _ = watches()
    assert first.look() is None
    second.stop("failed on machine a ended with DataError")
    assert first.look() is None
    clock[0] = 10.5
    assert first.look() == ("Training process 1 on machine a ended with DataError.", 1)


def test_a_store_that_is_gone_is_the_first_process(clock):
    first, second = watches(2)

    class Gone:
        def set(self, *arguments):
            raise RuntimeError("Connection reset by peer\nC++ stack")

    second._store = Gone()
    assert first.look() is None
    words, gone = second.look()
    assert "first process is gone" in words and "(Connection reset by peer)" in words and gone == 0
    second.stop("done")


def _train(rank, folder, victim):
    """Waits for nothing, as within a library, until another process is killed."""
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    report = lambda words: (folder / f"{rank}.txt").write_text(words)  # noqa: E731
    with watching_peers(report, beat=0.1, silence=1.0):
        if rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


def test_a_killed_process_ends_the_others(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_train, args=(rank, tmp_path, 1)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(50)
    assert [process.exitcode for process in processes] == [1, -signal.SIGKILL]
    assert "Training process 1 gave no sign of life" in (tmp_path / "0.txt").read_text()
    assert not (tmp_path / "1.txt").exists()


def test_one_process_has_nobody_to_look_after():
    with watching_peers(lambda words: None):
        pass
