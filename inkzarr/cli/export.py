"""inkzarr export."""

from __future__ import annotations

from typing import Any

import click

from inkzarr.cli.options import cached


@click.command("export")
@click.argument("volume")
@click.argument("out", type=click.Path())
@click.option("--box", metavar="Z0:Z1,Y0:Y1,X0:X1", help="Default: the whole volume.")
@click.option(
    "--level", type=click.IntRange(0), default=0, show_default=True, help="Resolution; 0 is the finest."
)
@click.option(
    "--axis", type=click.Choice(["z", "y", "x"]), default="z", help="Slices and frames lie across it."
)
@click.option("--step", type=click.IntRange(1), default=1, help="Voxels from one slice or frame to the next.")
@click.option("--beside", metavar="VOLUME", help="A second volume, to the right, in slices and movies.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
@cached
def command(volume: str, out: str, axis: str, step: int, beside: str | None, **given: Any) -> None:  # noqa: ANN401
    """Write a box in the format that OUT's name says.

    .nrrd, .nii and .nii.gz for 3D Slicer; .tif, one stack; .mp4, a movie through the volume; and
    'FOLDER/*.jpg', 'FOLDER/*.png' or 'FOLDER/*.tif', in quotes, for a folder of slices.

    \b
    inkzarr export prediction.zarr letters.nrrd --box 0:200,1000:1500,1000:1500
    inkzarr export scan.zarr 'slices/*.jpg' --step 10
    inkzarr export scan.zarr through.mp4 --beside prediction.zarr --axis y --level 2
    """
    from inkzarr.export import export
    from inkzarr.writers.planes import PlaneSettings

    click.echo(export(volume, out, planes=PlaneSettings(axis, step, beside), **given))
