"""inkzarr verify."""

from __future__ import annotations

from typing import Any

import click

from inkzarr.cli.options import storage


@click.command("verify")
@click.argument("url")
@storage
def command(url: str, storage_options: dict[str, Any] | None) -> None:
    """Check every chunk against the ledger; damage ends with exit code 6.

    \b
    inkzarr verify prediction.zarr
    """
    from inkzarr.verify import verify

    report = verify(url, storage_options=storage_options)
    click.echo(report)
    report.raise_for_damage()
