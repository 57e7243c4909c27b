"""The labels stage on real input, each part in a process of its own; it needs the folder of real data.

    python -m benchmarks.real_labels            # minutes, 2 GB of disk
    python -m benchmarks.real_labels --quick    # seconds, on cuttings, as the tests run it

png      the ink label 20230904135535 on a PPM of its size, wound through 3000^3 voxels, all of its 32 million
         pixels voting: time, and memory beyond that of the imports
tifxyz   tifxyz_20241113070770, a real surface of Scroll 1, at its full resolution into 14376 x 7888 x 8096
         voxels: the chunks that exist afterwards are those that its pixels touch, counted by NumPy
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.report import REAL_DATA, SCROLL_1
from inkzarr.core.geometry import Zyx
from inkzarr.core.ppm import write_ppm_bands
from inkzarr.core.surface import open_surface
from inkzarr.labels import LabelSettings, labels

NAME, SURFACE = "20230904135535", "20241113070770"
SHAPE = Zyx(3000, 3000, 3000)
PIXELS = (7101, 4538)
BAND, SHARE, CHUNK = 64, 0.01, 128


def wound(shape, rows):
    """Rows of a sheet wound about the middle: columns follow a spiral, rows run along z."""
    turns = np.linspace(0, 40, 400_001)
    radius = 150 + 40 * turns / (2 * np.pi)
    length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(radius), radius[:-1] * np.diff(turns)))])
    angle = np.interp(np.arange(shape[1]), length, turns)
    far = 150 + 40 * angle / (2 * np.pi)
    normal = np.stack([np.zeros_like(angle), np.cos(angle), np.sin(angle)], -1)
    points = np.empty((rows.stop - rows.start, shape[1], 3))
    points[..., 0] = 1 + np.arange(rows.start, rows.stop)[:, None] * 0.42
    points[..., 1:] = 1500 + far[:, None] * normal[:, 1:]
    return points, np.broadcast_to(normal, points.shape), np.ones(points.shape[:2], bool)


def held(name):
    return 1024 * int(re.search(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())[1])


def run(paths, ink, out, settings):
    before, began = held("VmRSS"), time.perf_counter()
    report = labels(paths, ink, out, settings)
    took, peak = time.perf_counter() - began, held("VmHWM") - before
    print(str(report).replace(f"{Path(out).parent}/", ""))
    print(
        f"{took:.1f} s, {report.pixels['used'] / took:,.0f} pixels/s, {peak / 1e9:.2f} GB beyond the imports"
    )
    return report


def label_on_a_ppm(home: Path, *, quick: bool) -> None:
    shape = (900, 600) if quick else PIXELS
    (home / NAME).mkdir()
    bands = (slice(at, min(at + BAND, shape[0])) for at in range(0, shape[0], BAND))
    write_ppm_bands(home / NAME / f"{NAME}.ppm", shape, (wound(shape, rows) for rows in bands))
    label = REAL_DATA / f"{NAME}_inklabels.png"
    if quick:
        with Image.open(label) as image:
            label = home / f"{NAME}_inklabels.png"
            image.crop((2000, 2000, 2000 + shape[1], 2000 + shape[0])).save(label)
    settings = LabelSettings(shape=SHAPE, skip_blank=0)
    subprocess_run("png", home, label, settings)


def subprocess_run(part: str, home: Path, label: Path, settings: LabelSettings) -> None:
    """A process that has done nothing else, so that its peak is the stage's own."""
    code = (
        "from benchmarks.real_labels import run; from inkzarr.labels import LabelSettings, Zyx\n"
        f"run({str(home / NAME / (NAME + '.ppm'))!r}, {str(label)!r}, {str(home / 'labels.zarr')!r},\n"
        f"    LabelSettings(shape=Zyx{tuple(settings.shape)}, skip_blank={settings.skip_blank}))"
    )
    print(f"\n{part}")
    root = Path(__file__).resolve().parents[1]
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}
    )


def surface_of_scroll_1(home: Path, *, quick: bool) -> None:
    print("\ntifxyz")
    folder = home / SURFACE / f"{SURFACE}.tifxyz"
    folder.parent.mkdir()
    folder.symlink_to(REAL_DATA / f"tifxyz_{SURFACE}")
    surface = open_surface(folder)
    edge, rng = 64 if quick else CHUNK, np.random.default_rng(0)
    blocks = [-(-n // edge) for n in surface.shape]
    painted = rng.random(blocks) < (SHARE / 100 if quick else SHARE)
    values = np.kron(painted.astype(np.uint8), np.full((edge, edge), 255, np.uint8))
    rows, cols = surface.shape
    Image.fromarray(values[:rows, :cols]).save(home / f"{SURFACE}_inklabels.png")
    settings = LabelSettings(shape=Zyx(*SCROLL_1), skip_blank=edge)
    report = run(folder, home / f"{SURFACE}_inklabels.png", home / "scroll1.zarr", settings)
    touched = set()
    for row, col in np.argwhere(painted) * edge:
        tile = surface.tile(slice(row, row + edge), slice(col, col + edge))
        points, normals = tile.points[tile.valid], tile.normals[tile.valid]
        for t in np.arange(-4, 4.25, 0.5):
            voxels = np.floor(points + t * normals + 0.5)
            inside = ((voxels >= 0) & (voxels < SCROLL_1)).all(-1)
            cells = np.unique((voxels[inside] // CHUNK).astype(int), axis=0)
            touched |= set(map(tuple, cells.tolist()))
    files = (home / "scroll1.zarr" / "count").rglob("*/*/*")
    stored = {tuple(map(int, path.parts[-3:])) for path in files if path.is_file()}
    whole = np.prod([-(-n // CHUNK) for n in SCROLL_1])
    print(
        f"{surface.shape} pixels, {len(stored)} of {whole} chunks exist, the {len(touched)} that are touched"
    )
    assert stored == touched
    assert report.pixels["used"] > 0


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("png", "tifxyz"))
    chosen = parser.parse_args(arguments)
    parts = {"png": label_on_a_ppm, "tifxyz": surface_of_scroll_1}
    for name, part in parts.items():
        if chosen.only in (None, name):
            with tempfile.TemporaryDirectory() as home:
                part(Path(home), quick=chosen.quick)


if __name__ == "__main__":
    main()
