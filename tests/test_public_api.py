"""The public names are what they say, and no module outgrows its room."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import inkzarr

PACKAGE = Path(inkzarr.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 400


def test_all_equals_reality():
    own = {
        name
        for name in vars(inkzarr)
        if not name.startswith("_") and not inspect.ismodule(getattr(inkzarr, name))
    }
    constants = {"STAGES", "Any", "ModuleType", "TYPE_CHECKING"}
    assert own - constants <= set(inkzarr.__all__)
    for name in inkzarr.__all__:
        assert getattr(inkzarr, name) is not None


@pytest.mark.parametrize("name", inkzarr.STAGES)
def test_a_stage_is_its_function_however_it_was_imported(name):
    module = importlib.import_module(f"inkzarr.{name}")
    assert getattr(inkzarr, name) is getattr(
        module if inspect.ismodule(module) else sys.modules[f"inkzarr.{name}"], name
    )
    assert callable(getattr(inkzarr, name))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'predicted'"):
        _ = inkzarr.predicted


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_stay_small(path):
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_numpydoc_parameters_are_those_of_the_signature(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        doc = ast.get_docstring(node) or ""
        if "Parameters\n----------" not in doc:
            continue
        section = re.split(r"\n\n\w[\w ]*\n---", doc.split("Parameters\n----------\n")[1])[0].splitlines()
        told = [
            n.strip().lstrip("*")
            for line in section
            if line and not line.startswith(" ")
            for n in line.split(" : ")[0].split(",")
        ]
        arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        arguments += [a.arg for a in (node.args.vararg, node.args.kwarg) if a]
        real = [name for name in arguments if name not in ("self", "cls")]
        assert sorted(told) == sorted(real), f"{path.name}:{node.lineno} {node.name}"


def test_label_preparation_imports_no_torch():
    code = "import sys, inkzarr, inkzarr.cli, inkzarr.ingest, inkzarr.pyramid, inkzarr.testing; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
