"""Every Python block of README and docs runs; every command they name exists; every link leads somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from inkzarr.cli import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, str(page), "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_with_their_options(page):
    lines = re.findall(r"^inkzarr (\w+)(.*)$", page.read_text(), re.MULTILINE)
    assert page.name != "README.md" or len(lines) >= 6
    for name, rest in lines:
        known = {option for parameter in cli.commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest.split("#")[0])) <= known, name


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_with_an_example(name):
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert f"inkzarr {name}" in result.output


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    """The notebooks are executed by tests of their own."""
    pytest.importorskip("furo")
    command = ["-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-D", "nb_execution_mode=off"]
    places = ["-d", str(tmp_path / "trees"), str(ROOT / "docs"), str(tmp_path / "site")]
    run = subprocess.run([sys.executable, *command, *places], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    pages = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "reference/api.html", "decisions/0001-axis-order.html"} <= pages
    assert "inkzarr predict [OPTIONS] VOLUME" in (tmp_path / "site/reference/cli.html").read_text()
