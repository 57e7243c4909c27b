"""inkzarr flatten."""

from __future__ import annotations

from typing import Any

import click

from inkzarr.cli.options import cached, run, sort_options, writing


@click.command("flatten")
@click.argument("prediction")
@click.argument("surface")
@click.argument("out", type=click.Path())
@click.option(
    "--depth",
    type=click.IntRange(0),
    default=16,
    show_default=True,
    help="Voxels on each side of the surface.",
)
@click.option(
    "--reduce",
    type=click.Choice(["max", "mean", "none"]),
    default="max",
    show_default=True,
    help="none: all layers, as a TIFF stack or a folder of NN.tif.",
)
@click.option("--alpha", is_flag=True, help="Pixels without a place in the volume are transparent.")
@writing
@cached
def command(prediction: str, surface: str, out: str, plan: bool, **given: Any) -> None:  # noqa: ANN401
    """Bring a prediction (or a scan) along a surface into the plane, as PNG or TIFF; run again to go on.

    SURFACE is a .ppm file, a tifxyz folder, or flat:Z, slice Z of a volume that is flattened already.

    \b
    inkzarr flatten prediction.zarr paths/2023/2023.ppm sheet.png
    inkzarr flatten scan.zarr 2024.tifxyz layers/ --depth 32 --reduce none
    inkzarr flatten prediction.zarr flat:6 sheet.tif --reduce mean
    """
    from inkzarr.flatten import FlattenSettings, flatten, plan_flatten

    settings, options, rest = sort_options(given, FlattenSettings)
    run(plan_flatten if plan else flatten, prediction, surface, out, settings, options, **rest)
