"""inkzarr view."""

from __future__ import annotations

import warnings
from typing import Any

import click

from inkzarr.cli.options import storage


@click.command("view")
@click.argument("volumes", nargs=-1, required=True)
@click.option("--no-browser", is_flag=True, help="Print the address only.")
@storage
def command(volumes: tuple[str, ...], no_browser: bool, **given: Any) -> None:  # noqa: ANN401
    """Show volumes in Neuroglancer, the first in grey, the others in colour over it; Ctrl-C ends it.

    \b
    inkzarr view scan.zarr prediction.zarr
    """
    from inkzarr.core.errors import UnfinishedWarning
    from inkzarr.view import view

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UnfinishedWarning)
        viewing = view(volumes, browser=not no_browser, **given)
    for warning in told:
        click.echo(f"inkzarr: {warning.message}", err=True)
    click.echo(viewing.url)
    click.echo("served on this machine alone; Ctrl-C ends it", err=True)
    viewing.wait()
