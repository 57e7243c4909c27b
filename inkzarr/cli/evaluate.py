"""inkzarr evaluate."""

from __future__ import annotations

import json
from typing import Any

import click

from inkzarr.cli.options import OneOrThree, sort_options, storage


@click.command("evaluate")
@click.argument("sheet")
@click.argument("label")
@click.option("--mask", metavar="PNG", help="Score only where it is not 0.")
@click.option("--out", metavar="REPORT.html", help="A page with pictures and curves.")
@click.option(
    "--coarse",
    type=click.IntRange(2),
    metavar="N",
    help="Score squares of N pixels as well, for a label that is not aligned to the pixel.",
)
@click.option("--patches", metavar="TABLE", help="In 3D: score the windows of this table alone.")
@click.option("--window", type=OneOrThree(), help="In 3D: where the table does not tell; default 128.")
@storage
def command(sheet: str, label: str, **given: Any) -> None:  # noqa: ANN401
    """Score a sheet against its label PNG, or a prediction volume against a label group; JSON on stdout.

    On each side a label may be larger by less than 256 pixels, or smaller by less than 64.

    \b
    inkzarr evaluate sheet.png 2023_inklabels.png --out report.html
    inkzarr evaluate prediction.zarr labels.zarr --patches held_out.parquet
    """
    from inkzarr.evaluate import EvaluateSettings, evaluate

    given["coarse"] = given["coarse"] or 0
    settings, _, rest = sort_options(given, EvaluateSettings)
    report = evaluate(sheet, label, settings, **rest)
    click.echo(json.dumps(report.to_json(), allow_nan=False))
    click.echo(str(report), err=True)
