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
HASHED = (ROOT / "requirements.txt").read_text()
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
    first, second = installs
    assert "--require-hashes" in first
    assert first[first.index("--requirement") + 1] == "requirements.txt"
    assert {"--no-index", "--no-deps"} <= set(second), "nothing more comes over the network"
    assert all("--no-build-isolation" in words for words in installs), "build tools come from the image"
    pip = next(entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert pip[0] == "--constraint constraints.txt"
    torch = f"torch=={PINS['torch']}"
    assert torch in pip
    assert torch in (ROOT / "Makefile").read_text()
    assert set(re.search(r"\.\[(.*)\]", pip[-1])[1].split(",")) <= PROJECT["optional-dependencies"].keys()


def test_the_container_installs_pins_with_hashes():
    told = re.split(r"\n(?=\S)", HASHED.strip())
    found = {}
    for entry in (entry for entry in told if not entry.startswith("#")):
        first, *hashes = re.split(r" \\\n\s+", entry)
        name, version = first.split("==")
        found[name] = version.split(" ")[0]
        assert hashes, entry
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes), entry
    assert "://" not in HASHED
    pins = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in PINS.items()}
    assert {name: version for name, version in found.items() if name in pins} == {
        name: pins[name] for name in found if name in pins
    }
    extras = re.search(r"\[(.*)\]", PROJECT["optional-dependencies"]["all"][0])[1].split(",")
    wanted = [*PROJECT["dependencies"], *(w for e in extras for w in PROJECT["optional-dependencies"][e])]
    assert {re.split(r"[\[><=~ ]", want)[0].lower() for want in wanted} <= found.keys()


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
