"""What Jupyter shows of surfaces, patches and checkpoints: few reads, and no markup from outside."""

import base64
import io
import re

import numpy as np
import pytest
import xarray as xr
import zarr
from PIL import Image

from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.job import Job, RunOptions
from inkzarr.core.patches import Patches
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import VolumeSpec
from inkzarr.core.store import open_volume
from inkzarr.core.surface import STRIP_PIXELS, STRIPS, Surface, flat_surface, open_surface
from inkzarr.info import info
from inkzarr.testing import SyntheticScroll

EVIL = "<script>alert('1')</script>"


def picture(shown):
    data = re.search(r"base64,([^\"]+)", shown)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_a_surface_shows_its_size_and_place(tmp_path):
    scroll = SyntheticScroll(shape=(48, 160, 160))
    for kind, name in (("ppm", "{0}.ppm"), ("tifxyz", "{0}.tifxyz")):
        scroll.write_segments(tmp_path / kind, kind=kind)
        segment = scroll.segments()[-1]
        surface = open_surface(tmp_path / kind / "paths" / segment.id / name.format(segment.id))
        shown = surface._repr_html_()
        assert f"{surface.shape[0]} x {surface.shape[1]}" in shown
        assert "z 0..4" in shown
        assert picture(shown).std() > 20
    assert "stored grid" in shown


def test_a_large_surface_is_sampled():
    seen = []

    def read(rows, cols):
        seen.append((rows.stop - rows.start) * (cols.stop - cols.start))
        shape = (rows.stop - rows.start, cols.stop - cols.start)
        points = np.zeros((*shape, 3))
        points[..., 0] = np.arange(rows.start, rows.stop)[:, None]
        return points, points, np.ones(shape, bool)

    surface = Surface((90_000, 100_000), (90_000, 100_000), EVIL, read)
    shown = surface._repr_html_()
    assert sum(seen) <= STRIPS * STRIP_PIXELS
    assert "<script" not in shown
    assert "z 0..89999" in shown
    assert max(picture(shown).shape) <= 256


def test_a_surface_without_a_valid_pixel():
    flat = flat_surface((3, 4), z=1)
    nothing = Surface((3, 4), (3, 4), "none", lambda r, c: (*flat.read(r, c)[:2], np.zeros((1, 4), bool)))
    assert "valid: 0 %" in nothing._repr_html_()
    assert "<img" not in nothing._repr_html_()


def test_patches_show_where_they_lie():
    corners = np.array([(z, y, 128) for z in (0, 128) for y in (0, 128, 512)], np.int64)
    table = Patches(corners, np.full(6, 9), np.full(6, 2), Zyx.of(128), {"source": EVIL})
    shown = table._repr_html_()
    for told in ("6 windows", "window: 128,128,128", "labelled voxels: 54", "of them ink: 12", "0..512"):
        assert told in shown
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    seen = picture(shown)
    assert seen.shape[0] == 5 * seen.shape[1]
    assert (seen[:: len(seen) // 5, 0] > 0).tolist()[:5] == [True, True, False, False, True]


def test_patches_of_any_number():
    assert "0 windows" in Patches(np.zeros((0, 3), np.int64))._repr_html_()
    assert picture(Patches(np.array([[3, 4, 5]]))._repr_html_()).size > 0
    many = Patches(np.random.default_rng(0).integers(0, 10_000, (5000, 3)))
    assert max(picture(many._repr_html_()).shape) <= 256


def test_a_checkpoint_shows_its_network(tmp_path):
    pytest.importorskip("torch")
    from inkzarr.nn.checkpoint import Normalisation, load_checkpoint, save_checkpoint
    from inkzarr.nn.unet import UNet3D

    save_checkpoint(
        tmp_path / "unet.pt",
        UNet3D(f_maps=4, levels=2),
        normalisation=Normalisation(10, 200),
        lineage={"of": EVIL},
    )
    shown = load_checkpoint(tmp_path / "unet.pt")._repr_html_()
    for told in ("UNet3D, ", "maps: 4, 8", "10 to 200", "axes zyx", "&lt;script&gt;"):
        assert told in shown
    assert "<script" not in shown


def test_occupancy_is_that_of_the_ledger_or_of_the_files(tmp_path):
    def corner(box):
        return np.full(box.shape, box.start == (0, 0, 0), np.uint8)

    spec = VolumeSpec(Zyx(256, 256, 128), np.dtype("uint8"))
    write_blocks(Job("test", f"{tmp_path}/a.zarr", spec, Zyx.of(128), {}), corner, RunOptions())
    assert info(tmp_path / "a.zarr").levels[0].occupied == 0.25
    region = Box(Zyx(0, 0, 0), Zyx(128, 256, 128))
    write_blocks(
        Job("test", f"{tmp_path}/b.zarr", spec, Zyx.of(128), {}, region=region), corner, RunOptions()
    )
    assert info(tmp_path / "b.zarr").levels[0].occupied == 0.5
    bare = zarr.create_array(tmp_path / "c.zarr", shape=(8, 8, 8), chunks=(4, 8, 8), dtype="u1")
    bare[:4] = 1
    found = info(tmp_path / "c.zarr")
    assert found.levels[0].occupied == 0.5
    assert "50 %" in found._repr_html_()


def test_a_volume_of_a_terabyte_is_shown_by_xarray_without_a_chunk(tmp_path, monkeypatch):
    zarr.create_array(tmp_path / "scan.zarr", shape=(14376, 7888, 8096), chunks=(128,) * 3, dtype="u1")
    scan = open_volume(tmp_path / "scan.zarr")

    def refuse(*_):
        msg = "a chunk is read"
        raise AssertionError(msg)

    monkeypatch.setattr("inkzarr.core.volume.StoredVolume.__getitem__", refuse)
    with xr.set_options(display_style="html"):
        shown = scan._repr_html_()
    assert "14376" in shown
    assert "voxel_size_um" in shown
