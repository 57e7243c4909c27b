"""Predictions on disk, and the tables that are made of them."""

import pyarrow.parquet

from inkzarr.core.geometry import Zyx
from inkzarr.core.job import Job, RunOptions
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import VolumeSpec


def write(url, voxels, **options):
    spec = VolumeSpec(Zyx(*voxels.shape), voxels.dtype, **options)
    job = Job("predict", str(url), spec, Zyx.of(128), {"x": 1})
    write_blocks(job, lambda box: voxels[box.slices], RunOptions(overwrite=True, json_logs=True))
    return str(url)


def rows(path):
    return pyarrow.parquet.read_table(path).to_pydict()
