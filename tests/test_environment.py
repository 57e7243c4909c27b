"""Dockerfile and environment.yml say what constraints.txt and pyproject.toml say; nothing here runs them."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
INSTRUCTIONS = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "ENV", "ARG"}


@pytest.fixture(scope="module")
def steps():
    """Instructions of the Dockerfile, in order."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


@pytest.fixture(scope="module")
def conda():
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def test_one_python_that_the_project_supports(steps, conda):
    assert steps[0][0] == "FROM"
    docker = re.fullmatch(r"python:(\d+\.\d+)-slim", steps[0][1])[1]
    assert f"python={docker}" in conda["dependencies"]
    assert f"Programming Language :: Python :: {docker}" in PROJECT["classifiers"]


def test_every_installation_is_pinned(steps, conda):
    installs = [shlex.split(rest) for name, rest in steps if name == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    for words in installs:
        assert words[words.index("--constraint") + 1] == "constraints.txt"
    pip = next(entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert pip[0] == "--constraint constraints.txt"
    torch = f"torch=={PINS['torch']}"
    assert installs[0][-1] == torch
    assert torch in pip
    assert torch in (ROOT / "Makefile").read_text()
    for extra in (installs[1][-1], pip[-1]):
        assert set(re.search(r"\.\[(.*)\]", extra)[1].split(",")) <= PROJECT["optional-dependencies"].keys()


def test_the_dockerfile_is_well_formed(steps):
    assert {name for name, _ in steps} <= INSTRUCTIONS
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for name, rest in steps:
        if name == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), f"COPY {source}"
                assert source in kept, f".dockerignore leaves {source} out"
    assert steps[-1] == ("ENTRYPOINT", '["inkzarr"]')
    assert "inkzarr" in PROJECT["scripts"]
    assert ("USER", "scroll") in steps, "not as root"


def test_what_pyproject_reads_is_copied(steps):
    copied = " ".join(rest for name, rest in steps if name == "COPY")
    for name in (PROJECT["readme"], *PROJECT["license-files"]):
        assert name in copied


def test_the_pins_cover_what_is_installed_by_name():
    names = {re.split(r"[\[><=~ ]", want)[0].lower() for want in PROJECT["dependencies"]}
    pinned = {name.lower() for name in PINS}
    assert names <= pinned
