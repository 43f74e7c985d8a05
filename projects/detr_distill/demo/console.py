"""What a demonstration shows on the terminal: a bar while a model trains, and a table of results."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

from detectron2.engine import HookBase
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

PLAIN_LINES = 12  # of a training whose output is no terminal
WINDOW = 20  # iterations whose median is shown
MILLION = 1e6
METRICS = ("AP", "AP50", "AP75")


class TrainingBar(HookBase):
    """A bar with loss and remaining time; one line at intervals where output goes to a file.

    Args:
        name: of the model. console: where to.
    """

    def __init__(self, name: str, console: Console):
        self._name = name
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def before_train(self) -> None:
        self._task = self._bar.add_task(self._name, total=self.trainer.max_iter, status="")
        self._bar.start()

    def after_step(self) -> None:
        done, total = self.trainer.iter + 1, self.trainer.max_iter
        status = self._status(total - done)
        self._bar.update(self._task, completed=done, status=status)
        if not self._console.is_terminal and (done % max(1, total // PLAIN_LINES) == 0 or done == total):
            self.say(f"{self._name}  iteration {done}/{total}  {status}")

    def after_train(self) -> None:
        self._bar.stop()

    def announce(self, status: str) -> None:
        """Replaces loss and remaining time while something else than training is going on."""
        if self._console.is_terminal:
            self._bar.update(self._task, status=status)

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        self._console.print(line, highlight=False, soft_wrap=True)

    def _status(self, remaining: int) -> str:
        storage = self.trainer.storage
        loss = storage.history("total_loss").median(WINDOW)
        seconds = storage.history("time").median(WINDOW) if "time" in storage.histories() else 0.0
        return f"loss {loss:.3f}  eta {datetime.timedelta(seconds=int(seconds * remaining))}"


def results_table(results: Mapping[str, Mapping], title: str) -> Table:
    """A row for each model and one for what the teacher brought.

    Args:
        results: ``teacher``, ``student``, ``longer`` (the plain student for the time of the distilled one) and
            ``distilled``, each with ``AP``, ``AP50``, ``AP75`` in 0 to 100, ``params``, ``iterations`` and ``seconds``
            (None where unknown).
    """
    table = Table(title=title)
    table.add_column("model")
    for head in (*METRICS, "parameters", "iterations", "training"):
        table.add_column(head, justify="right")
    titles = {"teacher": "teacher", "student": "student", "longer": "student, same time", "distilled": "distilled"}
    for name, title in titles.items():
        row = results[name]
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.0f} s"
        numbers = [f"{row[metric]:.2f}" for metric in METRICS]
        table.add_row(title, *numbers, f"{row['params'] / MILLION:.2f} M", str(row["iterations"]), seconds)
    table.add_section()
    for name in ("student", "longer"):
        gains = [f"{results['distilled'][metric] - results[name][metric]:+.2f}" for metric in METRICS]
        table.add_row(f"distilled - {titles[name]}", *gains, "", "", "", style="bold")
    return table
