"""inkzarr patches."""

from __future__ import annotations

from typing import Any

import click

from inkzarr.cli.options import OneOrThree, run, sort_options, storage


@click.command("patches")
@click.argument("labels")
@click.argument("out", type=click.Path())
@click.option("--window", type=OneOrThree(), default="128", show_default=True)
@click.option("--stride", type=OneOrThree(), help="Default: the window.")
@click.option(
    "--min-labelled", type=click.IntRange(1), default=1, show_default=True, help="Voxels with a label."
)
@click.option("--workers", type=click.IntRange(1), help="Chunks read at once.")
@storage
def command(labels: str, out: str, **given: Any) -> None:  # noqa: ANN401
    """List the windows that hold labels, as Parquet or .npy.

    \b
    inkzarr patches labels.zarr patches.parquet --stride 64
    """
    from inkzarr.patches import PatchSettings, patches

    settings, options, rest = sort_options(given, PatchSettings)
    run(patches, labels, out, settings, workers=options.workers, **rest)
