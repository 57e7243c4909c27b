"""Notebooks are kept as they are written: no output, no count; `make test` executes them with nbmake."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    content = json.loads(path.read_text())
    assert path.stat().st_size < 20_000
    assert set(content["metadata"]) == {"kernelspec", "language_info"}
    for cell in content["cells"]:
        assert not cell["metadata"], f"{path.name} {cell['id']}"
        if cell["cell_type"] == "code":
            assert not cell["outputs"], f"{path.name} {cell['id']}: clear all outputs before you commit"
            assert cell["execution_count"] is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_begins_with_its_title(path):
    first = json.loads(path.read_text())["cells"][0]
    assert first["cell_type"] == "markdown"
    assert "".join(first["source"]).startswith(f"# {path.stem[0]} · ")
