"""The key PLUGINS in whole runs: modules of one's own whose losses and keys a run names."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

from detr_distill.engine import launch
from detr_distill.registry import LOSS_REGISTRY

import pytest
import yaml
from helpers.builders import ROOT
from helpers.engine.toy import untouched_loggers  # noqa: F401
from helpers.plugins import MODULE, current_folder, six_pictures, write_run  # noqa: F401

pytestmark = pytest.mark.usefixtures("untouched_loggers", "folder")


def check_run(output: Path, plugins: list[str], iterations: int) -> None:
    """The run has trained by the module's loss, and its configuration says by which module."""
    written = yaml.safe_load((output / "config.yaml").read_text())
    assert written["PLUGINS"] == plugins and written["MODEL"]["DISTILL"]["SIZE_LOSS"]["MARGIN"] == 0.25
    last = json.loads((output / "metrics.json").read_text().splitlines()[-1])
    assert last["iteration"] == iterations - 1 and last["loss_distill_size"] != 0


def test_a_file_that_the_run_names_in_a_process_of_its_own(folder, pictures):
    """The program, started anew, and resumed in this process; a path is from the current folder."""
    (folder / "my_losses.py").write_text(MODULE)
    arguments = write_run(folder / "run.yaml", pictures, PLUGINS=["my_losses.py"])
    subprocess.run([sys.executable, str(ROOT / "train_net.py"), *arguments], check=True, capture_output=True)
    check_run(folder / "run", ["my_losses.py"], 2)
    launch.main([*arguments, "--resume", "SOLVER.MAX_ITER", "3"])
    check_run(folder / "run", ["my_losses.py"], 3)
    assert "Starting training from iteration 2" in (folder / "run/log.txt").read_text()


def test_a_module_that_the_command_line_names(folder, pictures):
    """By its dotted name, found from the current folder although the program stands elsewhere."""
    (folder / "my_package").mkdir()
    (folder / "my_package/__init__.py").write_text("")
    (folder / "my_package/losses.py").write_text(MODULE)
    launch.main([*write_run(folder / "run.yaml", pictures), "PLUGINS", "my_package.losses"])
    check_run(folder / "run", ["my_package.losses"], 2)
    assert LOSS_REGISTRY.get("SizeLoss").__module__ == "my_package.losses"


def test_a_process_that_is_started_for_a_run_imports_them(folder, pictures):
    """As those of several GPUs, which know the configuration and the package alone."""
    (folder / "my_losses.py").write_text(MODULE)
    arguments = launch.argument_parser().parse_args(write_run(folder / "run.yaml", pictures, PLUGINS=["my_losses.py"]))
    cfg = launch.setup(arguments)
    process = multiprocessing.get_context("spawn").Process(
        target=launch._run_reporting, args=(cfg, arguments, str(folder / "message"))
    )
    process.start()
    process.join()
    assert process.exitcode == 0 and not (folder / "message").exists()
    check_run(folder / "run", ["my_losses.py"], 2)


def test_the_program_prints_a_block(folder, pictures, capsys):
    (folder / "broken.py").write_text("1 / 0\n")
    with pytest.raises(SystemExit):
        launch.main(write_run(folder / "run.yaml", pictures, PLUGINS=["broken.py"]))
    error = capsys.readouterr().err
    assert "ConfigError: PLUGINS names 'broken.py'" in error and "Traceback" not in error
    assert not (folder / "run").exists()
