"""The package as it is installed: it carries its files, and declares what it imports and which Python it needs."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "projects" / "detr_distill"
SOURCES = ("projects", "configs", "weights", "setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
# Modules that are imported only where what they need is installed.
OPTIONAL_MODULES = {
    "hugging_face/own.py",
    "hugging_face/own_configuration.py",
    "detr/layers/deformable_triton.py",
    "detr/supervision/assignment_triton.py",
    "distill/attention_triton.py",
}
# The package itself, and what requirements/detectron2.txt installs.
SEPARATE = {"detectron2", "detr_distill"}

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
    assert (installed / "detr_distill" / "py.typed").is_file()
    (entries,) = installed.glob("*.dist-info/entry_points.txt")
    assert "detr-distill = detr_distill_command:main" in entries.read_text()
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
    program = [sys.executable, "-c", "import detr_distill_command; detr_distill_command.main(['distil', '--help'])"]
    result = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "usage: detr-distill distil" in result.stdout


def requirements() -> tuple[set[str], dict[str, set[str]]]:
    """Names of what the package requires, and of what each of its extras adds."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")

    def names(text: str) -> set[str]:
        return {re.split(r"[<>=\[;]", line)[0].strip() for line in text.splitlines() if line.strip()}

    extras = {extra: names(text) for extra, text in parser["options.extras_require"].items()}
    return names(parser["options"]["install_requires"]), extras


def imports(body: list[ast.stmt], *, inside: bool) -> set[str]:
    """Top-level names of foreign packages that statements import; with ``inside`` also within functions and blocks."""
    nodes = [node for statement in body for node in ast.walk(statement)] if inside else body
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {module.split(".")[0] for module in modules} - sys.stdlib_module_names - SEPARATE


def on_the_index(modules: set[str]) -> set[str]:
    """Names under which pip installs the packages."""
    known = importlib.metadata.packages_distributions()
    return {known.get(module, [module])[0].replace("_", "-").lower() for module in modules}


def test_what_is_imported_is_declared():
    """Always needed: imported as a module is loaded. In an extra: imported inside functions, where it is used."""
    needed: set[str] = set()
    anything: set[str] = set()
    for file in PACKAGE.rglob("*.py"):
        body = ast.parse(file.read_text()).body
        anything |= imports(body, inside=True)
        if str(file.relative_to(PACKAGE)) not in OPTIONAL_MODULES:
            needed |= imports(body, inside=False)
    required, extras = requirements()
    assert on_the_index(needed) == required
    assert on_the_index(anything - needed) == set().union(*(extras[name] for name in extras if name != "test"))


def test_the_import_check_can_fail():
    body = ast.parse("import os\nfrom yaml import dump\nimport cv2.data\ndef f():\n    import sklearn.svm\n").body
    assert imports(body, inside=False) == {"yaml", "cv2"}
    assert on_the_index(imports(body, inside=True)) == {"pyyaml", "opencv-python-headless", "scikit-learn"}


def test_pip_make_ruff_and_the_reader_are_told_the_same_python():
    lines = {
        "setup.cfg": r"python_requires = >=3\.(\d+)\n",
        "pyproject.toml": r'target-version = "py3(\d+)"\n',
        "Makefile": r"version_info < \(3, (\d+)\)",
        "README.md": r"Python 3\.(\d+) or later",
    }
    found = {file: re.findall(line, (ROOT / file).read_text()) for file, line in lines.items()}
    assert found == {file: ["11"] for file in lines}
    assert set(re.findall(r"[Pp]ython ?3\.(\d+)", (ROOT / "Makefile").read_text())) == {"11"}
