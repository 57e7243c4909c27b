"""Sphinx: `make docs` builds these pages, with warnings as errors."""

from __future__ import annotations

import shutil
from pathlib import Path

import click
from docutils import nodes
from docutils.parsers.rst import Directive

from inkzarr.cli import cli
from inkzarr.core.schema import VERSION

HERE = Path(__file__).resolve().parent
shutil.copytree(
    HERE.parent / "notebooks",
    HERE / "tutorials" / "notebooks",
    ignore=lambda _, names: [name for name in names if not name.endswith(".ipynb")],
    dirs_exist_ok=True,
)

project = "inkzarr"
author = "the inkzarr authors"
copyright = "the inkzarr authors, Apache-2.0"
version = release = VERSION

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
html_theme = "furo"
html_title = "inkzarr"
nitpicky = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_timeout = 600
nb_execution_raise_on_error = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = False
napoleon_use_rtype = False


class CommandHelp(Directive):
    """Every command of the command line, with its help as click prints it."""

    def run(self) -> list[nodes.Node]:
        """One section a command."""
        sections = []
        for name, command in cli.commands.items():
            context = click.Context(command, info_name=f"inkzarr {name}", terminal_width=90)
            section = nodes.section(ids=[f"inkzarr-{name}"], names=[name])
            text = command.get_help(context)
            section += [nodes.title(text=name), nodes.literal_block(text, text, language="text")]
            sections.append(section)
        return sections


def setup(app: object) -> None:
    """Add the directive."""
    app.add_directive("command-help", CommandHelp)
