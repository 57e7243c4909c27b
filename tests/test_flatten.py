"""Flattening is scipy's, with the pixel size in the file; a lazy volume is computed where the sheet lies."""

import pickle

import dask.array as da
import numpy as np
import pytest
import tifffile
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from inkzarr.core.chunk_cache import ChunkCache
from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.lazy import LazyVolume
from inkzarr.core.store import open_stored
from inkzarr.core.strips import sample_strip, to_bytes
from inkzarr.core.surface import SurfaceTile, flat_surface, open_surface, write_ppm, write_tifxyz
from inkzarr.flatten import FlattenSettings, flatten
from inkzarr.labels import LabelSettings, labels
from inkzarr.testing.synthetic import SyntheticScroll
from tests.surfaces import SHAPE, reference, stored_volume, wavy


@given(st.integers(0, 2**32), st.integers(0, 9), st.sampled_from(["max", "mean", "none"]), st.data())
def test_scipy_agrees(tmp_path_factory, seed, depth, reduce, data):
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("v")
    dtype = data.draw(st.sampled_from(["uint8", "uint16"]))
    chunks = data.draw(st.sampled_from([(16, 20, 24), (40, 52, 60), (7, 52, 5)]))
    voxels = stored_volume(folder, dtype, chunks, seed)
    surface = wavy(33, 71, rng)
    cache = ChunkCache(open_stored(folder / "v.zarr"), data.draw(st.sampled_from([1, 50_000, 10**9])), 2)
    found, outside = sample_strip(SurfaceTile(*surface), depth, reduce, cache, [])
    cache.close()
    expected = reference(voxels, *surface, depth, reduce)
    largest = np.iinfo(dtype).max
    assert np.abs(found - expected).max() <= largest * 1e-5
    grey = to_bytes(found, voxels.dtype, "v")
    assert np.abs(grey - expected * (255 / largest if dtype == "uint8" else 1 / 256)).max() <= 1.0
    t = np.arange(-depth, depth + 1)[:, None, None, None]
    at = np.where(surface[2][..., None], surface[0], 0) + t * surface[1]
    apart = ((at.min(0) > np.array(SHAPE) - 1) | (at.max(0) < 0)).any(-1)
    assert outside == (apart & surface[2]).sum()


@pytest.mark.parametrize("z", [0, 6, 11.5, 12])
def test_borders_are_those_of_scipy(tmp_path, z):
    voxels = np.random.default_rng(1).integers(1, 255, (13, 20, 30), np.uint8)
    zarr.create_array(tmp_path / "v.zarr", data=voxels, chunks=(13, 16, 16))
    flatten(tmp_path / "v.zarr", f"flat:{z}", tmp_path / "layers", FlattenSettings(depth=14, reduce="none"))
    assert len(list((tmp_path / "layers").iterdir())) == 29
    surface = flat_surface((20, 30), z).tile(slice(None), slice(None))
    expected = reference(voxels, *surface, 14, "none")
    for number, plane in enumerate(expected):
        found = tifffile.imread(tmp_path / "layers" / f"{number:02}.tif")
        assert np.abs(found - plane).max() <= 0.5


def test_the_whole_stage_is_scipys_on_a_ppm_and_has_its_pixel_size(tmp_path):
    voxels = stored_volume(tmp_path)
    source = zarr.open_array(tmp_path / "v.zarr")
    source.attrs["inkzarr"] = {"voxel_size_um": 7.91}
    points, normals, valid = wavy(150, 300, np.random.default_rng(3))
    write_ppm(tmp_path / "s.ppm", points, normals, valid=valid)
    expected = reference(voxels, points, normals, valid, 5, "max")[0]
    settings = FlattenSettings(depth=5, alpha=True)
    report = flatten(tmp_path / "v.zarr", tmp_path / "s.ppm", tmp_path / "sheet.png", settings)
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.mode == "LA"
        assert image.info["dpi"] == pytest.approx((25400 / 7.91,) * 2, rel=1e-5)
        grey, alpha = np.moveaxis(np.asarray(image), -1, 0)
    np.testing.assert_array_equal(alpha, 255 * valid)
    assert np.abs(grey - expected).max() <= 0.51
    assert report.valid == valid.sum()
    assert report.fetched == report.needed > 0
    assert "each 1.00 times" in str(report)
    flatten(tmp_path / "v.zarr", tmp_path / "s.ppm", tmp_path / "sheet.tif", settings)
    with tifffile.TiffFile(tmp_path / "sheet.tif") as tif:
        np.testing.assert_array_equal(tif.pages[0].asarray(), np.stack([grey, alpha], -1))
        assert tif.pages[0].get_resolution("micrometer") == pytest.approx((1 / 7.91,) * 2, rel=1e-5)
    flatten(
        tmp_path / "v.zarr", tmp_path / "s.ppm", tmp_path / "a.tif", FlattenSettings(depth=2, reduce="none")
    )
    stack = tifffile.imread(tmp_path / "a.tif")
    assert np.abs(stack - reference(voxels, points, normals, valid, 2, "none")).max() <= 0.51
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.tif",
        "s.ppm",
        "sheet.png",
        "sheet.tif",
        "v.zarr",
    ]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_probabilities(tmp_path, dtype):
    zarr.create_array(tmp_path / "v.zarr", data=np.full((5, 9, 9), 0.5, dtype))
    flatten(tmp_path / "v.zarr", "flat:2", tmp_path / "a.png", FlattenSettings(depth=1))
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[128] * 9] * 9
    zarr.create_array(tmp_path / "w.zarr", data=np.full((5, 9, 9), 300, np.float32))
    with pytest.raises(
        InputError, match=r"w.zarr holds 300: a volume of floats is flattened where it is 0 \.\. 1"
    ):
        flatten(tmp_path / "w.zarr", "flat:2", tmp_path / "b.png")


@pytest.mark.parametrize(("scale", "told"), [((0.25, 0.25), False), ((0.5, 0.125), True)])
def test_a_wrong_scale_is_told(tmp_path, scale, told):
    """As in published surfaces: pixels would not be voxels, and their size in the file not true."""
    stored_volume(tmp_path)
    points = np.stack(np.broadcast_arrays(20.0, *np.mgrid[0:48:4, 0:56:4].astype(float)), -1)
    write_tifxyz(tmp_path / "s.tifxyz", points, scale=scale)
    report = flatten(tmp_path / "v.zarr", tmp_path / "s.tifxyz", tmp_path / "a.png", FlattenSettings(depth=1))
    assert report.spacing == pytest.approx((4 * scale[1], 4 * scale[0]))
    assert ("pixels lie 0.5 x 2 voxels apart, not 1: the surface's scale is off" in str(report)) == told


def test_labels_come_back(tmp_path):
    """Painted, brought into 3D, flattened: the same ink (on each winding, as PPM and as tifxyz)."""
    scroll = SyntheticScroll()
    for kind in ("ppm", "tifxyz"):
        home = tmp_path / kind
        scroll.write_segments(home, kind=kind)
        settings = LabelSettings(shape=Zyx.of(scroll.shape), skip_blank=0)
        labels(home / "paths", home / "inklabels", home / "labels.zarr", settings)
        for segment in scroll.segments()[1:]:
            path = home / "paths" / segment.id / f"{segment.id}.{kind}"
            out = home / f"{segment.id}.png"
            flatten(home / "labels.zarr" / "ink", path, out, FlattenSettings(depth=2, reduce="mean"))
            ink = np.asarray(Image.open(home / "inklabels" / f"{segment.id}_inklabels.png")) > 0
            found = np.asarray(Image.open(out)) >= 128
            surface = open_surface(path)
            rows, cols = min(found.shape[0], ink.shape[0]), min(found.shape[1], ink.shape[1])
            inside = surface.valid[:rows, :cols]
            found, ink = (a[:rows, :cols] & inside for a in (found, ink))
            assert (found & ink).sum() / (found | ink).sum() > 0.95, (kind, segment.id)


@pytest.mark.parametrize("chunks", [(16, 20, 24), (SHAPE.z, SHAPE.y, 7), ((9, 16, 15), (30, 22), (60,))])
def test_a_lazy_volume_is_computed_where_the_sheet_lies(tmp_path, chunks):
    voxels = stored_volume(tmp_path)
    computed = []

    def watched(block, block_info):
        computed.append(tuple(block_info[None]["chunk-location"]))
        return block

    lazy = da.from_array(voxels, chunks=chunks).map_blocks(watched, dtype=voxels.dtype, meta=voxels[:0])
    volume = xr.DataArray(lazy, dims=("z", "y", "x"), attrs={"voxel_size_um": 7.91})
    points, normals, valid = wavy(90, 140, np.random.default_rng(2))
    write_ppm(tmp_path / "s.ppm", points, normals, valid=valid)
    computed.clear()
    report = flatten(volume, tmp_path / "s.ppm", tmp_path / "lazy.png")
    assert report.fetched == report.needed > 0
    regular = isinstance(chunks[0], int)
    if regular:
        assert len(computed) == len(set(computed)) == report.needed
    flatten(tmp_path / "v.zarr", tmp_path / "s.ppm", tmp_path / "stored.png")
    with Image.open(tmp_path / "lazy.png") as image, Image.open(tmp_path / "stored.png") as other:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(other))
        assert image.info["dpi"] == pytest.approx((25400 / 7.91,) * 2, rel=1e-5)
    computed.clear()
    near = xr.DataArray(lazy, dims=("z", "y", "x"))
    assert flatten(near, "flat:1", tmp_path / "near.png", FlattenSettings(depth=1)).valid == 52 * 60
    assert {place[0] for place in computed} == ({0} if regular else {0, 1})


def test_a_lazy_volume_reads_any_box():
    """Across the regions whose tasks are cut out at once, and in another process."""
    voxels = np.random.default_rng(0).integers(0, 255, (40, 7, 36), np.uint8)
    lazy = LazyVolume(xr.DataArray(da.from_array(voxels, chunks=(2, 3, 4)) // 2, dims=("z", "y", "x")))
    assert Grid(lazy.shape, lazy.chunks).counts == (20, 3, 9)
    sent = pickle.loads(pickle.dumps(lazy))
    assert sent == lazy
    assert sent != LazyVolume(lazy.array + 1)
    for volume in (lazy, sent):
        for box in ("0:40,:,:", "15:17,3:6,31:33", "39:40,6:7,35:36", "16:32,0:1,32:36"):
            at = Box.parse(box, lazy.shape)
            np.testing.assert_array_equal(volume.read(at), voxels[at.slices] // 2)
    held = LazyVolume(xr.DataArray(voxels, dims=("z", "y", "x")))
    np.testing.assert_array_equal(held.read(Box.whole(held.shape)), voxels)
    with pytest.raises(InputError, match="the lazy volume has the axes y, x, z: it needs z, y, x"):
        LazyVolume(xr.DataArray(voxels, dims=("y", "x", "z")))


def test_a_lazy_prediction_is_what_a_stored_one_is(tmp_path):
    """Ink along one sheet, without a prediction of the whole scroll."""
    import torch

    from inkzarr.predict import predict

    torch.manual_seed(0)
    voxels = np.random.default_rng(0).integers(1, 255, (16, 70, 70), np.uint8)
    scan = xr.DataArray(da.from_array(voxels, chunks=32), dims=("z", "y", "x"))
    ink = predict(scan, torch.nn.Conv3d(1, 1, 3, padding=1), window=32)
    zarr.save_array(tmp_path / "ink.zarr", ink.to_numpy())
    flatten(ink, "flat:5", tmp_path / "lazy.png", FlattenSettings(depth=2))
    flatten(tmp_path / "ink.zarr", "flat:5", tmp_path / "stored.png", FlattenSettings(depth=2))
    with Image.open(tmp_path / "lazy.png") as image, Image.open(tmp_path / "stored.png") as other:
        assert np.asarray(image).any()
        np.testing.assert_array_equal(np.asarray(image), np.asarray(other))
