"""The documentation agrees with the code: its examples run, and what it names exists."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import detr_distill
from detr_distill.commands.recipe.methods import METHODS
from detr_distill.config.build import build_config, default_config, flatten
from detr_distill.config.keys import declared_keys
from detr_distill.engine.launch import argument_parser
from detr_distill.options import VERBS
from detr_distill.options.words import flags_first

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from helpers.builders import ROOT
from helpers.registrations import forgotten_afterwards

PACKAGE = Path(detr_distill.__file__).parent
RECIPES = ROOT / "docs" / "recipes.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SUFFIXES = "py|yaml|toml|cfg|txt|md|pth|json|png"
# Files that a run writes or a user brings.
WRITTEN = re.compile(
    r"output/.*|\./output.*|.*my_.*|model_(best|final)\.(pth|json)|student_final(\.pth|/)|(config|recipe)\.(yaml|json)|(results|detections)\.json"
    r"|metrics\.json|log\.txt|preprocessor_config\.json|inference/.*|ImageSets/.*|coco/.*|instances_(train|val)2017\.json|/.*"
    r"|efficientnet-lite.*"
)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """Lines of the shell blocks, joined where they end in a backslash, without comments."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    return [line.split(" #")[0].strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def extension():
    """What the blocks of extending.md leave behind, and ``step_cfg``, the configuration of the first model."""
    torch.manual_seed(0)
    namespace: dict = {"__name__": "extending"}
    with pytest.MonkeyPatch.context() as patch, forgotten_afterwards():
        patch.chdir(ROOT)
        for block in blocks(ROOT / "docs" / "extending.md", "python"):
            exec(compile(block, "docs/extending.md", "exec"), namespace)
            if "model" in namespace and "step_cfg" not in namespace:
                namespace["step_cfg"] = namespace["cfg"].clone()
        yield namespace


def test_the_example_trains_a_step(extension):
    losses, model = extension["losses"], extension["model"]
    for matcher in ("centre", "fixed"):
        for term in ("class_{}", "hidden_{}", "hidden_{}_0"):
            assert "loss_distill_" + term.format(matcher) in losses
    assert not any("adaptive" in name for name in losses)
    assert all(value.isfinite() for value in losses.values())
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    adapter = model.losses["HiddenStateLoss"].adapter
    assert adapter.weight.grad.abs().sum() > 0


def test_the_example_pairs_the_nearest_centres(extension):
    """A student that is its own teacher pairs each query with itself."""
    model = extension["model"]
    matcher, own = model.matchers["CentreMatcher"], torch.rand(2, 1, 5, 4)
    from detr_distill.detr.supervision.assignment import solve_assignments
    from detr_distill.distill.knowledge import Knowledge
    from detr_distill.distill.students.base import StudentOutput
    from detr_distill.structures import DecoderOutput

    output = DecoderOutput(torch.zeros(2, 1, 5, 3), own, torch.zeros(2, 1, 5, 4), "sigmoid")
    student, knowledge = StudentOutput({}, {"own": output}), Knowledge(output=output)
    (pairs,) = solve_assignments([matcher.cost(student, knowledge)])
    assert torch.equal(matcher(student, knowledge, pairs).pairs.target, torch.arange(5).expand(2, 1, 5))


def test_the_example_is_left_out_at_weight_zero(extension):
    cfg = extension["step_cfg"].clone()
    cfg.MODEL.DISTILL.HIDDEN_STATE_LOSS.WEIGHT = 0.0
    model = build_model(cfg)
    assert list(model.losses) == ["PredictionLoss"] and list(model.matchers) == ["CentreMatcher", "FixedMatcher"]


def test_the_examples_are_short():
    for name in ("CentreMatcher", "HiddenStateLoss"):
        text = next(b for b in blocks(ROOT / "docs" / "extending.md", "python") if f"class {name}" in b)
        lines = text[text.index("@") :].splitlines()
        assert len([line for line in lines if line.strip()]) <= 20


def documented_defaults() -> dict[str, object]:
    rows = re.findall(r"^\| `([A-Z][\w.]*)` \| `(.*?)` \|", (ROOT / "docs" / "configs.md").read_text(), re.MULTILINE)
    assert len(rows) == len(dict(rows)), "a key is documented twice"
    return {key: ast.literal_eval(value) for key, value in rows}


def test_every_key_is_documented_with_its_default():
    theirs, ours = flatten(get_cfg()), flatten(default_config())
    # The examples of extending.md declare keys, too.
    examples = set(dict(declared_keys())) - set(dict(declared_keys("detr_distill.")))
    added = {
        key: value for key, value in ours.items() if (key not in theirs or theirs[key] != value) and key not in examples
    }
    documented = documented_defaults()
    assert set(documented) == set(added)
    for key, value in added.items():
        found = documented[key]
        assert found == value and type(found) is type(value), f"{key}: {found!r} documented, {value!r} in config/"


@pages
def test_paths_exist(page):
    """Paths are from the root, the package, docs/ or configs/."""
    text = page.read_text()
    names = re.findall(rf"(?<![\w/.*<-])((?:[\w.-]+/)*[\w-][\w.-]*\.(?:{SUFFIXES}))\b(?![/*<])", text)
    names += re.findall(r"`((?:[\w.-]+/)+)`", text) + re.findall(r"\]\((?!http)([^)#]+)\)", text)
    places = (ROOT, PACKAGE, ROOT / "docs", ROOT / "configs")
    missing = {
        name for name in names if not WRITTEN.fullmatch(name) and not any((place / name).exists() for place in places)
    }
    assert not missing


@pages
def test_code_references_exist(page):
    """``distill/teachers/frozen.py:FrozenDetector.train``: the file defines the class, function or method."""
    for file, symbol in re.findall(r"`([\w/]+\.py):([\w.]+)`", page.read_text()):
        body: list = ast.parse((PACKAGE / file).read_text()).body
        for name in symbol.split("."):
            found = [node for node in body if getattr(node, "name", None) == name]
            assert found, f"{file} has no {symbol}"
            body = found[0].body


@pages
def test_configuration_keys_exist(page):
    cfg = default_config()
    known = set(flatten(cfg))
    nodes = {key[:end] for key in known for end in range(len(key)) if key[end] == "."}
    found = re.findall(
        r"\b((?:MODEL|SOLVER|DATASETS|INPUT|DATALOADER|TEST)\.[A-Z][A-Z0-9_.]*[A-Z0-9])\b", page.read_text()
    )
    assert {key for key in found if key not in known | nodes and "HIDDEN_STATE_LOSS" not in key} == set()


@pages
def test_make_targets_exist(page):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b(?=[` \n])", "\n".join(commands(page)))) <= targets
    assert set(re.findall(r"`make ([a-z]+)`", page.read_text())) <= targets


@pages
def test_training_commands_are_understood(page):
    """Flags, configuration files and KEY VALUE pairs of every ``python train_net.py`` line."""
    import shlex

    for command in commands(page):
        words = shlex.split(command)
        if words[:2] != ["python", "train_net.py"] or "..." in words:
            continue
        arguments = argument_parser().parse_args(words[2:])
        build_config(str(ROOT / arguments.config_file), arguments.opts or [])


@pages
def test_commands_of_the_program_are_understood(page):
    """Verb and options of every ``detr-distill`` line."""
    import shlex

    for command in commands(page):
        words = shlex.split(command)
        if words[:1] != ["detr-distill"] or "VERB" in words:
            continue
        verb = VERBS[words[1]]
        importlib.import_module(f"detr_distill.commands.{verb.module}")
        parser = verb.parser()
        parser.parse_args(flags_first(parser, words[2:]) if verb.anywhere else words[2:])


def test_the_table_of_methods_is_that_of_the_code():
    text = (ROOT / "docs" / "command.md").read_text()
    rows = re.findall(r"^\| ([^|]*) \| ([^|]*?) ?\| ([\w, ]*Matcher) \| ([\w, ]*Loss) \|$", text, re.MULTILINE)
    found = [tuple(", ".join(sorted(part)) for part in (row.both, row.student)) for row in METHODS]
    kinds = [tuple(", ".join(part) for part in (row.matchers, row.losses)) for row in METHODS]
    assert [(*given, *taken) for given, taken in zip(found, kinds, strict=True)] == rows


def test_the_first_screen_has_the_commands():
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    for command in (
        "make demo",
        "make test",
        "python train_net.py --config-file configs/d3etr/conditional_r101_r50.yaml --num-gpus 8",
    ):
        assert command in first


def test_every_configuration_is_among_the_recipes():
    text = RECIPES.read_text()
    files = [file for file in (ROOT / "configs").glob("*/*.yaml") if not file.name.startswith("Base-")]
    assert not [str(file.relative_to(ROOT)) for file in files if str(file.relative_to(ROOT / "configs")) not in text]


def test_the_recipes_give_the_schedules_of_the_small_configurations():
    rows = re.findall(
        r"^\| `(digits/\w+\.yaml)` \|.*?\| ([\d,]+) iterations, batch (\d+) \|",
        RECIPES.read_text(),
        re.MULTILINE,
    )
    assert rows
    for file, iterations, batch in rows:
        solver = build_config(str(ROOT / "configs" / file), []).SOLVER
        assert (int(iterations.replace(",", "")), int(batch)) == (solver.MAX_ITER, solver.IMS_PER_BATCH), file
