"""What torchrun says of a process, and what the command line may say beside it."""

from __future__ import annotations

from detr_distill.engine import launch
from detr_distill.engine.processes.torchrun import Place, first_of_each_machine_first
from detr_distill.errors import ConfigError

import pytest
import torch

ENVIRONMENT = {
    "TORCHELASTIC_RUN_ID": "x",
    "RANK": "11",
    "WORLD_SIZE": "16",
    "LOCAL_RANK": "3",
    "LOCAL_WORLD_SIZE": "8",
    "TORCHELASTIC_RESTART_COUNT": "2",
}


def parse(*words):
    return launch.argument_parser().parse_args(list(words))


def test_place_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert Place.from_environment() is None
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert Place.from_environment() == Place(rank=11, world=16, local_rank=3, local_world=8, restarts=2)


@pytest.mark.parametrize(
    ("words", "gpus", "message"),
    [
        (("--num-gpus", "4"), 8, r"--num-gpus 4: torchrun started 8 processes.*--nproc-per-node"),
        (("--num-machines", "2"), 8, "--num-machines and --machine-rank are for a run without torchrun"),
        ((), 2, "--nproc-per-node 8: this machine has 2 GPUs. Start 2 processes or fewer"),
    ],
)
def test_a_command_line_that_contradicts_torchrun_is_refused(monkeypatch, words, gpus, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ConfigError, match=message):
        Place(0, 8, 0, 8).adapt(parse(*words))


def test_torchrun_decides_how_many_gpus(monkeypatch):
    arguments = parse("--num-gpus", "0")
    Place(0, 2, 0, 2).adapt(arguments)
    assert arguments.num_gpus == 0, "the CPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    for words in ((), ("--num-gpus", "8")):
        arguments = parse(*words)
        Place(0, 16, 0, 8).adapt(arguments)
        assert arguments.num_gpus == 8


def test_restarted_processes_go_on():
    for restarts, words, resume, overwrite in (
        (0, (), False, False),
        (1, (), True, False),
        (1, ("--overwrite",), True, False),
    ):
        arguments = parse("--num-gpus", "0", *words)
        Place(0, 2, 0, 2, restarts).adapt(arguments)
        assert (arguments.resume, arguments.overwrite) == (resume, overwrite)
    arguments = parse("--num-gpus", "0", "--eval-only")
    Place(0, 2, 0, 2, 1).adapt(arguments)
    assert not arguments.resume, "it would evaluate other weights"


def test_the_first_of_each_machine_goes_first(monkeypatch):
    """Its failure ends the others without a word, and theirs its."""
    module = "detr_distill.engine.processes.torchrun.comm"
    for local_rank in (0, 1):
        monkeypatch.setattr(f"{module}.get_local_rank", lambda local_rank=local_rank: local_rank)
        answers = iter([])
        asked = []

        def all_gather(failed, answers=lambda: answers, asked=asked):
            asked.append(failed)
            return [failed, next(answers(), False)]

        monkeypatch.setattr(f"{module}.all_gather", all_gather)
        assert first_of_each_machine_first(lambda: "made") == "made" and asked == [False, False]

        def fail():
            raise ConfigError("wrong")

        with pytest.raises(ConfigError, match="wrong"):
            first_of_each_machine_first(fail)
        answers = iter([True])
        with pytest.raises(SystemExit):
            first_of_each_machine_first(lambda: "made")
