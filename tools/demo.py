"""Trains a small student without and with a teacher, compares the two, and draws what they learned. CPU, minutes.

Real handwritten digits, the shipped teacher, the same iterations, seed and learning rate for both students. Writes
``results.json`` and four pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import shutil
import sys
import time
from pathlib import Path

from detr_distill.checkpoint.files import write_atomically
from detr_distill.config.build import flatten
from detr_distill.config.files import find_file
from detr_distill.data.records import load_records
from detr_distill.distill.matchers.adaptive import AdaptiveMatcher
from detr_distill.distill.teachers.configuration import load_teacher_config
from detr_distill.engine import DistillTrainer, build_config
from detr_distill.engine.launch import evaluate_only, prepare_datasets
from detr_distill.engine.process import LOGGERS, set_up_process
from detr_distill.engine.report import report_user_errors
from detr_distill.engine.run_folder import move_aside
from detr_distill.errors import ConfigError
from detr_distill.visualization import View, load_samples, pictures, views_of, write_gallery
from detr_distill.visualization.console import TrainingBar, results_table

import torch
from detectron2.config import CfgNode
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = "output/demo"
# Such small tensors gain little from a second thread, and when another program holds one of the cores, waiting for it
# makes every step tens of times slower.
THREADS = 1
SAMPLES = 6
MOST_ROWS = 4  # of predictions.png
METRICS = ("AP", "AP50", "AP75")
# Whatever decides how a student learns beside the teacher; the two trainings must agree in it.
COMPARED = ("SEED", "SOLVER.", "DATASETS.", "INPUT.", "DATALOADER.", "MODEL.DETR.", "MODEL.BACKBONE.", "MODEL.CONV_")


class DemoTrainer(DistillTrainer):
    """Measures the time of the training steps alone and keeps the AP of every evaluation.

    Args:
        cfg: of the run. name: of the model, for the terminal. console: where to.
    """

    def __init__(self, cfg: CfgNode, name: str, console: Console):
        self.name = name
        self.bar = TrainingBar(name, console)
        self.seconds = 0.0
        self.results: dict = {}
        self.curve: list[tuple[int, float]] = []
        super().__init__(cfg)

    def build_hooks(self) -> list:
        # Before the evaluation, which takes a while: the bar shows the step that is done.
        return [self.bar, *super().build_hooks()]

    def run_step(self) -> None:
        start = time.perf_counter()
        super().run_step()
        self.seconds += time.perf_counter() - start

    def evaluate(self) -> dict:
        self.bar.announce("evaluating")
        results = super().evaluate()
        self.results = results
        self.curve.append((self.iter + 1, results["bbox"]["AP"]))
        self.bar.say(f"{self.name}  AP {results['bbox']['AP']:.2f} after {self.iter + 1} iterations")
        return results


def main(argv: list[str] | None = None) -> None:
    arguments = argument_parser().parse_args(argv)
    with report_user_errors():
        torch.set_num_threads(THREADS)
        run(arguments, Console(width=None if Console().is_terminal else 120))


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default=OUTPUT, help=f"folder of everything that is written (default {OUTPUT})")
    parser.add_argument("--iterations", type=int, help="of both trainings, instead of SOLVER.MAX_ITER")
    parser.add_argument("--seed", type=int, help="of both trainings, instead of SEED")
    digits = ROOT / "configs" / "digits"
    parser.add_argument("--student-config", default=str(digits / "conditional_student.yaml"), metavar="FILE")
    parser.add_argument("--distilled-config", default=str(digits / "d3etr_conditional.yaml"), metavar="FILE")
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
    student, distilled = train(student_cfg, "student", console), train(distilled_cfg, "distilled", console)

    results = {
        "teacher": summarise(teacher, distilled.model.teacher.detector, teacher_cfg.SOLVER.MAX_ITER, None),
        "student": summarise(student.results, student.model, student.max_iter, student.seconds),
        "distilled": summarise(distilled.results, distilled.model.student, distilled.max_iter, distilled.seconds),
        "seed": student_cfg.SEED,
        "learning_rate": student_cfg.SOLVER.BASE_LR,
    }
    # Before the pictures: should drawing fail, minutes of training are not lost.
    write_atomically(output / "results.json", lambda file: file.write(json.dumps(results, indent=2).encode()))
    files = draw(output, student, distilled, results)
    console.print(results_table(results, f"Box AP on {', '.join(student_cfg.DATASETS.TEST)}"))
    console.print(f"Written: {output / 'results.json'}, {', '.join(map(str, files))}", highlight=False, soft_wrap=True)


def configure(config_file: str, name: str, arguments: argparse.Namespace) -> CfgNode:
    """Configuration of one training, on the CPU unless an override says otherwise."""
    cfg = build_config(config_file, ["MODEL.DEVICE", "cpu", *arguments.opts])
    cfg.OUTPUT_DIR = str(Path(arguments.output) / name)
    if arguments.seed is not None:
        cfg.SEED = arguments.seed
    if arguments.iterations is not None:
        if arguments.iterations < 1:
            raise ConfigError(f"--iterations is {arguments.iterations}; it must be 1 or more.")
        # As many evaluations as the configuration asks for; rounded up, because 0 means at the end alone.
        cfg.TEST.EVAL_PERIOD = -(-cfg.TEST.EVAL_PERIOD * arguments.iterations // cfg.SOLVER.MAX_ITER)
        cfg.SOLVER.MAX_ITER = arguments.iterations
    cfg.freeze()
    return cfg


def check_comparable(student: CfgNode, distilled: CfgNode) -> None:
    """Refuses two trainings that differ in more than the teacher."""
    first, second = flatten(student), flatten(distilled)
    for key, value in first.items():
        if key.startswith(COMPARED) and value != second[key]:
            raise ConfigError(
                f"{key} is {value!r} for the student and {second[key]!r} for the distilled one: the comparison would "
                "not show what the teacher brings. Give both configurations the same value."
            )


def configure_teacher(distilled: CfgNode, folder: Path) -> CfgNode:
    """The teacher's own configuration, evaluated on the students' data.

    Raises:
        ConfigError: its weights are missing; says how to make them.
    """
    node = distilled.MODEL.DISTILL.TEACHER
    cfg = load_teacher_config(distilled)
    try:
        cfg.MODEL.WEIGHTS = find_file(node.WEIGHTS, "MODEL.DISTILL.TEACHER.WEIGHTS")
    except ConfigError as error:
        raise ConfigError(
            f"The teacher's weights {node.WEIGHTS} are missing. To train them again (about 15 minutes on 2 cores):\n"
            f"  python train_net.py --config-file {node.CONFIG_FILE} --num-gpus 0\n"
            f"  python tools/export_student.py --weights {cfg.OUTPUT_DIR}/model_final.pth --output {node.WEIGHTS}"
        ) from error
    cfg.DATASETS = distilled.DATASETS
    cfg.OUTPUT_DIR = str(folder)
    cfg.freeze()
    return cfg


def start_afresh(output: Path) -> None:
    """Makes room for new runs: the demo's own folder is emptied; of a folder that a user chose, runs are renamed."""
    remove = shutil.rmtree if output.resolve() == Path(OUTPUT).resolve() else move_aside
    for name in ("teacher", "student", "distilled"):
        if (output / name).exists():
            remove(output / name)
    (output / "results.json").unlink(missing_ok=True)  # results must never stand beside another run's pictures


def describe(cfg: CfgNode) -> str:
    """What is equal for both students."""
    return (
        f"Both students train for {cfg.SOLVER.MAX_ITER} iterations with seed {cfg.SEED} and learning rate "
        f"{cfg.SOLVER.BASE_LR:g}, the best of several tried for the plain one (docs/benchmarks.md)."
    )


def prepare_process(cfg: CfgNode, *, training: bool) -> None:
    """Log file and seed of a run; on the terminal only warnings, the bar says the rest."""
    with contextlib.redirect_stdout(io.StringIO()) as swallowed:
        set_up_process(cfg, training=training, command="tools/demo.py")
    for name in LOGGERS:
        for handler in logging.getLogger(name).handlers:
            if getattr(handler, "stream", None) is swallowed:
                handler.setStream(sys.stdout)
                handler.setLevel(logging.WARNING)


def evaluate_teacher(cfg: CfgNode, console: Console) -> dict:
    with console.status("evaluating the teacher"):
        prepare_process(cfg, training=False)
        results = evaluate_only(cfg)
    console.print(f"teacher  AP {results['bbox']['AP']:.2f}", highlight=False)
    return results


def train(cfg: CfgNode, name: str, console: Console) -> DemoTrainer:
    prepare_process(cfg, training=True)
    trainer = DemoTrainer(cfg, name, console)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


def summarise(metrics: dict, model: torch.nn.Module, iterations: int, seconds: float | None) -> dict:
    """One model's entry in ``results.json``; ``seconds`` of training, None when it was not trained here."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    values = {metric: metrics["bbox"][metric] for metric in METRICS}
    return {**values, "params": parameters, "iterations": iterations, "seconds": seconds}


def draw(output: Path, student: DemoTrainer, distilled: DemoTrainer, results: dict) -> list[Path]:
    """Four pictures: the first images of the test set, so that nothing is picked; and the curves."""
    cfg, model = distilled.cfg, distilled.model
    samples = load_samples(cfg, load_records(cfg, cfg.DATASETS.TEST[0])[:SAMPLES])
    (own, teacher), (plain,) = views_of(cfg, model), views_of(student.cfg, student.model)
    students = [View("student", plain.detector, plain.classes), View("distilled", own.detector, own.classes)]
    matcher = AdaptiveMatcher(cfg, model.student, model.teacher)
    files = write_gallery(output, samples, students, teacher, matcher, most_rows=MOST_ROWS)
    curves = {trainer.name: trainer.curve for trainer in (student, distilled)}
    figure = pictures.ap_over_iterations(curves, results["teacher"]["AP"], cfg.DATASETS.TEST[0])
    pictures.save(figure, output / "ap_over_iterations.png")
    return [*files, output / "ap_over_iterations.png"]


if __name__ == "__main__":
    main()
