"""Quick pictures: the right voxels at the right place, and no chunk read that is not shown."""

import itertools
import subprocess
import sys
from dataclasses import replace

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import inkzarr
from inkzarr import plot
from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Grid, Zyx
from inkzarr.core.job import Computed, Job, RunOptions
from inkzarr.core.picture import stretch
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import VolumeSpec
from inkzarr.core.volume import StoredVolume


@pytest.fixture
def voxels():
    return np.random.default_rng(0).integers(0, 255, (150, 140, 300), "uint8")


@pytest.fixture
def scan(tmp_path, voxels):
    spec = VolumeSpec(Zyx(*voxels.shape), voxels.dtype, voxel_size_um=8.0)
    job = Job("test", str(tmp_path / "scan.zarr"), spec, Zyx.of(128), {})
    write_blocks(job, lambda box: voxels[box.slices], RunOptions())
    inkzarr.pyramid(job.out, levels=2)
    return job.out


@pytest.fixture
def reads(monkeypatch):
    """Chunks that were read: level and index."""
    get, seen = StoredVolume.__getitem__, []

    def counting(self, key):
        region = self._region(key)
        seen.extend((self.level.path, index) for index in Grid(self.shape, self.chunks).indices(region))
        return get(self, key)

    monkeypatch.setattr(StoredVolume, "__getitem__", counting)
    return seen


@pytest.mark.parametrize(("axis", "at", "chunks"), [("z", 100, 6), ("y", 130, 6), ("x", 7, 4)])
def test_a_slice_reads_its_own_chunks_once(scan, voxels, reads, axis, at, chunks):
    figure = plot.slice(inkzarr.open_volume(scan), axis=axis, at=at)
    (axes,) = figure.axes
    image = axes.images[0]
    expected = np.take(voxels, at, "zyx".index(axis))
    np.testing.assert_array_equal(image.get_array(), stretch(expected))
    assert len(reads) == len(set(reads)) == chunks
    rows, columns = (dim for dim in "zyx" if dim != axis)
    assert (axes.get_xlabel(), axes.get_ylabel()) == (f"{columns} (µm)", f"{rows} (µm)")
    assert axes.get_title() == f"{axis} = {8 * at} µm"
    height, width = expected.shape
    assert image.get_extent() == [-4, 8 * width - 4, 8 * height - 4, -4]


def test_a_url_is_drawn_from_the_level_that_fits(scan, voxels, reads, monkeypatch):
    monkeypatch.setattr(plot, "PIXELS", 150)
    figure = plot.slice(scan, at=101)
    level = inkzarr.open_volume(scan, level=1)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), stretch(level[50].values))
    assert {path for path, _ in reads} == {"1"}
    assert figure.axes[0].images[0].get_extent() == [-4, 8 * 300 - 4, 8 * 140 - 4, -4]
    monkeypatch.setattr(plot, "PIXELS", 40)
    assert plot.slice(scan, at=101).axes[0].images[0].get_array().shape == (18, 38)


def test_three_planes_meet_where_they_say(scan, voxels):
    figure = plot.three_planes(scan, at=(20, 30, 40))
    assert [axes.get_title() for axes in figure.axes] == ["z = 160 µm", "y = 240 µm", "x = 320 µm"]
    for axes, expected in zip(figure.axes, (voxels[20], voxels[:, 30], voxels[:, :, 40]), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), stretch(expected))
    lines = [
        [line.get_ydata()[0] for line in axes.lines[:1]] + [axes.lines[1].get_xdata()[0]]
        for axes in figure.axes
    ]
    assert lines == [[240, 320], [160, 320], [160, 240]]


@pytest.mark.parametrize(("dtype", "most"), [("uint8", 255), ("float32", 1)])
def test_an_overlay_is_as_opaque_as_ink_is_likely(dtype, most):
    scan = xr.DataArray(da.ones((4, 8, 9), "uint8"), dims=("z", "y", "x"))
    ink = scan.astype(dtype) * 0
    ink[2, 3, 4] = most
    if dtype == "float32":
        ink[2, 5, 5] = -1
    (axes,) = plot.overlay(scan, ink).axes
    opacity = axes.images[1].get_array()[..., 3]
    assert opacity[3, 4] == 1
    assert opacity.sum() == 1
    assert axes.get_xlabel() == "x (voxels)"


def test_a_lazy_volume_of_a_whole_scroll_is_drawn_from_its_plane_alone():
    computed = itertools.count()

    def block(shape):
        next(computed)
        return np.ones(shape, "uint8")

    lazy = da.map_blocks(
        lambda block_info=None: block(block_info[None]["chunk-shape"]),
        chunks=((128,) * 100, (1024,) * 2, (1024,) * 2), dtype="uint8", meta=np.empty((0, 0, 0), "uint8"),
    )  # fmt: skip
    plot.slice(xr.DataArray(lazy, dims=("z", "y", "x")))
    assert next(computed) == 4


def test_figures_are_saved_without_a_display(tmp_path, scan):
    for figure in (plot.slice(scan), plot.three_planes(scan), plot.overlay(scan, scan, axis="x")):
        figure.savefig(tmp_path / "figure.png", dpi=50)
        assert (tmp_path / "figure.png").stat().st_size > 1000


def test_refusals(scan, monkeypatch):
    with pytest.raises(InputError, match="axis 'w' is unknown: a plane lies across z, y or x"):
        plot.slice(scan, axis="w")
    with pytest.raises(InputError, match="place 150 along z is outside the volume: 0 to 149 are inside"):
        plot.slice(scan, at=150)
    plot._shown_figure.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r'pip install "inkzarr\[plot\]"'):
        plot.slice(scan)


def test_an_overlay_of_another_shape_is_refused(scan):
    """Also where the planes would fit each other."""
    ink = xr.DataArray(da.ones((151, 140, 300), "uint8"), dims=("z", "y", "x"))
    with pytest.raises(
        InputError, match=r"prediction has \(151, 140, 300\) voxels, the scan \(150, 140, 300\)"
    ):
        plot.overlay(scan, ink)
    plot.overlay(scan, ink[:150].transpose("x", "y", "z"))


@pytest.mark.parametrize("pixels", [1024, 150])
def test_labels_are_shown_as_their_ink(scan, tmp_path, monkeypatch, pixels):
    """Where there is a vote; at the level that fits."""
    monkeypatch.setattr(plot, "PIXELS", pixels)
    ink, count = np.zeros((2, 150, 140, 300), "uint8")
    ink[70:80, 50:60, 20:30] = ink[70:80, 50:60, 100:110] = 255
    count[70:80, 50:60, 20:40] = 1
    spec = VolumeSpec(Zyx(*ink.shape), ink.dtype, path="ink")
    votes = replace(spec, path="count", dtype=np.dtype("uint16"))
    job = Job("labels", str(tmp_path / "labels.zarr"), spec, Zyx.of(128), {}, more=(votes,))
    both = ink, count.astype("uint16")
    write_blocks(job, lambda box: Computed(tuple(one[box.slices] for one in both)), RunOptions())
    inkzarr.pyramid(job.out, levels=1)
    (axes,) = plot.overlay(scan, job.out, at=75).axes
    opacity = axes.images[1].get_array()[..., 3]
    expected = (ink[75] * count[75] / 255)[:: 2 if pixels == 150 else 1, :: 2 if pixels == 150 else 1]
    np.testing.assert_array_equal(opacity, expected)


def test_plot_and_viewer_are_there_without_an_import_of_their_own():
    code = "import inkzarr; inkzarr.plot.overlay; inkzarr.viewer; from inkzarr import *; plot.slice"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_jupyter_shows_a_figure_without_pyplot(voxels):
    """As IPython asks for it."""
    import io

    from IPython.core.formatters import DisplayFormatter
    from PIL import Image

    figure = plot.slice(xr.DataArray(voxels, dims=("z", "y", "x")))
    shown, _ = DisplayFormatter().format(figure)
    with Image.open(io.BytesIO(shown["image/png"])) as image:
        assert np.asarray(image.convert("L")).std() > 20


def test_options_reach_the_store(tmp_path, voxels):
    """Such as those without which a bucket is not read; here, where chunks are kept."""
    import zarr

    zarr.create_array("memory://plotted.zarr", data=voxels, chunks=(150, 140, 300))
    for number, draw in enumerate(
        (plot.slice, plot.three_planes, lambda url, **how: plot.overlay(url, url, **how))
    ):
        kept = tmp_path / str(number)
        shown = draw("memory://plotted.zarr", storage_options={"cache": str(kept)}).axes[0].images[0]
        np.testing.assert_array_equal(shown.get_array(), stretch(voxels[75]))
        assert sum(path.is_file() for path in kept.rglob("*")) == 1
