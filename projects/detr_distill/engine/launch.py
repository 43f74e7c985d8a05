"""The training program: one process, or one for each GPU of each machine."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch.multiprocessing
from detectron2.config import CfgNode
from detectron2.engine import launch
from detectron2.utils import comm

from ..checkpoint import SafeCheckpointer, last_checkpoint
from ..config.plugins import import_plugins
from ..data import read_configuration, register_configured, tested_class_names
from ..options.training import training_parser
from ..options.words import flags_first
from .device import choose_device
from .faults.interruption import INTERRUPTED, end_started_processes
from .folder.contents import keep_contents
from .folder.lock import locked
from .process import TO_EVALUATE, set_up_logs, set_up_process
from .processes.torchrun import Place, first_of_each_machine_first
from .processes.watch import watching_peers
from .report import print_message_of, report_end, report_user_errors
from .results import write_results
from .run_folder import claim_run_folder, output_folder
from .starting.check import check_start
from .starting.epochs import in_iterations, schedule_warnings
from .trainer import DistillTrainer

logger = logging.getLogger(__name__)

EVALUATION_FILE = "evaluation.json"


def argument_parser() -> argparse.ArgumentParser:
    """Of ``train_net.py``."""
    parser = training_parser()
    # Warnings of the checks before the start, for the log; and what is said to go on with a run that was stopped.
    parser.set_defaults(warnings=(), goes_on="--resume")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Trains, or evaluates with ``--eval-only``; a user's error ends the program with status 1."""
    parser = argument_parser()
    start(parser.parse_args(flags_first(parser, sys.argv[1:] if argv is None else argv)))


def start(arguments: argparse.Namespace, when_claimed: Callable[[CfgNode], None] = lambda cfg: None) -> None:
    """The same for parsed arguments.

    Args:
        arguments: of :func:`argument_parser`. when_claimed: is called once the output folder is this run's, before
            anything else is written there.
    """
    place = Place.from_environment()
    if place is not None:
        _run_with_torchrun(arguments, place)
        return
    with report_user_errors():
        cfg = setup(arguments)
    with report_user_errors(how_to_go_on=lambda: advice(cfg, arguments)), _claimed(cfg, arguments):
        when_claimed(cfg)
        if arguments.num_gpus * arguments.num_machines > 1:
            _launch_processes(cfg, arguments)
        else:
            run(cfg, arguments)


def setup(arguments: argparse.Namespace) -> CfgNode:
    """Configuration of this run, checked against the machine.

    Raises:
        ConfigError: see ``build_config``, ``choose_device``, ``output_folder`` and ``check_start``.
        DataError: see ``check_start``.
    """
    set_up_logs()
    evaluated = (lambda cfg: _evaluated_weights(cfg, arguments.resume)) if arguments.eval_only else ""
    cfg = read_configuration(arguments.config_file, arguments.opts or [], plugins=True, weights=evaluated)
    choose_device(cfg, arguments)
    cfg.OUTPUT_DIR = output_folder(cfg.OUTPUT_DIR)
    cfg.freeze()
    # Before the folder: a start that fails here leaves nothing. What is said goes to its log once there is one.
    arguments.warnings = check_start(cfg, training=not arguments.eval_only)
    if arguments.eval_only:
        return cfg
    cfg = in_iterations(cfg)
    arguments.warnings += schedule_warnings(cfg)
    return cfg


def run(cfg: CfgNode, arguments: argparse.Namespace) -> None:
    """What every process does."""
    register_configured(cfg)
    set_up_process(cfg, training=not arguments.eval_only, command=shlex.join(sys.argv))
    for text in arguments.warnings if comm.is_main_process() else ():
        logger.warning("%s", text)
    if arguments.eval_only:
        evaluate_only(cfg, resume=arguments.resume)
        return
    keep_contents(cfg, resume=arguments.resume)
    trainer = DistillTrainer(cfg)
    trainer.resume_or_load(resume=arguments.resume)
    trainer.train()


def evaluate_only(cfg: CfgNode, *, resume: bool = False) -> dict:
    """Metrics of ``MODEL.WEIGHTS``, or with ``resume`` of the last checkpoint in ``OUTPUT_DIR``.

    Raises:
        CheckpointError: no weights, or they do not fit the model.
    """
    model = DistillTrainer.build_model(cfg)
    checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, tested_class_names(cfg))
    use_last = resume and checkpointer.has_checkpoint()
    checkpointer.load_complete(checkpointer.get_checkpoint_file() if use_last else cfg.MODEL.WEIGHTS)
    results = DistillTrainer.test(cfg, model)
    # A training run's own results.json stays as it is.
    write_results(cfg, results, file=EVALUATION_FILE)
    return results


def _evaluated_weights(cfg: CfgNode, resume: bool) -> str:
    return (resume and last_checkpoint(cfg.OUTPUT_DIR)) or cfg.MODEL.WEIGHTS


def advice(cfg: CfgNode, arguments: argparse.Namespace) -> str:
    """How to go on with a training that was stopped; nothing for an evaluation."""
    if arguments.eval_only:
        return ""
    last = last_checkpoint(cfg.OUTPUT_DIR)
    return f"{arguments.goes_on} goes on from {last}." if last else "There is no checkpoint yet: start it again."


def _claimed(cfg: CfgNode, arguments: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """The first machine's process keeps the folder for all processes of its run, which trains or evaluates."""
    if arguments.machine_rank > 0 or not comm.is_main_process():
        return contextlib.nullcontext()
    if arguments.eval_only:  # its log, evaluation.json and inference/ go there, too
        return locked(Path(os.path.realpath(cfg.OUTPUT_DIR)), hint=TO_EVALUATE)
    return claim_run_folder(
        cfg, resume=arguments.resume, overwrite=arguments.overwrite, config_file=arguments.config_file
    )


def _run_with_torchrun(arguments: argparse.Namespace, place: Place) -> None:
    """What each process does that torchrun started."""
    with report_user_errors():
        place.adapt(arguments)
    with place.joined(on_gpu=arguments.num_gpus > 0):
        with report_user_errors():
            cfg = first_of_each_machine_first(lambda: setup(arguments))
        going_on = functools.partial(advice, cfg, arguments)
        with report_user_errors(how_to_go_on=going_on), contextlib.ExitStack() as claims:
            first_of_each_machine_first(lambda: claims.enter_context(_claimed(cfg, arguments)))
            if place.restarts and comm.is_main_process():
                logger.warning("torchrun starts the processes anew, for the %d. time. %s", place.restarts, going_on())
            with watching_peers(lambda words: report_end(f"{words} {going_on()}")):
                run(cfg, arguments)


def _launch_processes(cfg: CfgNode, arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        message_file = os.path.join(folder, "message")
        try:
            launch(
                _run_reporting,
                arguments.num_gpus,
                num_machines=arguments.num_machines,
                machine_rank=arguments.machine_rank,
                dist_url=arguments.dist_url,
                args=(cfg, arguments, message_file),
            )
        except KeyboardInterrupt:
            end_started_processes()
            raise
        except torch.multiprocessing.ProcessExitedException as error:
            # Below 0 it was killed, and what the others left only says that they were ended in turn.
            if error.exit_code > 0 and print_message_of(message_file):
                sys.exit(error.exit_code if error.exit_code in INTERRUPTED else 1)
            raise
        except torch.multiprocessing.ProcessRaisedException:
            if print_message_of(message_file):
                sys.exit(1)
            raise


def _run_reporting(cfg: CfgNode, arguments: argparse.Namespace, message_file: str) -> None:
    with report_user_errors(message_file, lambda: advice(cfg, arguments)):
        import_plugins(cfg.PLUGINS)  # a process that was started anew knows the package alone
        with watching_peers(lambda words: report_end(f"{words} {advice(cfg, arguments)}", message_file)):
            run(cfg, arguments)
