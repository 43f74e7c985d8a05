"""Every process of a run tells the others that it lives, and ends with a message where one of them does so no more.

A process that waits for the gradients of one that was killed would wait for half an hour, and then say nothing of it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist

BEAT = 2.0  # seconds between two signs of life
SILENCE = 40.0  # seconds without one after which a process counts as gone; a library may keep Python for some
GRACE = 10.0  # seconds in which a process ends by itself after another failed, most often by the same error
DONE, FAILED = "done", "failed"


class PeerWatch:
    """Looks after the other processes from a thread of its own.

    Args:
        store: that all processes share. rank: of this process. world: number of processes.
        end: called once, with what happened in words, where this process has to end; not to return in earnest.
        beat, silence, grace: seconds, see above.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        world: int,
        end: Callable[[str, int], None],
        *,
        beat: float = BEAT,
        silence: float = SILENCE,
        grace: float = GRACE,
    ):
        self._store, self._rank, self._world, self._end = store, rank, world, end
        self._beat, self._silence, self._grace = beat, silence, grace
        self._count = 0
        self._heard: dict[int, tuple[str, float]] = {}  # of each rank its last sign, and when it changed
        self._stopped = threading.Event()
        self._tell("0")
        self._thread = threading.Thread(target=self._watch, name="peer watch", daemon=True)

    def start(self) -> None:
        """After every process has told its first sign."""
        self._thread.start()

    def stop(self, state: str) -> None:
        """Tells the others how this process ends: "done", or "failed" and why."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(self._beat)
        with contextlib.suppress(RuntimeError):  # the process that keeps the store may have ended before
            self._tell(state)

    def look(self) -> tuple[str, int] | None:
        """What is wrong, in words, and with which process; None while nothing is. Tells a sign of life on the way."""
        self._count += 1
        try:
            self._tell(str(self._count))
            signs = [sign.decode() for sign in self._store.multi_get([str(rank) for rank in range(self._world)])]
        except RuntimeError as error:
            text = str(error).strip().splitlines()[0][:200]
            return f"The first process is gone, or the network to its machine is ({text}).", 0
        now = time.monotonic()
        for rank, sign in enumerate(signs):
            if self._heard.get(rank, ("", now))[0] != sign:
                self._heard[rank] = (sign, now)
            state, _, words = sign.partition(" ")
            if state == FAILED and now - self._heard[rank][1] >= self._grace:
                return f"Training process {rank} {words}.", rank
            if state not in (DONE, FAILED) and rank != self._rank and now - self._heard[rank][1] >= self._silence:
                return (
                    f"Training process {rank} gave no sign of life for {self._silence:.0f} s: it was killed, most "
                    "often because the memory was full, or its machine is gone."
                ), rank
        return None

    def _watch(self) -> None:
        while not self._stopped.wait(self._beat):
            found = self.look()
            if found is not None and not self._stopped.is_set():
                self._end(*found)
                return

    def _tell(self, sign: str) -> None:
        self._store.set(str(self._rank), sign)


@contextlib.contextmanager
def watching_peers(report: Callable[[str], None], **seconds: float) -> Iterator[None]:
    """Ends this process, with status 1, where another one of the run fails or is gone.

    Args:
        report: says so in words; called in one process of each machine that is still there.
        seconds: of :class:`PeerWatch`, where they are not the usual ones.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield
        return
    rank, world = dist.get_rank(), dist.get_world_size()
    shared: Any = dist.distributed_c10d._get_default_store()
    store = dist.PrefixStore("peers", shared.clone())  # one connection a thread
    hosts: list[str] = [""] * world
    dist.all_gather_object(hosts, socket.gethostname())

    def end(words: str, gone: int) -> None:
        mine = [other for other in range(world) if hosts[other] == hosts[rank] and other != gone]
        if rank == mine[0]:
            report(f"{words} (machine {hosts[gone]}) This process ends too.")
        sys.stderr.flush()
        os._exit(1)  # the main thread waits within a library for a process that will not answer

    watch = PeerWatch(store, rank, world, end, **seconds)
    dist.barrier()
    watch.start()
    try:
        yield
        dist.barrier()
    except BaseException as error:
        watch.stop(f"{FAILED} on machine {hosts[rank]} ended with {type(error).__name__}")
        raise
    watch.stop(DONE)
