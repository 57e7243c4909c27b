"""inkzarr pyramid."""

from __future__ import annotations

from typing import Any

import click

from inkzarr.cli.options import run, sort_options, storage, writing_over


@click.command("pyramid")
@click.argument("volume")
@click.option("--levels", type=click.IntRange(1), help="Default: until a level fits one chunk.")
@click.option(
    "--reduce", type=click.Choice(["mean", "max"]), default="mean", show_default=True, help="Ids: max."
)
@writing_over("Make all coarser levels anew, also those of other tools; the finest is kept.")
@storage
def command(volume: str, plan: bool, levels: int | None, reduce: str, **given: Any) -> None:  # noqa: ANN401
    """Add coarser levels, each half as fine as the one before, to a scan, a prediction or labels.

    \b
    inkzarr pyramid scan.zarr --levels 5
    """
    from inkzarr.pyramid import plan_pyramid, pyramid

    _, options, rest = sort_options(given, None)
    run(plan_pyramid if plan else pyramid, volume, levels=levels, reduce=reduce, options=options, **rest)
