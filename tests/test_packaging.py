"""The package as it is installed: it carries its files and finds them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "projects" / "detr_distill"
SOURCES = ("projects", "configs", "weights", "setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")

INSTALLED = """
from detr_distill.config.build import build_config
from detr_distill.config.files import SHIPPED
from detr_distill.distill.teachers.configuration import find_weights, load_teacher_config

cfg = build_config("configs/digits/d3etr_conditional.yaml", [])
print(SHIPPED, find_weights(cfg), load_teacher_config(cfg).OUTPUT_DIR, sep="\\n")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The content of a wheel that is built from a copy of the sources, as ``pip install`` would lay it out."""
    folder = tmp_path_factory.mktemp("packaging")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels", "."], cwd=folder, check=True)
    (wheel,) = (folder / "wheels").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_a_wheel_holds_every_module_and_the_public_files(installed):
    def files(folder: Path, pattern: str) -> set[str]:
        return {str(file.relative_to(folder)) for file in folder.rglob(pattern)}

    carried = installed / "detr_distill" / "_files"
    assert files(installed / "detr_distill", "*.py") == files(PACKAGE, "*.py")
    assert files(carried / "configs", "*") == files(ROOT / "configs", "*")
    teacher = Path("weights", "digits_teacher.pth")
    assert (carried / teacher).read_bytes() == (ROOT / teacher).read_bytes()


def test_an_installed_package_finds_its_files_from_any_folder(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-W", "ignore", "-c", INSTALLED]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    carried = installed / "detr_distill" / "_files"
    weights = carried / "weights" / "digits_teacher.pth"
    assert result.stdout.splitlines() == [str(carried), str(weights), "output/digits_teacher"]
