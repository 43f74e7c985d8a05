"""The verbs of ``detr-distill`` and their options."""

import argparse
import ast
import subprocess
import sys

from detr_distill.checkpoint.importing import SOURCES
from detr_distill.options import VERBS, main, tools
from detr_distill.options.recipes import distil_parser
from detr_distill.options.training import training_parser
from detr_distill.options.words import flags_first
from detr_distill.visualization.gallery import SCORE, SURE

import pytest
from detectron2.engine import default_argument_parser
from helpers.builders import ROOT

PROGRAM = ROOT / "projects" / "detr_distill_command.py"


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_help_of_its_own(verb, capsys):
    with pytest.raises(SystemExit) as done:
        main([verb, "--help"])
    assert done.value.code == 0 and "usage:" in capsys.readouterr().out


def test_without_a_verb_all_are_listed(capsys):
    main([])
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in VERBS)


def test_a_mistyped_verb_is_told_the_right_one(capsys):
    with pytest.raises(SystemExit) as done:
        main(["distill"])
    assert done.value.code == 2 and "Did you mean distil?" in capsys.readouterr().err


def test_help_waits_for_no_library():
    """Their folder imports itself and the standard library alone; and the program reads it without the package."""
    for file in (ROOT / "projects" / "detr_distill" / "options").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1
                names = [node.module] if node.level == 0 else []
            assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
    code = f"import sys; sys.path.insert(0, {str(PROGRAM.parent)!r}); import detr_distill_command as program\n"
    code += "program.main(['--help'])\nassert not {'torch', 'detr_distill'} & set(sys.modules), 'loaded'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "usage: detr-distill VERB" in done.stdout, done.stderr


def test_training_has_the_flags_of_detectron2():
    ours, theirs = training_parser(), default_argument_parser()
    expected = vars(theirs.parse_args([])) | {"overwrite": False, "opts": []}
    found = vars(ours.parse_args([]))
    assert found.pop("dist_url").startswith("tcp://127.0.0.1:") and expected.pop("dist_url")
    assert found == {**expected, "opts": []}


def test_flags_may_stand_anywhere():
    words = ["SEED", "1", "--teacher", "a", "MODEL.DEVICE", "cpu", "--dry-run", "--epochs=3"]
    arguments = distil_parser().parse_args(flags_first(distil_parser(), words))
    assert arguments.opts == ["SEED", "1", "MODEL.DEVICE", "cpu"]
    assert (arguments.teacher, arguments.dry_run, arguments.epochs) == ("a", True, 3.0)
    assert isinstance(distil_parser(), argparse.ArgumentParser)


def test_what_options_repeat_is_what_the_modules_have():
    assert tools.SOURCES == SOURCES and (tools.SCORE, tools.SURE) == (SCORE, SURE)
