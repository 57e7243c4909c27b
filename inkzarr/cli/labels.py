"""inkzarr labels."""

from __future__ import annotations

from typing import Any

import click

from inkzarr.cli.options import OneOrThree, run, sort_options, storage, writing


@click.command("labels")
@click.argument("paths", type=click.Path())
@click.argument("ink", type=click.Path())
@click.argument("out")
@click.option("--like", metavar="VOLUME", help="The scan that the labels belong to: shape and voxel size.")
@click.option("--shape", type=OneOrThree(), help="Of the volume, where there is no scan at hand.")
@click.option("--depth", type=float, default=4, show_default=True, help="Voxels on each side of the surface.")
@click.option("--footprint", type=click.Choice(["ray", "box"]), default="ray", show_default=True)
@click.option(
    "--skip-blank", type=click.IntRange(0), default=128, show_default=True, help="0: all blocks vote."
)
@click.option(
    "--only", multiple=True, metavar="ID", help="Take this segment alone; again for more, * for any."
)
@click.option("--exclude", multiple=True, metavar="ID", help="Leave this segment out; again for more.")
@click.option("--all-versions", is_flag=True, help="Keep ids that differ in the last character only.")
@click.option(
    "--flat", type=float, metavar="Z", help="PATHS is the flattened volume; its surface is slice Z."
)
@click.option("--block", type=click.IntRange(1), default=256, show_default=True, help="Changes no voxel.")
@writing
@storage
def command(paths: str, ink: str, out: str, plan: bool, **given: Any) -> None:  # noqa: ANN401
    """Bring the 2D ink labels of all segments back into the 3D volume.

    \b
    inkzarr labels paths/ inklabels/ labels.zarr --like scan.zarr
    inkzarr labels paths/ inklabels/ labels.zarr --shape 14376,7888,8096 --exclude '2023*' --plan
    inkzarr labels layers.zarr word.png labels.zarr --flat 32
    """
    from inkzarr.labels import LabelSettings, labels, plan_labels

    settings, options, rest = sort_options(given, LabelSettings)
    run(plan_labels if plan else labels, paths, ink, out, settings, options, **rest)
