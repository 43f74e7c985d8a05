"""Ctrl-C, SIGTERM and faults of the machine end a program in words and with the right status."""

import logging
import multiprocessing
import os
import signal
import threading
import time

from detr_distill.engine import launch
from detr_distill.engine.faults.interruption import Interruption, end_started_processes, interruptible
from detr_distill.engine.process import LogFile
from detr_distill.engine.report import print_message_of, report_user_errors

import pytest
from helpers.engine.toy import ToyLoader, toy_config, untouched_loggers  # noqa: F401
from torch.multiprocessing import ProcessExitedException

pytestmark = pytest.mark.usefixtures("untouched_loggers")
BOTH = pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@pytest.fixture(autouse=True)
def _children_are_watched():
    """An interrupted program no longer asks whether a loader's process failed; the next test does."""
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


class SignallingLoader(ToyLoader):
    """The process is sent a signal while it waits for a batch."""

    def __init__(self, number, batch):
        super().__init__()
        self.number, self.batch = number, batch

    def __iter__(self):
        for index, batch in enumerate(super().__iter__()):
            if index == self.batch:
                os.kill(os.getpid(), self.number)
            yield batch


def train(folder, loader, monkeypatch, capsys, *flags):
    """Exit status and what is printed on stderr."""
    monkeypatch.setattr("detr_distill.engine.trainer.build_train_loader", lambda cfg: loader)
    path = folder.parent / "toy.yaml"
    path.write_text(toy_config(folder).dump())
    with pytest.raises(SystemExit) as caught:
        launch.main(["--config-file", str(path), "--num-gpus", "0", *flags])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    return caught.value.code, printed.err


@BOTH
def test_a_training_says_which_checkpoint_it_goes_on_from(tmp_path, monkeypatch, capsys, number, status):
    folder = tmp_path / "run"
    found, printed = train(folder, SignallingLoader(number, 4), monkeypatch, capsys)
    assert found == status and len(printed.splitlines()) == 1
    assert f"Ended by {number.name}. --resume goes on from {folder}/model_0000002.pth." in printed
    assert printed.strip() in (folder / "log.txt").read_text()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_before_the_first_checkpoint_it_says_to_start_again(tmp_path, monkeypatch, capsys):
    printed = train(tmp_path / "run", SignallingLoader(signal.SIGINT, 1), monkeypatch, capsys)[1]
    assert "There is no checkpoint yet: start it again." in printed


def test_a_full_disk_ends_a_training_in_words(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model_0000005.pth.tmp").symlink_to("/dev/full")
    status, printed = train(folder, ToyLoader(), monkeypatch, capsys)
    assert status == 1
    assert f"OutputError: {folder}/model_0000005.pth cannot be written: No space left on device" in printed
    assert f"--resume goes on from {folder}/model_0000002.pth." in printed
    assert not list(folder.glob("*.tmp"))


def test_a_second_signal_does_not_wait(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)

    def end_slowly():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGCHLD, lambda *_: None)
    with pytest.raises(Interruption), interruptible():
        end_slowly()
    assert ended == [130]
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL  # children that end too are no error


def test_other_threads_are_left_alone():
    before = signal.getsignal(signal.SIGINT)  # a program in the background may ignore it
    thread = threading.Thread(target=lambda: interruptible().__enter__())
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupted_process_of_several_leaves_its_line(tmp_path, capsys):
    file = str(tmp_path / "message")
    with pytest.raises(SystemExit) as caught, report_user_errors(file, lambda: "--resume goes on."):
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 143 and capsys.readouterr().err == ""
    assert print_message_of(file) and "Ended by SIGTERM. --resume goes on." in capsys.readouterr().err


@pytest.mark.parametrize(("exit_code", "status"), [(143, 143), (130, 130), (1, 1)])
def test_what_the_first_process_left_is_printed(tmp_path, monkeypatch, capsys, exit_code, status):
    def launch_failing(*_, args, **__):
        with open(args[-1], "x") as file:
            file.write("said by a process")
        raise ProcessExitedException("ended", 0, 1, exit_code)

    monkeypatch.setattr(launch, "launch", launch_failing)
    with pytest.raises(SystemExit) as caught:
        launch._launch_processes(None, launch.argument_parser().parse_args(["--num-gpus", "2"]))
    assert caught.value.code == status and capsys.readouterr().err == "said by a process\n"


def test_of_a_process_that_was_killed_nobody_else_speaks(monkeypatch, capsys):
    def launch_killed(*_, args, **__):
        with open(args[-1], "x") as file:
            file.write("Ended by SIGTERM.")
        raise ProcessExitedException("killed", 1, 1, -9, "SIGKILL")

    monkeypatch.setattr(launch, "launch", launch_killed)
    with pytest.raises(SystemExit) as caught, report_user_errors():
        launch._launch_processes(None, launch.argument_parser().parse_args(["--num-gpus", "2"]))
    printed = capsys.readouterr().err
    assert caught.value.code == 1 and "was killed by SIGKILL" in printed and "SIGTERM" not in printed


def test_interrupted_the_first_process_ends_the_others(monkeypatch):
    def launch_interrupted(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    ended = []
    monkeypatch.setattr(launch, "launch", launch_interrupted)
    monkeypatch.setattr(launch, "end_started_processes", lambda: ended.append(True))
    with pytest.raises(SystemExit) as caught, report_user_errors():
        launch._launch_processes(None, launch.argument_parser().parse_args(["--num-gpus", "2"]))
    assert caught.value.code == 143 and ended


def _wait_deaf(deaf):
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)


def test_processes_that_were_started_end_too():
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=_wait_deaf, args=(deaf,)) for deaf in (False, True)]
    for process in started:
        process.start()
    time.sleep(0.2)
    end_started_processes(seconds=0.5)
    for process in started:
        process.join(5)
    assert [process.exitcode for process in started] == [-signal.SIGTERM, -signal.SIGKILL]


def test_a_log_without_room_costs_one_line(tmp_path, capsys):
    path = tmp_path / "log.txt"
    path.symlink_to("/dev/full")
    log = LogFile(str(path))
    for text in ("one", "two"):
        log.handle(logging.LogRecord("name", logging.INFO, "file", 1, text, None, None))
    log.close()
    printed = capsys.readouterr().err
    assert printed.count("No space left on device") == 1 and "Traceback" not in printed


def test_a_thread_s_fault_is_left_to_the_main_thread(capsys):
    def fail():
        raise OSError(28, "No space left on device")

    with report_user_errors():
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    assert "Traceback" not in capsys.readouterr().err
