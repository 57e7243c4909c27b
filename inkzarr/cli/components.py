"""inkzarr components."""

from __future__ import annotations

from typing import Any

import click

from inkzarr.cli.options import cached, run, sort_options, writing


@click.command("components")
@click.argument("prediction")
@click.argument("out", type=click.Path())
@click.option("--threshold", type=float, default=0.5, show_default=True, help="The least probability of ink.")
@click.option(
    "--min-voxels", type=click.IntRange(1), default=1000, show_default=True, help="Smaller ones are left out."
)
@click.option("--labels", metavar="LABELS.zarr", help="Also write the components' ids as a volume.")
@click.option(
    "--sheet",
    type=click.Path(),
    metavar="SHEET.html",
    help="Also write a page with pictures of the best 100, and a folder SHEET of PNG files.",
)
@click.option("--scan", metavar="VOLUME", help="The scan, of which the sheet shows slices.")
@writing
@cached
def command(prediction: str, out: str, plan: bool, **given: Any) -> None:  # noqa: ANN401
    """List the letter candidates: connected voxels of ink, measured and ranked, as Parquet.

    \b
    inkzarr components ink.zarr letters.parquet --sheet letters.html --scan scan.zarr
    inkzarr components s3://bucket/ink.zarr letters.parquet --threshold 0.4 --labels ids.zarr
    """
    from inkzarr.components import ComponentSettings, components, plan_components

    settings, options, rest = sort_options(given, ComponentSettings)
    run(plan_components if plan else components, prediction, out, settings, options, **rest)
