"""inkzarr split."""

from __future__ import annotations

from typing import Any

import click

from inkzarr.cli.options import OneOrThree, run


@click.command("split")
@click.argument("train", metavar="TRAIN_PATCHES", type=click.Path())
@click.argument("valid", metavar="VALID_PATCHES", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--margin", type=click.FloatRange(0), default=512, show_default=True, help="Voxels.")
@click.option("--window", type=OneOrThree(), help="Default: what the tables tell, else 128.")
@click.option(
    "--jitter", type=click.IntRange(0), default=0, show_default=True, help="Shift of a training crop."
)
@click.option("--rule", type=click.Choice(["box", "corner"]), default="box", show_default=True)
@click.option("--region", metavar="Z0:Z1,Y0:Y1,X0:X1", help="Windows of TRAIN_PATCHES in it are validation.")
def command(train: str, valid: str, out: str, region: str | None, **given: Any) -> None:  # noqa: ANN401
    """Keep the training windows that are far from validation; draw both in a PNG beside OUT.

    With --region there is one table, and VALID_PATCHES is written too.

    \b
    inkzarr split segments.parquet held_out.parquet train.parquet --jitter 16
    inkzarr split all.parquet valid.parquet train.parquet --region 0:2000,:,:
    """
    from inkzarr.split import SplitSettings, split, split_by_region

    settings = SplitSettings(**given)
    if region is None:
        run(split, train, valid, out, settings)
    else:
        run(split_by_region, train, region, valid, out, settings)
