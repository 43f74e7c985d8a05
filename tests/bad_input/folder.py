"""Output folders, files that cannot be written, and faults of the machine."""

from __future__ import annotations

import contextlib
import errno
import json
from pathlib import Path

from detr_distill.checkpoint import SafeCheckpointer
from detr_distill.checkpoint.export import save_weights
from detr_distill.checkpoint.writing import check_place, write_atomically
from detr_distill.config.files import SHIPPED
from detr_distill.engine import launch
from detr_distill.engine.faults.words import in_words
from detr_distill.engine.folder.contents import CONTENTS_FILE, keep_contents
from detr_distill.engine.folder.lock import locked
from detr_distill.engine.folder.moving import check_movable
from detr_distill.engine.process import set_up_process
from detr_distill.engine.run_folder import claim_run_folder, output_folder

import torch.multiprocessing
from helpers.engine.toy import toy_config

from bad_input import Row

DISTILLING = {"MODEL.META_ARCHITECTURE": "DistillDetector"}


def run_in(folder: Path, **changes) -> Path:
    """A folder that holds a run of the toy model, as far as its files tell."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(toy_config(folder, **changes).dump())
    (folder / "model_0000002.pth").write_bytes(b"weights")
    (folder / "last_checkpoint").write_text("model_0000002.pth")
    return folder


def start(folder: Path, changes: dict | None = None, **how: bool) -> None:
    with claim_run_folder(toy_config(folder, **(changes or {})), **how):
        raise AssertionError("the folder was taken")


def overwrite_from(folder: Path, below: str) -> None:
    """Starts over in a folder while standing in it, or in a folder in it."""
    here = run_in(folder) / below
    here.mkdir(exist_ok=True)
    with contextlib.chdir(here):
        start(folder, overwrite=True)


def overwrite_what_is_read(folder: Path, key: str, name: str, value: str = "{}") -> None:
    """Starts over in a folder that has a file which the configuration names."""
    file = run_in(folder) / name
    file.write_text("")
    start(folder, {key: value.format(file)}, overwrite=True)


def overwrite_the_shipped_folder(folder: Path) -> None:
    # Never claimed: no file may appear in the checkout.
    with contextlib.chdir(folder):
        check_movable(SHIPPED, toy_config(SHIPPED))


def twice_in_one(folder: Path) -> None:
    with locked(folder), locked(folder):
        pass


def evaluate_beside_another(folder: Path) -> None:
    arguments = launch.argument_parser().parse_args(["--eval-only"])
    with locked(folder), launch._claimed(toy_config(folder), arguments):
        pass


def resume_with(folder: Path, recorded: dict, changes: dict) -> None:
    cfg = toy_config(run_in(folder), **changes)
    (folder / CONTENTS_FILE).write_text(json.dumps(recorded))
    keep_contents(cfg, resume=True)


def resume_with_other_names(folder: Path) -> None:
    recorded = {"classes of digits_val": list("0132456789")}
    resume_with(folder, recorded, {"DATASETS.TRAIN": "('digits_val',)"})


def resume_with_other_teacher(folder: Path, name: str, recorded: str) -> None:
    """``name`` is the key that names a file of other content than the run's first part had."""
    file = folder / "file.yaml"
    file.write_text("MODEL: {DETR: {NUM_CLASSES: 7}}")
    resume_with(folder, {recorded: "0123"}, {**DISTILLING, f"MODEL.DISTILL.TEACHER.{name}": file})


def on_a_full_disk(folder: Path) -> Path:
    """The name of a file for which there is no room."""
    (folder / "a.pth.tmp").symlink_to("/dev/full")
    return folder / "a.pth"


def save_on_a_full_disk() -> None:
    """As detectron2's evaluator writes; torch's own error speaks of a position in the file."""
    try:
        with open("/dev/full", "wb") as file:
            torch.save({"a": torch.zeros(100_000)}, file)
    except (OSError, RuntimeError) as error:
        fault(error)


def log_in(folder: Path, training: bool) -> None:
    (folder / "log.txt").mkdir()
    set_up_process(toy_config(folder), training=training)


def resume_damaged(folder: Path) -> None:
    (folder / "model_0000002.pth").write_bytes(b"half of it")
    SafeCheckpointer(torch.nn.Linear(1, 1), str(folder)).resume_or_load("")


def fault(error: Exception) -> None:
    found = in_words(error)
    assert found is not None, "not known"
    raise found


def loop_in(folder: Path) -> Path:
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


def file_in(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file"


def setup(*words: str) -> None:
    launch.setup(launch.argument_parser().parse_args(["--num-gpus", "0", *words]))


ROWS = [
    Row("output_dir_empty", lambda _: setup("OUTPUT_DIR", ""), "OUTPUT_DIR is ''. Name a folder"),
    Row("output_dir_null", lambda _: output_folder(None), "OUTPUT_DIR is None. Name a folder"),
    Row("output_dir_blank", lambda _: output_folder("  "), "OUTPUT_DIR is '  '"),
    Row(
        "output_dir_address", lambda _: output_folder("s3://bucket/run"), "OUTPUT_DIR is 's3://.*folder of this machine"
    ),
    Row("output_dir_of_nobody", lambda _: output_folder("~no_such_user/run"), "OUTPUT_DIR is '~no_such_user/run'"),
    Row("output_dir_is_a_file", lambda tmp: start(file_in(tmp)), "OUTPUT_DIR .*file cannot be written: File exists"),
    Row(
        "output_dir_below_a_file", lambda tmp: start(file_in(tmp) / "run"), "OUTPUT_DIR .*Not a directory.*Name another"
    ),
    Row("output_dir_zero_byte", lambda _: output_folder("a\0b"), "OUTPUT_DIR is 'a.*folder of this machine"),
    Row("output_dir_a_loop", lambda tmp: start(loop_in(tmp)), "OUTPUT_DIR .*loop cannot be written.*in the way"),
    Row("output_dir_too_long", lambda tmp: start(tmp / ("x" * 300)), "OUTPUT_DIR .*File name too long"),
    Row("output_dir_of_the_system", lambda _: start(Path("/proc/run")), "OUTPUT_DIR /proc/run cannot be written"),
    Row("folder_in_use", lambda tmp: twice_in_one(tmp), "OUTPUT_DIR .*is in use by process .* on .*, since"),
    Row("folder_of_two_evaluations", evaluate_beside_another, "OUTPUT_DIR .*is in use by process"),
    Row("folder_holds_a_run", lambda tmp: start(run_in(tmp)), "(?s)holds a run of this.*--resume.*--overwrite"),
    Row(
        "folder_holds_another_run",
        lambda tmp: start(run_in(tmp), {"SEED": 4}),
        "(?s)holds another run.*SEED: 3 there, 4 now",
    ),
    Row(
        "resume_another_configuration",
        lambda tmp: start(run_in(tmp), {"SEED": 4}, resume=True),
        "--resume: .*another configuration",
    ),
    Row("overwrite_here", lambda tmp: overwrite_from(tmp, "."), "--overwrite .*that this program was started in"),
    Row("overwrite_above", lambda tmp: overwrite_from(tmp, "a"), "--overwrite .*that this program was started in"),
    Row(
        "overwrite_the_project", overwrite_the_shipped_folder, "--overwrite .*is or contains the folder of this project"
    ),
    *(
        Row(
            f"overwrite_moves_{key.rsplit('.', 1)[-1].lower()}_{name.split('.')[0]}",
            lambda tmp, key=key, name=name, value=value: overwrite_what_is_read(tmp, key, name, value),
            f"(?s)--overwrite would rename .*reads what is in it:.*{key}: .*{name}.*another place",
        )
        for key, name, value in (
            ("MODEL.WEIGHTS", "model_0000009.pth", "{}"),
            ("MODEL.DISTILL.TEACHER.WEIGHTS", "student_final.pth", "{}"),
            ("MODEL.DISTILL.TEACHER.CONFIG_FILE", "config.yaml", "{}"),
            ("DATASETS.REGISTER", "train.json", "[['mine', '{}', '/images']]"),
            ("PLUGINS", "my_losses.py", "('{}',)"),
        )
    ),
    Row(
        "resume_classes_in_another_order",
        resume_with_other_names,
        "(?s)--resume: .*classes of digits_val, from number 2",
    ),
    Row(
        "resume_other_teacher_weights",
        lambda tmp: resume_with_other_teacher(tmp, "WEIGHTS", "weights of the teacher"),
        "(?s)--resume: .*weights of the teacher: another content.*OUTPUT_DIR",
    ),
    Row(
        "resume_other_teacher_settings",
        lambda tmp: resume_with_other_teacher(tmp, "CONFIG_FILE", "configuration of the teacher"),
        "(?s)--resume: .*configuration of the teacher: another content",
    ),
    Row("resume_no_checkpoint_loads", resume_damaged, "--resume: .*do not load"),
    Row(
        "disk_full",
        lambda tmp: write_atomically(on_a_full_disk(tmp), lambda file: file.write(b"x" * 100_000)),
        "a.pth cannot be written: No space left on device. Make room.*unharmed",
    ),
    Row(
        "disk_full_for_weights",
        lambda tmp: save_weights({"a": torch.zeros(100_000)}, on_a_full_disk(tmp)),
        "a.pth cannot be written: No space left on device",
    ),
    Row("disk_full_for_torch", lambda _: save_on_a_full_disk(), "A file cannot be written: No space left on device"),
    Row("file_is_a_folder", lambda tmp: write_atomically(tmp, lambda file: None), "cannot be written: Is a directory"),
    Row("place_is_a_folder", lambda tmp: check_place("--output", tmp), "--output .*that is a folder. Name a file"),
    Row(
        "place_below_a_file",
        lambda tmp: check_place("--output", file_in(tmp) / "a.pth"),
        "--output .*file is no folder that can be written to",
    ),
    Row(
        "log_cannot_be_opened", lambda tmp: log_in(tmp, training=True), "OUTPUT_DIR .*cannot be written: Is a directory"
    ),
    Row("log_of_an_evaluation", lambda tmp: log_in(tmp, training=False), "OUTPUT_DIR .*MODEL.WEIGHTS"),
    Row(
        "shared_memory_bus_error",
        lambda _: fault(RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible ...")),
        "Shared memory .*DATALOADER.NUM_WORKERS.*--shm-size",
    ),
    Row(
        "shared_memory_full",
        lambda _: fault(RuntimeError("unable to write to file </torch_12_34_0>: No space left on device (28)")),
        "Shared memory .*DATALOADER.NUM_WORKERS",
    ),
    Row(
        "loader_killed",
        lambda _: fault(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")),
        "loader was killed.*DATALOADER.NUM_WORKERS",
    ),
    Row(
        "open_files",
        lambda _: fault(OSError(errno.EMFILE, "Too many open files")),
        "Too many files are open.*ulimit -n",
    ),
    Row(
        "disk_full_elsewhere",
        lambda _: fault(OSError(errno.ENOSPC, "No space left on device", "/full/x")),
        "/full/x cannot be written: No space left",
    ),
    Row(
        "process_killed",
        lambda _: fault(torch.multiprocessing.ProcessExitedException("killed", 1, 4711, -9, "SIGKILL")),
        "process 1 of this machine was killed by SIGKILL.*SOLVER.IMS_PER_BATCH",
    ),
    Row(
        "memory_full",
        lambda _: fault(
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        ),
        "The machine's memory has no room .*SOLVER.IMS_PER_BATCH",
    ),
    Row("memory_full_for_numpy", lambda _: fault(MemoryError("Unable to allocate 8 TiB")), "machine's memory has no"),
    Row("gpu_full", lambda _: fault(torch.OutOfMemoryError("CUDA out of memory.")), "SOLVER.IMS_PER_BATCH"),
]
