"""Processes that torchrun started, one a GPU, on one machine or several: ``torchrun ... train_net.py ...``.

torchrun says by environment variables which process this is. It ends all processes when one fails, and with
``--max-restarts`` starts them anew: they go on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.distributed.rendezvous import rendezvous

from ...errors import ConfigError, DetrDistillError

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
ADDRESS = "detr_distill/port"  # in torchrun's store
SECONDS_TO_ANSWER = 5.0


@dataclass(frozen=True)
class Place:
    """Which of the run's processes this one is.

    Attributes:
        rank: of ``world``. local_rank: of the ``local_world`` processes of this machine. restarts: how often torchrun
            started all of them anew.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    restarts: int = 0

    @classmethod
    def from_environment(cls) -> Place | None:
        """None where torchrun did not start this process."""
        if not dist.is_torchelastic_launched():
            return None
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
        return cls(*(int(os.environ[name]) for name in names))

    def adapt(self, arguments: argparse.Namespace) -> None:
        """Lets the command line say what torchrun did, in place; after a restart, to go on from the last checkpoint.

        Raises:
            ConfigError: it asks for other processes than torchrun started.
        """
        if arguments.num_gpus not in (0, 1, self.local_world):
            raise ConfigError(
                f"--num-gpus {arguments.num_gpus}: torchrun started {self.local_world} processes on this machine. "
                "Leave --num-gpus away, or set torchrun's --nproc-per-node to it; --num-gpus 0 is the CPU."
            )
        if arguments.num_machines != 1 or arguments.machine_rank:
            raise ConfigError(
                "--num-machines and --machine-rank are for a run without torchrun, which counts machines by its own "
                "--nnodes. Leave them away."
            )
        available = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if arguments.num_gpus and self.local_world > available > 0:
            raise ConfigError(
                f"torchrun --nproc-per-node {self.local_world}: this machine has {available} GPUs. Start {available} "
                "processes or fewer, or train on the CPU with --num-gpus 0."
            )
        arguments.num_gpus = self.local_world if arguments.num_gpus and available else 0
        if self.restarts and not arguments.eval_only:
            arguments.resume, arguments.overwrite = True, False

    @contextlib.contextmanager
    def joined(self, *, on_gpu: bool) -> Iterator[None]:
        """Within, the processes know each other: by NCCL, or on the CPU by Gloo."""
        if on_gpu:
            torch.cuda.set_device(self.local_rank)
        backend = "nccl" if on_gpu else "gloo"
        store = self._find_store()
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world, timeout=DEFAULT_TIMEOUT)
        for machine in range(self.world // self.local_world):
            first = machine * self.local_world
            group = dist.new_group(list(range(first, first + self.local_world)))
            if first <= self.rank < first + self.local_world:
                comm._LOCAL_PROCESS_GROUP = group
        comm.synchronize()
        yield
        dist.destroy_process_group()

    def _find_store(self) -> dist.Store:
        """The first process's own store, to whose address torchrun's leads.

        torchrun keeps one store for all its attempts, where processes that were started anew would find the addresses
        of those that are gone. An address that nobody answers at is an earlier attempt's: it is asked for again.
        """
        shared, _, _ = next(rendezvous("env://", self.rank, self.world))
        host = os.environ["MASTER_ADDR"]
        if self.rank == 0:
            own = dist.TCPStore(host, 0, self.world, is_master=True, wait_for_workers=False)
            shared.set(ADDRESS, str(own.port))
            return own
        deadline = time.monotonic() + DEFAULT_TIMEOUT.total_seconds()
        while not _answers(host, port := int(shared.get(ADDRESS))) and time.monotonic() < deadline:
            time.sleep(0.5)
        return dist.TCPStore(host, port, self.world, is_master=False, timeout=DEFAULT_TIMEOUT)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=SECONDS_TO_ANSWER).close()
    except OSError:
        return False
    return True


def first_of_each_machine_first(work: Callable[[], Result]) -> Result:
    """What every process's call gives, the first process's of each machine made before the others'.

    Checks of data fill a cache that the others find. Where a call fails, its error is raised by the process whose it
    is, and the others end without a word.

    Raises:
        DetrDistillError: what ``work`` raises.
        SystemExit: another process's call failed.
    """
    result: list[Result] = []
    for turn in (True, False):
        error: DetrDistillError | None = None
        if (comm.get_local_rank() == 0) is turn:
            try:
                result.append(work())
            except DetrDistillError as found:
                error = found
        failed = any(comm.all_gather(error is not None))
        if error is not None:
            raise error
        if failed:
            raise SystemExit(1)
    return result[0]
