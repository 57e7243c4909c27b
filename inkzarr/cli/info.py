"""inkzarr info."""

from __future__ import annotations

from typing import Any

import click

from inkzarr.cli.options import storage


@click.command("info")
@click.argument("url")
@storage
def command(url: str, storage_options: dict[str, Any] | None) -> None:
    """Print levels, shapes, chunks, codec, voxel size, bytes and lineage of a volume.

    \b
    inkzarr info scan.zarr
    inkzarr info s3://bucket/scan.zarr --storage-options '{"anon": true}'
    """
    from inkzarr.info import info

    click.echo(info(url, storage_options=storage_options))
