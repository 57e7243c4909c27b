"""Open what is learned from, and refuse what does not belong together, before anything is computed."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.labelled import open_label_arrays
from inkzarr.core.nearest import BoxTree
from inkzarr.core.patches import read_patches
from inkzarr.core.store import open_stored
from inkzarr.nn.augment import reach
from inkzarr.nn.chunks import ChunkCache, Labels, Voxels
from inkzarr.nn.config import Augment
from inkzarr.nn.dataset import Crops, Source

if TYPE_CHECKING:
    from inkzarr.core.patches import Patches
    from inkzarr.nn.config import Config, Numbers

VALID_SHARE = 8
"""Of the cache, validation has one part in so many."""


def open_labelled(
    volume: str, labels: str, patches: str, *, storage_options: dict[str, Any] | None = None
) -> tuple[Source, Patches]:
    """Open a scan, its labels, and its table of windows.

    Parameters
    ----------
    volume, labels : str
        Paths or URLs; finished.
    patches : str
        Path of the table.
    storage_options : dict, optional
        For fsspec.

    Raises
    ------
    InputError
        One is missing or unfinished, the labels have another shape than the scan, the table is empty, or a
        window begins outside the scan.
    """
    scan = open_stored(volume, storage_options=storage_options)
    ink, count = open_label_arrays(labels, storage_options=storage_options)
    if count.shape != scan.shape:
        msg = (
            f"labels {labels} of shape {_told(count.shape)} do not belong to the scan {volume} of shape "
            f"{_told(scan.shape)}: make them with inkzarr labels --like {volume}"
        )
        raise InputError(msg)
    table = read_patches(patches)
    if not len(table):
        msg = f"patches {patches} have no window: write them with inkzarr patches, or split with less margin"
        raise InputError(msg)
    outside = ((table.corners < 0) | (table.corners >= np.array(scan.shape))).any(1)
    if outside.any():
        first = _told(Zyx(*map(int, table.corners[outside][0])))
        msg = f"patches {patches} have a window at {first}, outside the scan {volume} of {_told(scan.shape)}"
        raise InputError(msg + ": give the table of this scan")
    for stored in (scan, ink, count):
        stored.require_finished()
    return Source(Voxels(scan), Labels(ink, count, count.may_exceed(0)), table.corners), table


def open_unlabelled(volume: str, window: Numbers, *, storage_options: dict[str, Any] | None = None) -> Source:
    """Open a scan, with windows side by side wherever a chunk may hold more than air.

    Raises
    ------
    InputError
        Missing, unfinished, or all air.
    """
    scan = open_stored(volume, storage_options=storage_options)
    scan.require_finished()
    starts = (range(0, n, w) for n, w in zip(scan.shape, window, strict=True))
    corners = np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, 3).astype(np.int64)
    centres = np.minimum(corners + np.array(window) // 2, np.array(scan.shape) - 1)
    corners = corners[scan.may_exceed(0)[tuple((centres // np.array(scan.chunks)).T)]]
    if not len(corners):
        msg = f"scan {volume} is all air: there is nothing to learn from it"
        raise InputError(msg)
    return Source(Voxels(scan), None, corners)


def training(sources: list[Source], config: Config, window: Numbers, workers: int) -> Crops:
    """The windows to learn from, at random places, at random turns."""
    limit = config.cache_mb * 10**6 * (VALID_SHARE - 1) // VALID_SHARE // max(1, workers)
    told = config.seed, config.jitter, config.min_labelled, config.augment
    return Crops(sources, window, *told, ChunkCache(limit))


def scoring(sources: list[Source], config: Config, window: Numbers, workers: int) -> Crops:
    """The windows to score on, as they are."""
    limit = config.cache_mb * 10**6 // VALID_SHARE // max(1, workers)
    return Crops(sources, window, config.seed, 0, 0, Augment.off(), ChunkCache(limit))


def may_be_labelled(source: Source, window: Numbers) -> bool:
    """Whether a chunk that any window touches may hold a label."""
    if source.labels is None:
        return False
    holds, count = source.labels.holds, source.labels.stored
    grid, whole = Grid(count.shape, count.chunks), Box.whole(count.shape)
    boxes = (
        Box(Zyx(*map(int, corner)), Zyx(*map(int, corner + np.array(window)))) for corner in source.corners
    )
    return any(holds[grid.cells(box.clip(whole)).slices].any() for box in boxes)


def gap(crops: Crops, valid: Source) -> float:
    """The smallest distance, box to box, of what training can see to a window that is scored; in voxels.

    Of all windows of the same scan, jitter and `reach` included; 0 where they touch or overlap.
    """
    scan, window = valid.voxels.stored.url, np.array(crops.window)
    same = np.concatenate([one.corners for one in crops.sources if one.voxels.stored.url == scan])
    far = np.array(reach(crops.augment, crops.window)) + crops.jitter
    tree = BoxTree.of(2 * valid.corners + window)
    _, smallest = tree.too_near(2 * same + window, 2 * (window + far), 0.0)
    return float(smallest)


def see(corners: np.ndarray, held: np.ndarray, config: Config, window: Numbers) -> np.ndarray:
    """Which windows at `corners` see into one at `held`, jitter and `reach` included; bool."""
    size = np.array(window)
    far = np.array(reach(config.augment, window)) + config.jitter
    # a half voxel less, doubled: what only touches is half a voxel away
    near, _ = BoxTree.of(2 * held + size).too_near(2 * corners + size, 2 * (size + far) - 1, 0.5)
    return near


def hold_back(source: Source, config: Config, window: Numbers, count: int) -> tuple[Source, Source]:
    """Part the windows of a scan into those to learn from and `count` in the middle to score on.

    What is learned from sees none of those, jitter and `reach` included; where nothing would be left, all
    other windows are learned from, and a single window is both.
    """
    corners = source.corners
    begin = (len(corners) - count) // 2
    held = corners[begin : begin + count]
    near = see(corners, held, config, window)
    others = np.delete(corners, np.s_[begin : begin + count], 0)
    learned = corners[~near] if not near.all() else others if len(others) else corners
    return Source(source.voxels, None, learned), Source(source.voxels, None, held)


def identity(source: Source) -> dict[str, Any]:
    """What tells a source from others; JSON."""
    found = {"volume": source.voxels.stored.identity, "windows": zlib.crc32(source.corners.tobytes())}
    if source.labels is not None:
        found |= {"labels": [part.identity for part in (source.labels.ink, source.labels.stored)]}
    return found


def _told(shape: Zyx) -> str:
    return ",".join(map(str, shape))
