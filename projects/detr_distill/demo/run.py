"""Trains a small student without and with a teacher, compares them, and draws what they learned. CPU, minutes.

Real handwritten digits and the shipped teacher, which looks at every training image once, beforehand. Three students of
the same seed and learning rate: plain, distilled for as many iterations, and plain for the time that distillation took,
the teacher's look at the images included. Writes ``results.json`` and five pictures.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from rich.console import Console

from ..checkpoint.writing import write_atomically
from ..config.files import SHIPPED
from ..data.records import load_records
from ..distill import DistillDetector
from ..distill.matchers.adaptive import AdaptiveMatcher
from ..distill.students import student_of
from ..engine.folder.lock import locked
from ..engine.folder.moving import move_aside
from ..engine.model import build_named_model
from ..engine.report import report_user_errors
from ..engine.starting.check import prepare_datasets
from ..visualization import View, load_samples, pictures, views_of, write_gallery
from .console import METRICS, results_table
from .settings import check_comparable, configure, configure_teacher, for_time, taught_by_file
from .trainer import DemoTrainer, evaluate_teacher, predict, train

OUTPUT = "output/demo"
# Such small tensors gain little from a second thread, and when another program holds one of the cores, waiting for it
# makes every step tens of times slower.
THREADS = 1
SAMPLES = 6
MOST_ROWS = 4  # of predictions.png
STUDENT, LONGER, DISTILLED = "student", "student, same time", "distilled"  # on the terminal and in pictures


def main(argv: list[str] | None = None) -> None:
    """The command; a user's error ends it with status 1."""
    arguments = argument_parser().parse_args(argv)
    with report_user_errors():
        torch.set_num_threads(THREADS)
        run(arguments, Console(width=None if Console().is_terminal else 120))


def argument_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default=OUTPUT, help=f"folder of everything that is written (default {OUTPUT})")
    parser.add_argument("--iterations", type=int, help="of the equally long trainings, instead of SOLVER.MAX_ITER")
    parser.add_argument("--seed", type=int, help="of all trainings, instead of SEED")
    digits = SHIPPED / "configs" / "digits"
    parser.add_argument("--student-config", default=str(digits / "conditional_student.yaml"), metavar="FILE")
    parser.add_argument("--distilled-config", default=str(digits / "predictions_conditional.yaml"), metavar="FILE")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of both configurations")
    return parser


def run(arguments: argparse.Namespace, console: Console) -> None:
    """The whole demonstration.

    Raises:
        ConfigError: the teacher's weights are missing, or the two configurations cannot be compared.
    """
    output = Path(arguments.output)
    student_cfg = configure(arguments.student_config, "student", arguments)
    distilled_cfg = configure(arguments.distilled_config, "distilled", arguments)
    check_comparable(student_cfg, distilled_cfg)
    teacher_cfg = configure_teacher(distilled_cfg, output / "teacher")
    start_afresh(output)

    console.print(describe(student_cfg), highlight=False, soft_wrap=True)
    prepare_datasets(student_cfg)
    teacher = evaluate_teacher(teacher_cfg, console)
    file = output / "predictions"
    looking = predict(teacher_cfg, file, console)
    student = train(student_cfg, STUDENT, console)
    distilled = train(taught_by_file(distilled_cfg, file), DISTILLED, console, seconds=looking)
    longer = train(for_time(student_cfg, distilled.seconds / student.seconds, output / "longer"), LONGER, console)

    live = teach_live(distilled_cfg, distilled)
    assert live.teacher.detector is not None
    results = {
        "teacher": summarise(teacher, live.teacher.detector, teacher_cfg.SOLVER.MAX_ITER, None),
        "student": summarise(student.results, student.model, student.max_iter, student.seconds),
        "longer": summarise(longer.results, longer.model, longer.max_iter, longer.seconds),
        "distilled": summarise(distilled.results, live.student, distilled.max_iter, distilled.seconds),
        "predicting_seconds": looking,
        "seed": student_cfg.SEED,
        "learning_rate": student_cfg.SOLVER.BASE_LR,
    }
    # Before the pictures: should drawing fail, minutes of training are not lost.
    write_atomically(output / "results.json", lambda file: file.write(json.dumps(results, indent=2).encode()))
    files = draw(output, distilled_cfg, live, (student, longer, distilled), results)
    console.print(results_table(results, f"Box AP on {', '.join(student_cfg.DATASETS.TEST)}"))
    console.print(f"Written: {output / 'results.json'}, {', '.join(map(str, files))}", highlight=False, soft_wrap=True)


def start_afresh(output: Path) -> None:
    """Makes room for new runs: the demo's own folder is emptied; of a folder that a user chose, runs are renamed."""
    remove = shutil.rmtree if output.resolve() == Path(OUTPUT).resolve() else move_aside
    for name in ("teacher", "predictions", "student", "distilled", "longer"):
        if (output / name).exists():
            with locked(output / name, "--output"):
                remove(output / name)
    (output / "results.json").unlink(missing_ok=True)  # results must never stand beside another run's pictures


def describe(cfg: CfgNode) -> str:
    """What is equal for all students."""
    return (
        f"Two students, plain and distilled, train for {cfg.SOLVER.MAX_ITER} iterations, and a plain one for the time "
        f"of the distilled one; all with seed {cfg.SEED} and learning rate {cfg.SOLVER.BASE_LR:g}, the best of several "
        "tried for the plain one (docs/benchmarks.md)."
    )


def summarise(metrics: dict, model: torch.nn.Module, iterations: int, seconds: float | None) -> dict:
    """One model's entry in ``results.json``; ``seconds`` of training, None when it was not trained here."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    values = {metric: metrics["bbox"][metric] for metric in METRICS}
    return {**values, "params": parameters, "iterations": iterations, "seconds": seconds}


def teach_live(cfg: CfgNode, distilled: DemoTrainer) -> DistillDetector:
    """The distilled student beside the teacher itself, whose queries and attention are in no file."""
    model = build_named_model(cfg).eval()
    assert isinstance(model, DistillDetector)
    model.student.load_state_dict(distilled.model.student.state_dict())
    return model


def draw(
    output: Path, cfg: CfgNode, live: DistillDetector, trained: Sequence[DemoTrainer], results: dict
) -> list[Path]:
    """Five pictures: the first images of the test set, so that nothing is picked; and the curves."""
    samples = load_samples(cfg, load_records(cfg, cfg.DATASETS.TEST[0])[:SAMPLES])
    (own, teacher), (plain,) = views_of(cfg, live), views_of(trained[0].cfg, trained[0].model)
    students = [View(STUDENT, plain.detector, plain.classes), View(DISTILLED, own.detector, own.classes)]
    matcher = AdaptiveMatcher(cfg, student_of(live.student), live.teacher)
    files = write_gallery(output, samples, students, teacher, matcher, most_rows=MOST_ROWS)
    for unit, place in (("iterations", 0), ("seconds", 1)):
        curves = {trainer.name: [(point[place], point[2]) for point in trainer.curve] for trainer in trained}
        words = "iterations" if unit == "iterations" else "seconds of training, the teacher's predictions included"
        figure = pictures.ap_over_iterations(curves, results["teacher"]["AP"], cfg.DATASETS.TEST[0], words)
        files.append(output / f"ap_over_{unit}.png")
        pictures.save(figure, files[-1])
    return files
