"""inkzarr verify."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from inkzarr.cli.options import storage

if TYPE_CHECKING:
    from inkzarr.verify import VerifyReport


@click.command("verify")
@click.argument("url")
@click.option("--repair", is_flag=True, help="Compute the blocks of damaged chunks again, and no others.")
@storage
@click.pass_context
def command(context: click.Context, url: str, repair: bool, storage_options: dict[str, Any] | None) -> None:
    """Check every chunk against the ledger; damage ends with exit code 6.

    --repair runs again, from the folder it is given in, the command that is noted in the ledger.

    \b
    inkzarr verify prediction.zarr
    inkzarr verify prediction.zarr --repair
    """
    from inkzarr.verify import verify

    report = verify(url, storage_options=storage_options)
    click.echo(report)
    if repair and _repair(context, report, storage_options):
        report = verify(url, storage_options=storage_options)
        click.echo(report)
    report.raise_for_damage()


def _repair(context: click.Context, report: VerifyReport, storage_options: dict[str, Any] | None) -> bool:
    """Strike the damaged blocks, and run what computes them again, once each; whether there were any."""
    from inkzarr.core.errors import DamageError
    from inkzarr.core.ledger import OUT
    from inkzarr.verify import strike

    struck = strike(report, storage_options=storage_options)
    options = [] if storage_options is None else ["--storage-options", json.dumps(storage_options)]
    for words in dict.fromkeys(one.command for one in struck):
        of = [one for one in struck if one.command == words]
        what = ", ".join(f"{one.blocks or 'earlier struck'} blocks of {one.path}" for one in of)
        if words is None:
            msg = (
                f"{what} of {report.url} are struck, but it is not noted what made them: "
                f"run {of[0].stage} again, as then, and they are computed again"
            )
            raise DamageError(msg)
        click.echo(f"repair: {what}, by inkzarr {' '.join(words)}", err=True)
        again = [report.source if word == OUT else word for word in words]
        context.find_root().command.main([*again, *options], prog_name="inkzarr", standalone_mode=False)
    return bool(struck)
