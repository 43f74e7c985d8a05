"""Is a distilled student better than one that trained longer? Real photos and digits, against honest controls.

    python benchmarks/photos.py --data ../shared/data --imagenet efficientnet-lite2-9656183e.pth

Small DINOs on blood cells (BCCD) and playing cards, the small Conditional DETR on digits (a long and a short training):
every row of docs/evidence.md with all labels, and with a share of them beside unlabelled images. What is in --results
is not repeated, so a stopped study goes on. --minutes starts no run that would not end in time; with 0 it writes
tables, pictures and pages from what is there. --quick is a small form for a first look.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import time
from pathlib import Path

from detr_distill.data.registration import register_datasets
from detr_distill.engine.report import report_user_errors
from detr_distill.errors import first

from common import write_result
from evidence import GAINS_FILE, RUNS_FILE, write_pages
from evidence_tables import find_gains, read_tables, write_csv, write_gains
from photo_places import Places
from photo_rows import FIRST, LENGTHS, PLAIN, SHARES, Collection, Row, collections, rows_of
from photo_runs import make_teacher, rate_name, run_name, start_worker, train_student, try_rate
from photo_sets import prepare
from photo_steps import Steps
from workers import Job, complete

PHOTO_SETS, OTHERS = ("bccd", "cards"), ("digits", "digits_short")
FEW = 0.1
QUICK = {"iterations": 150, "teacher_iterations": 150, "seeds": [1], "sets": ["bccd"], "rates": [], "parts": 1}


def teacher_job(collection: Collection, share: float, places: Places) -> Job:
    """The job that makes a teacher's files."""
    name = f"{collection.name}_{share:g}_teacher"
    return Job(name, make_teacher, (collection, share, places), 2.0 * collection.iterations[1])


def student_job(
    collection: Collection, row: Row, share: float, seed: int, steps: Steps, places: Places
) -> tuple[Job, list[Job]]:
    """A row's run, and the teacher that it needs."""
    iterations = steps.iterations(row, collection)
    teachers = [teacher_job(collection, share if row.few else 1.0, places)] if row.teacher or row.start else []
    name = run_name(collection, row, share, seed, iterations, places.part)
    cost = iterations * steps.ratio(row.config, collection)
    before = (
        [run_name(collection, Row(PLAIN), share, seed, collection.iterations[0], places.part)] if row.goes_on else []
    )
    after = (*before, *(job.name for job in teachers))
    return Job(name, train_student, (name, collection, row, share, seed, iterations, places), cost, after), teachers


def rate_jobs(collection: Collection, rates: list[float], places: Places) -> list[Job]:
    """Plain runs that choose the learning rate of all students of a photo set; the digits' is known."""
    if collection.name in OTHERS:
        return []
    own = collection.iterations[0]
    return [Job(rate_name(collection, rate, own), try_rate, (collection, rate, places), own) for rate in rates]


def wanted(collected: list[Collection], arguments: argparse.Namespace, steps: Steps, places: Places) -> list[Job]:
    """All jobs without a result, in the order in which an interrupted study is worth most.

    First the rows that answer the question, of all labels and of a tenth, a set after the other; then the other rows;
    then the other shares. Of each the first three seeds before the others, a teacher before the first that needs it.
    """
    shares = [share for share in (1.0, FEW) if share in arguments.shares]
    tables = [(c, share, rows_of(share, c)) for c in collected for share in shares if share in c.shares]
    asked = [(c, share, [row for row in rows if row in FIRST]) for c, share, rows in tables]
    controls = [(c, share, [row for row in rows if row not in FIRST]) for c, share, rows in tables]
    fewer = [share for share in SHARES if share != FEW and share in arguments.shares]
    others = [(c, share, rows_of(share, c)) for share in fewer for c in collected if share in c.shares]
    chunks = (arguments.seeds[:3], arguments.seeds[3:])
    jobs: dict[str, Job] = {}
    for part, chunk in itertools.product((asked, controls, others)[: arguments.parts], chunks):
        for (collection, share, rows), seed in itertools.product(part, chunk):
            rates = rate_jobs(collection, arguments.rates, places)
            for row in rows:
                job, teachers = student_job(collection, row, share, seed, steps, places)
                job = dataclasses.replace(job, after=(*job.after, *(rate.name for rate in rates)))
                if not places.result(job.name).is_file():
                    jobs.update({each.name: each for each in (*rates, *teachers, job) if each.name not in jobs})
    return [job for job in jobs.values() if not places.result(job.name).is_file()]


def run_jobs(jobs: list[Job], arguments: argparse.Namespace, deadline: float | None) -> None:
    """Runs them in the pool, and says what came out."""
    logs = arguments.work / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    done = 0

    def report(job: Job, result: dict) -> None:
        nonlocal done
        done += 1
        print(f"[{done}/{len(jobs)}] {job.name}: AP {result.get('AP', float('nan')):.1f}", flush=True)

    undone = complete(jobs, arguments.parallel, start_worker, (logs,), report, deadline)
    reasons = sorted(set(undone.values()))
    for reason in reasons:
        names = [name for name, why in undone.items() if why == reason]
        print(f"{len(names)} not done, {reason}: {first(names)} (logs: {logs})", file=sys.stderr)


def main(argv: list[str] | None = None) -> None:
    """The program; a user's error ends it with status 1."""
    with report_user_errors():
        study(argv)


def study(argv: list[str] | None = None) -> None:
    """Trains what is missing, then writes the pages.

    Raises:
        DataError: the photos are not where ``--data`` says.
    """
    arguments = parser().parse_args(argv)
    if arguments.quick:
        vars(arguments).update(QUICK)
    deadline = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    places = Places(arguments.work, arguments.results, str(arguments.imagenet), arguments.device, arguments.split)
    places.results.mkdir(parents=True, exist_ok=True)
    photo_sets = [name for name in PHOTO_SETS if name in arguments.sets]
    entries = prepare(arguments.data, arguments.work / "sets", photo_sets)
    lengths = {
        name: (arguments.iterations or own, arguments.teacher_iterations or teachers)
        for name, (own, teachers) in LENGTHS.items()
    }
    collected = [c for c in collections(entries, lengths) if c.name in arguments.sets]
    register_datasets([entry for collection in collected for entry in collection.entries])
    steps = Steps(arguments.work / f"steps_{arguments.device}.json", places)
    if arguments.minutes != 0:
        run_jobs(steps.needs(collected, teacher_job), arguments, deadline)
        steps.measure(collected)
        run_jobs(wanted(collected, arguments, steps, places), arguments, deadline)
    if arguments.report:
        report(arguments, places, collected, steps)


def report(arguments: argparse.Namespace, places: Places, collected: list[Collection], steps: Steps) -> None:
    """Tables, pictures and pages of what is in the results folder."""
    folder = arguments.json.parent
    tables = read_tables(places, collected, steps, arguments.seeds)
    gains = find_gains(tables, places.part)
    write_csv(folder / RUNS_FILE, tables, places)
    write_gains(folder / GAINS_FILE, gains)
    write_result(arguments.json, {"step_seconds": steps.seconds, "device": arguments.device})
    write_pages(folder, arguments.docs)


def parser() -> argparse.ArgumentParser:
    """The program's options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds bccd and cards")
    found.add_argument("--imagenet", type=Path, default="", help="weights of tf_efficientnet_lite2 (docs/training.md)")
    found.add_argument("--work", type=Path, default=Path("output/photos"), help="small copies, teachers, logs")
    found.add_argument("--results", type=Path, default=Path("output/photos/runs"), help="a file for each run")
    found.add_argument("--json", type=Path, default=Path("benchmarks/results/photos.json"), help="file for the summary")
    found.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the pages")
    found.add_argument("--sets", nargs="+", default=[*PHOTO_SETS, *OTHERS], choices=[*PHOTO_SETS, *OTHERS])
    found.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    found.add_argument("--iterations", type=int, help="of a plain student, in place of each set's")
    found.add_argument("--teacher-iterations", type=int)
    found.add_argument("--shares", type=float, nargs="+", default=[1.0, *SHARES], help="of the labels")
    found.add_argument(
        "--parts", type=int, choices=(1, 2, 3), default=3, help="1: the first rows; 2: all controls; 3: all shares"
    )
    found.add_argument("--rates", type=float, nargs="*", default=[0.001, 0.002, 0.004], help="tried on val")
    found.add_argument("--split", choices=("val", "test"), default="test", help="settings are chosen on val")
    found.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    found.add_argument("--parallel", type=int, default=2, help="runs at a time, one thread each")
    found.add_argument("--minutes", type=float, help="start no run that would not end in time; 0: pages alone")
    found.add_argument("--quick", action="store_true", help="BCCD alone, one seed, 150 iterations")
    found.add_argument("--no-report", dest="report", action="store_false", help="train only")
    return found


if __name__ == "__main__":
    main()
