"""Predict ink: a network over overlapping windows of a volume, blended into probabilities.

Each block runs the windows that touch it and sums up what they say in whole numbers, so that the bytes do
not depend on how the volume was cut; what is known already of later blocks of its column is left to them,
where they are computed in the same process (`inkzarr.nn.columns`)::

    read    [<- halo ->[ block ]<- halo ->]     windows: every multiple of the stride
    run      [====][====][====]
    write              [ block ]                uint8, round(255 * probability)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import torch
import xarray as xr

from inkzarr.core.blending import Blend
from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Grid, Windows, Zyx, cut_axis
from inkzarr.core.job import Job, Plan, Report, RunOptions
from inkzarr.core.progress import duration, size
from inkzarr.core.runner import plan_blocks, unfinished, write_blocks
from inkzarr.core.schema import DEFAULT_VOXEL_SIZE_UM, DIMS, PREDICTION, SERIES, VERSION, VolumeSpec
from inkzarr.core.store import open_stored
from inkzarr.core.volume import NUMBERS
from inkzarr.nn.blocks import Run
from inkzarr.nn.checkpoint import Checkpoint
from inkzarr.nn.columns import Columns
from inkzarr.nn.engine import Engine, cached_engine
from inkzarr.nn.sliding import Seen, predict_block
from inkzarr.nn.sums import Sums

if TYPE_CHECKING:
    from os import PathLike

    from torch import nn

MOST_LAZY_BLOCKS = 8192
BLOCKS_IN_FLIGHT = 2
"""One computes while the other reads or writes."""
LARGEST_WINDOW = 2**30
"""Voxels."""


@dataclass(frozen=True)
class PredictSettings:
    """How windows are laid, run and blended.

    Parameters
    ----------
    window : int or (z, y, x)
        In voxels, each a multiple of 2^(levels-1), of a flat network z any number.
    overlap : float
        Part of the window that neighbours share, 0 <= overlap < 1.
    blend : str
        ``gaussian`` or ``constant``.
    block : int or (z, y, x) or None
        Voxels computed at once, which changes no voxel; None is 128 x 256 x 256 on a CPU, on a GPU 128 x
        1024 x 1024, or less where the memory does not allow it; where lazy see `predict`.
    batch : int or None
        Windows run at once; None is one a thread on a CPU, 4 on a GPU.
    air : float
        A window whose voxels are all at most this is not run.
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    dtype : str
        Of the network's maps: ``float32``, ``bfloat16``, ``float16``.
    axes : str or None
        Order in which the network was trained to see axes; None is the checkpoint's own, else zyx.
    box : str or None
        ``z0:z1,y0:y1,x0:x1``: predict this box only.
    """

    window: int | tuple[int, int, int] = 128
    overlap: float = 0.5
    blend: Blend = "gaussian"
    block: int | tuple[int, int, int] | None = None
    batch: int | None = None
    air: float = 0
    device: str = "auto"
    dtype: str = "float32"
    axes: str | None = None
    box: str | None = None

    def windows(self, shape: Zyx) -> Windows:
        """The windows over a volume of `shape`."""
        window = Zyx.of(self.window)
        if min(window) < 1 or window.volume > LARGEST_WINDOW:
            msg = f"window {tuple(window)} cannot be run: it holds from 1 to {LARGEST_WINDOW} voxels"
            raise InputError(msg)
        if math.isnan(self.air):
            msg = "air nan compares with no voxel: give the largest value of empty windows, such as 0"
            raise InputError(msg)
        return Windows.overlapping(shape, window, self.overlap)

    def fingerprint(self, engine: Engine) -> dict[str, Any]:
        """What changes a voxel; on a GPU its kernels do, and they depend on its kind and the batch."""
        window = Zyx.of(self.window)
        found: dict[str, Any] = {"window": list(window), "stride": list(self.windows(window).stride)}
        found |= {name: getattr(self, name) for name in ("blend", "air", "dtype")}
        return {**found, "axes": engine.axes, **engine.kind}


def predict(
    volume: xr.DataArray,
    model: Checkpoint | nn.Module | str | PathLike[str],
    **settings: Any,  # noqa: ANN401
) -> xr.DataArray:
    """Predict ink, lazily: slicing the result computes the slice and what it needs.

    Parameters
    ----------
    volume : xarray.DataArray
        Dims z, y, x, as `inkzarr.open_volume` gives it; any number dtype.
    model : Checkpoint, torch.nn.Module or path
        A module gives logits (N, 1, Z, Y, X) for inputs of that shape, scaled to [0, 1].
    **settings
        The fields of `PredictSettings`. A smaller `block` computes less around a slice, a larger one
        repeats fewer windows; without one it is a window's size, doubled until the volume has at most
        8192 blocks, since Dask holds a few dozen tasks for each.

    Returns
    -------
    xarray.DataArray
        uint8, round(255 * probability of ink); dims and coordinates of `volume`, lazy.

    Raises
    ------
    InputError
        A setting, the checkpoint or the volume breaks a rule; before anything is computed.

    Examples
    --------
    >>> from inkzarr.nn.unet import UNet3D
    >>> scan = xr.DataArray(da.zeros((40, 32, 32), dtype="uint8"), dims=("z", "y", "x"))
    >>> ink = predict(scan, UNet3D(f_maps=4, levels=2), window=16)
    >>> int(ink[20:24, :8, :8].max())  # air is never ink
    0
    """
    chosen = PredictSettings(**settings)
    if chosen.box is not None:
        msg = f"box {chosen.box} is for whole runs: slice the lazy result instead"
        raise InputError(msg)
    shape = _check_volume(volume)
    engine = _engine(model, chosen)
    engine.check_window(Zyx.of(chosen.window))
    windows = chosen.windows(shape)
    blocks = Zyx.of(chosen.block) if chosen.block else _lazy_block(shape, windows.window)
    halos = windows.halos(blocks)
    least = [max(halo) for halo in halos]
    chunks = tuple(cut_axis(*axis) for axis in zip(shape, blocks, least, strict=True))
    halos = [(0, 0) if len(sizes) == 1 else halo for sizes, halo in zip(chunks, halos, strict=True)]
    starts = [np.cumsum([0, *sizes]) for sizes in chunks]

    def block_function(voxels: np.ndarray, block_id: tuple[int, int, int]) -> np.ndarray:
        start = Zyx(*(int(s[i]) for s, i in zip(starts, block_id, strict=True)))
        stop = Zyx(*(int(s[i + 1]) for s, i in zip(starts, block_id, strict=True)))
        block = Box(start, stop)
        held = Zyx(*(max(0, a - low) for a, (low, _) in zip(start, halos, strict=True)))
        seen = windows.reach(block).clip(Box.whole(shape))
        sums = Sums(block, windows, chosen.blend, engine.device)
        todo = list(windows.touching(block).indices())
        around = Seen(seen, voxels[seen.shift(held, sign=-1).slices])
        return predict_block(block, todo, around, sums, engine, air=chosen.air)

    lazy = da.map_overlap(
        block_function,
        da.asarray(volume.data).rechunk(chunks).astype(volume.dtype.newbyteorder("=")),
        depth=dict(enumerate(halos)),
        boundary="none",
        trim=False,
        allow_rechunk=False,
        dtype=np.uint8,
        chunks=chunks,
        meta=np.empty((0, 0, 0), np.uint8),
        token=f"predict-{engine.token}-{chosen}",
    )
    lineage: dict[str, Any] = {"stage": "predict", "version": VERSION, "checkpoint": engine.token}
    lineage |= {"settings": chosen.fingerprint(engine), "input": volume.attrs.get("lineage", {})}
    attrs = {**volume.attrs, "lineage": lineage}
    return xr.DataArray(lazy, coords=volume.coords, dims=DIMS, name=PREDICTION.name, attrs=attrs)


def predict_volume(
    volume: str,
    checkpoint: str,
    out: str,
    settings: PredictSettings = PredictSettings(),
    options: RunOptions = RunOptions(),
    *,
    storage_options: dict[str, Any] | None = None,
) -> Report:
    """Predict a whole stored volume into an OME-Zarr, resumably.

    Parameters
    ----------
    volume : str
        URL of the scan.
    checkpoint : str
        Path of the network's file.
    out : str
        URL of the prediction: OME-Zarr, uint8, round(255 * probability).
    settings : PredictSettings
        What is computed.
    options : RunOptions
        How it is carried out.
    storage_options : dict, optional
        For fsspec; never stored.

    Returns
    -------
    Report
        When every block is written; of a remote scan it tells the bytes fetched and needed.

    Raises
    ------
    InputError, StoreError, BlocksFailedError
        As the runner tells them.
    """
    job, blocks = _prepare(volume, checkpoint, out, settings, options, storage_options)
    report = write_blocks(job, blocks, options)
    return replace(report, traffic=blocks.run.stored.traffic())


def plan_predict(
    volume: str,
    checkpoint: str,
    out: str,
    settings: PredictSettings = PredictSettings(),
    options: RunOptions = RunOptions(),
    *,
    storage_options: dict[str, Any] | None = None,
) -> Plan:
    """Say what `predict_volume` would do, and write nothing; one window is run to tell the time.

    Returns
    -------
    Plan
        Blocks, windows, those in air, bytes in and out, peak memory, estimated time.
    """
    job, blocks = _prepare(volume, checkpoint, out, settings, options, storage_options)
    todo = blocks.foresee(job, unfinished(job, options))
    asked = blocks.air_windows[blocks.run.windows.touching(blocks.region).slices]
    seconds, kept = todo.windows * blocks.seconds_a_window(), blocks.set_aside
    return plan_blocks(
        job,
        options,
        windows=f"{todo.windows} to run; {asked.sum()} of {asked.size} lie in air",
        redundancy=f"{blocks.redundancy:.3f}, how often a window is run, on the whole",
        **{
            "bytes in": size(todo.nbytes),
            **(
                {"set aside": f"about {size(kept)} of the temporary folder, a block in flight"}
                if kept
                else {}
            ),
            "estimated time": f"{duration(seconds)} on {blocks.run.engine.device}, this machine",
        },
    )


def _prepare(
    volume: str,
    checkpoint: str,
    out: str,
    settings: PredictSettings,
    options: RunOptions,
    storage_options: dict[str, Any] | None,
) -> tuple[Job, Columns]:
    """Check everything that can be checked before the first voxel."""
    stored = open_stored(volume, storage_options=storage_options)
    stored.require_finished()
    region = Box.whole(stored.shape) if settings.box is None else Box.parse(settings.box, stored.shape)
    network = str(Path(checkpoint).resolve()), settings.axes, settings.batch, settings.device, settings.dtype
    engine, windows = cached_engine(*network), settings.windows(stored.shape)
    engine.check_window(windows.window)
    run = Run(stored, (*network, engine.token), windows, settings.blend, settings.air)
    blocks = Columns(run, region)
    fingerprint = {
        "input": stored.identity,
        "checkpoint": engine.token,
        **settings.fingerprint(engine),
        "version": f"{SERIES}, torch {torch.__version__}",
    }
    lineage = {
        "stage": "predict",
        "version": VERSION,
        "source": stored.name,
        "checkpoint": Path(checkpoint).name,
        "settings": settings.fingerprint(engine),
        "input": stored.lineage,
    }
    spec = VolumeSpec(
        stored.shape, np.dtype(np.uint8), stored.voxel_size_um or DEFAULT_VOXEL_SIZE_UM, lineage
    )
    block = Zyx.of(settings.block) if settings.block else blocks.widest(options.memory_limit)
    job = Job(
        "predict",
        out,
        spec,
        block,
        fingerprint,
        shared_bytes=blocks.shared_bytes,
        workers=BLOCKS_IN_FLIGHT,
        region=None if settings.box is None else region,
        unit="window",
        storage_options=storage_options,
        inputs=(volume, checkpoint),
    )
    blocks = replace(blocks, block=job.grid.cell)
    job = replace(
        job,
        block_bytes=blocks.block_bytes(blocks.block),
        work=blocks.work,
        holds=blocks.holds,
        columns=blocks.columns.cell,
    )
    return job, blocks


def _engine(model: Checkpoint | nn.Module | str | PathLike[str], chosen: PredictSettings) -> Engine:
    if isinstance(model, Checkpoint | torch.nn.Module):
        return Engine(model, batch=chosen.batch, device=chosen.device, dtype=chosen.dtype, axes=chosen.axes)
    return cached_engine(str(model), chosen.axes, chosen.batch, chosen.device, chosen.dtype)


def _lazy_block(shape: Zyx, window: Zyx) -> Zyx:
    """The window's size, doubled until the volume has no more blocks than a Dask graph likes."""
    block = window
    while Grid(shape, block).counts.volume > MOST_LAZY_BLOCKS:
        block = Zyx(*(2 * n for n in block))
    return block


def _check_volume(volume: xr.DataArray) -> Zyx:
    if tuple(volume.dims) != DIMS:
        msg = f"dims {tuple(volume.dims)} are not {DIMS}: rename or transpose the volume first"
        raise InputError(msg)
    if volume.dtype.kind not in NUMBERS:
        msg = f"dtype {volume.dtype} is no volume's: a voxel is a whole number or a float"
        raise InputError(msg)
    return Zyx(*volume.shape)
