"""inkzarr ingest."""

from __future__ import annotations

from typing import Any

import click

from inkzarr.cli.options import run, sort_options, storage, writing


@click.command("ingest")
@click.argument("source")
@click.argument("out")
@click.option("--axes", default="zyx", show_default=True, help="Order of the source's axes.")
@click.option("--voxel-size", type=float, help="Micrometres; default: what the source says, else 7.91.")
@click.option("--dtype", type=click.Choice(["uint8", "keep"]), default="uint8", show_default=True)
@click.option("--zarr-format", type=click.Choice(["2", "3"]), default="2", show_default=True)
@click.option("--shard", type=click.IntRange(1), metavar="N", help="Shards of N^3 voxels, Zarr 3 only.")
@writing
@storage
def command(source: str, out: str, plan: bool, **given: Any) -> None:  # noqa: ANN401
    """Turn slices, HDF5, NRRD or another Zarr into an OME-Zarr of 128^3 chunks.

    uint16 becomes uint8 by its high byte, rounded down; --dtype keep keeps it.

    \b
    inkzarr ingest slices/ scan.zarr --voxel-size 7.91
    inkzarr ingest volume.h5::raw scan.zarr --axes yxz
    """
    from inkzarr.ingest import IngestSettings, ingest, plan_ingest

    given["zarr_format"] = int(given["zarr_format"])
    given["voxel_size_um"] = given.pop("voxel_size")
    settings, options, rest = sort_options(given, IngestSettings)
    run(plan_ingest if plan else ingest, source, out, settings, options, **rest)
