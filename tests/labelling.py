"""Small segments for the tests of labels, and the double loop that says what they must become."""

import itertools
from pathlib import Path

import numpy as np
import zarr
from PIL import Image

from inkzarr.core.geometry import Zyx
from inkzarr.core.job import RunOptions
from inkzarr.core.surface import open_surface, write_ppm
from inkzarr.labels import LabelSettings, labels

SHAPE = Zyx(140, 150, 136)
RULES = {"skip_blank": 0}


def brute(parts, shape, *, depth=4.0, footprint="ray"):
    """Sums and votes by a double loop over pixels and voxels; dropped voxels."""
    total, votes, dropped = np.zeros(shape, np.int64), np.zeros(shape, np.int64), 0
    for points, normals, values, used in parts:
        for row, col in np.argwhere(used):
            p, n = points[row, col], normals[row, col]
            if footprint == "ray":
                steps = np.arange(-depth, depth + 0.25, 0.5)
                found = {tuple(np.floor(p + t * n + 0.5)) for t in steps}
            else:
                ends = np.stack([p - depth * n, p + depth * n])
                low, high = np.floor(ends.min(0)), np.ceil(ends.max(0))
                axes = (np.arange(a, max(b, a + 1)) for a, b in zip(low, high, strict=True))
                found = set(itertools.product(*axes))
            for voxel in found:
                if all(0 <= v < s for v, s in zip(voxel, shape, strict=True)):
                    at = tuple(int(v) for v in voxel)
                    total[at] += values[row, col]
                    votes[at] += 1
                else:
                    dropped += 1
    mean = np.where(votes > 0, (2 * total + votes) // np.maximum(2 * votes, 1), 0)
    return mean.astype(np.uint8), np.minimum(votes, 65535).astype(np.uint16), dropped


def disagreeing(parts, shape, **rule):
    """Voxels that one segment calls ink, and another one none."""
    each = [brute([part], shape, **rule) for part in parts]
    inked = np.any([ink >= 128 for ink, _, _ in each], axis=0)
    blank = np.any([(ink < 128) & (count > 0) for ink, count, _ in each], axis=0)
    return np.count_nonzero(inked & blank)


def curved(rng, rows, cols, shape=SHAPE, *, middle=None):
    """A bent sheet somewhere in a volume, with a hole and values that are no numbers."""
    row, col = np.mgrid[:rows, :cols].astype(float)
    centre = np.array(shape) / 2 if middle is None else np.asarray(middle, float)
    u, v = np.linalg.qr(rng.normal(size=(3, 3)))[0][:, :2].T
    w = np.cross(u, v)
    bend = rng.uniform(2, 12) * np.sin(row / rng.uniform(3, 9)) + rng.uniform(0, 9) * np.cos(col / 7)
    points = centre + (row - rows / 2)[..., None] * u + (col - cols / 2)[..., None] * v + bend[..., None] * w
    normals = rng.normal(size=points.shape) * 0.2 + w
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    valid = np.ones((rows, cols), bool)
    valid[rows // 3 : rows // 2, cols // 4 : cols // 2] = False
    points[0, 0], points[-1, -1, 1], normals[0, -1, 2] = np.nan, np.inf, np.nan
    return points, normals, valid


def along(points, axis=0):
    normals = np.zeros_like(points)
    normals[..., axis] = 1
    return normals


def segment(folder, name, points, normals, valid, values):
    home = folder / "paths" / name
    home.mkdir(parents=True)
    write_ppm(home / f"{name}.ppm", points, normals, valid=valid)
    png(folder / "ink" / f"{name}_inklabels.png", values)
    tile = open_surface(home / f"{name}.ppm")
    return tile.points, tile.normals, values, tile.valid


def small(folder, name="10", rows=6, cols=9):
    points = np.stack(np.broadcast_arrays(5.0, *np.mgrid[:rows, :cols]), -1).astype(float)
    normals = along(points)
    return segment(folder, name, points, normals, None, np.full((rows, cols), 255, np.uint8))


def png(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(values) if mode is None else Image.fromarray(values, mode)).save(path)
    return path


def arrays(out):
    group = zarr.open_group(str(out), mode="r")
    return group["ink"][:], group["count"][:]


def run(folder, out="out.zarr", options=None, **settings):
    chosen = LabelSettings(**{"shape": SHAPE, **RULES, **settings})
    return labels(
        folder / "paths", folder / "ink", folder / out, chosen, options or RunOptions(overwrite=True)
    )


def contents(folder):
    """Every file of a volume but the ledger, whose lines follow the blocks."""
    files = (p for p in Path(folder).rglob("*") if p.is_file() and ".inkzarr" not in p.parts)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}
