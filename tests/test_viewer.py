"""The viewer reads what is on the screen and nothing else, and shows what it read."""

import io
import re
import sys

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from zarr.storage import LocalStore

import inkzarr
from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.job import Job, RunOptions
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import VolumeSpec
from inkzarr.core.store import open_volume
from inkzarr.viewer import SCREEN, Scene, Screen, paint

METADATA = re.compile(r"(^|/)(\.z(array|group|attrs|metadata)|zarr\.json|\.inkzarr/.*)$")
SHAPE = (40, 150, 160)


@pytest.fixture
def chunks(monkeypatch):
    """Chunks that are read."""
    keys = []
    get = LocalStore.get

    async def counted(self, key, *args, **kwargs):
        if not METADATA.search(key):
            keys.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(LocalStore, "get", counted)
    return keys


@pytest.fixture
def voxels():
    return np.random.default_rng(0).integers(1, 255, SHAPE, "uint8")


def write(out, voxels):
    spec = VolumeSpec(Zyx(*voxels.shape), voxels.dtype)
    write_blocks(Job("test", str(out), spec, Zyx.of(128), {}), lambda box: voxels[box.slices], RunOptions())
    return str(out)


def lazy(voxels):
    return xr.DataArray(da.from_array(voxels, chunks=16), dims=("z", "y", "x"))


def controls(shown):
    """The widgets by what is written beside them; picture and text by their kind."""
    flat = [widget for row in shown.children for widget in getattr(row, "children", [row])]
    return {getattr(widget, "description", "") or type(widget).__name__: widget for widget in flat}


def picture(shown):
    return np.asarray(Image.open(io.BytesIO(controls(shown)["Image"].value)))


def test_moving_the_slider_moves_the_picture(tmp_path, voxels):
    url = write(tmp_path / "scan.zarr", voxels)
    shown = inkzarr.viewer.slices(url)
    found = controls(shown)
    assert found["z"].value == SHAPE[0] // 2
    found["contrast"].value = (0, 255)
    for z in (20, 0, 39):
        found["z"].value = z
        seen = picture(shown)[::3, ::3]
        assert (seen == voxels[z][..., None]).all()
    assert found["ink"].disabled
    assert "39:40,0:150,0:160" in found["Label"].value


def test_ink_is_laid_over_as_opaque_as_wanted(voxels):
    ink = np.zeros(SHAPE, "float32")
    ink[:, :50] = 1
    shown = inkzarr.viewer.slices(lazy(voxels), lazy(ink))
    controls(shown)["ink"].value = 1
    seen = picture(shown)
    assert (seen[:150] == (255, 96, 0)).all()
    assert (seen[150:, :, 0] == seen[150:, :, 1]).all()
    controls(shown)["ink"].value = 0
    assert (picture(shown)[..., 0] == picture(shown)[..., 1]).all()


def test_contrast_and_opacity_read_nothing(tmp_path, voxels, chunks):
    url = write(tmp_path / "scan.zarr", voxels)
    shown = controls(inkzarr.viewer.slices(url, url))
    chunks.clear()
    shown["contrast"].value = (10, 20)
    shown["ink"].value = 0.1
    assert not chunks
    shown["z"].value = 1
    assert chunks
    chunks.clear()
    shown["z"].value = 20
    assert not chunks, "where one has been"


def test_a_terabyte_is_looked_at_through_a_few_chunks(tmp_path, chunks):
    zarr.create_array(tmp_path / "scan.zarr", shape=(14376, 7888, 8096), chunks=(128,) * 3, dtype="u1")
    for volume in (str(tmp_path / "scan.zarr"), open_volume(tmp_path / "scan.zarr")):
        chunks.clear()
        shown = controls(inkzarr.viewer.slices(volume))
        assert 16 <= len(set(chunks)) <= 25
        chunks.clear()
        shown["y"].value = 0
        assert 16 <= len(set(chunks)) <= 25


def test_zoomed_out_a_coarser_level_is_read(tmp_path, chunks):
    voxels = np.ones((4, 1100, 900), "uint8")
    url = write(tmp_path / "scan.zarr", voxels)
    inkzarr.pyramid(url, levels=2)
    chunks.clear()
    shown = inkzarr.viewer.slices(url, lazy(voxels))
    found = controls(shown)
    assert [name for name, _ in found["zoom"].options] == ["1:1", "1:2", "1:4"]
    assert found["zoom"].value == 2
    assert all(key.startswith("2/") for key in chunks)
    assert found["Label"].value.endswith("no prediction at this zoom")
    chunks.clear()
    found["zoom"].value = 0
    assert len({key for key in chunks if key.startswith("0/")}) <= 25
    assert picture(shown).shape == (SCREEN, SCREEN, 3)
    assert "at this zoom" not in found["Label"].value


def test_a_lazy_prediction_is_computed_where_it_is_seen(voxels):
    seen = []

    def slow(block, block_info=None):
        seen.append(block_info[0]["chunk-location"])
        return block

    ink = lazy(voxels)
    ink = ink.copy(data=ink.data.map_blocks(slow, dtype="uint8", meta=np.empty((0, 0, 0), "uint8")))
    inkzarr.viewer.slices(lazy(voxels), ink)
    assert {place[0] for place in seen} == {20 // 16}


def test_a_store_that_fails_is_told_and_the_picture_stays(tmp_path, voxels):
    url = write(tmp_path / "scan.zarr", np.concatenate([voxels] * 4))
    shown = inkzarr.viewer.slices(url)
    before = picture(shown)
    (tmp_path / "scan.zarr" / "0" / "1" / "0" / "0").write_bytes(b"broken")
    controls(shown)["z"].value = 159
    assert "0/1/0/0" in controls(shown)["Label"].value
    assert (picture(shown) == before).all()


def test_what_does_not_fit_is_refused(voxels, monkeypatch):
    with pytest.raises(InputError, match=r"prediction \(4, 150, 160\) does not fit volume \(40, 150, 160\)"):
        inkzarr.viewer.slices(lazy(voxels), lazy(voxels[:4]))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(InputError, match=r'needs ipywidgets: pip install "inkzarr\[jupyter\]"'):
        inkzarr.viewer.slices(lazy(voxels))


@given(
    shape=st.tuples(*[st.integers(1, 2000)] * 3),
    part=st.tuples(*[st.floats(0, 1)] * 3),
    factor=st.sampled_from([1, 2, 4]),
)
def test_the_screen_lies_in_the_level(shape, part, factor):
    scan = tuple(lazy_zeros(tuple(-(-n // f) for n in shape)) for f in sorted({1, factor}))
    centre = Zyx(*(min(n - 1, int(p * n)) for n, p in zip(shape, part, strict=True)))
    box = Scene(scan).box(len(scan) - 1, centre)
    assert box.clip(Box.whole(scan[-1].shape)) == box
    assert box.shape.z == 1
    assert max(box.shape) <= SCREEN


def lazy_zeros(shape):
    return xr.DataArray(np.broadcast_to(np.uint8(0), shape), dims=("z", "y", "x"))


def test_paint_takes_floats_that_are_none():
    screen = Screen(Box.whole((1, 1, 2)), np.array([[np.nan, np.inf]]), None)
    assert paint(screen, (0, 1), 0.5).tolist() == [[[0, 0, 0], [255, 255, 255]]]
