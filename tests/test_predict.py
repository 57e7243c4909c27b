"""Predict: exact, lazy, resumable; against a blending written out as plain loops."""

import dataclasses
import itertools
import math
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import inkzarr
from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.job import RunOptions
from inkzarr.core.store import open_volume
from inkzarr.nn.checkpoint import Checkpoint, Normalisation, load_checkpoint, save_checkpoint
from inkzarr.nn.unet import UNet3D
from inkzarr.predict import PredictSettings, plan_predict, predict, predict_volume
from tests.peers import theirs


def brute_force(volume, probability, window, stride, blend, air):
    """Weighted mean over all windows, in float64, one voxel array at a time; the definition."""
    shape = volume.shape
    counts = [
        max(1, math.ceil((n - w) / s) + 1) if n > w else 1
        for n, w, s in zip(shape, window, stride, strict=True)
    ]
    size = [max(n, (c - 1) * s + w) for n, c, s, w in zip(shape, counts, stride, window, strict=True)]
    padded = np.zeros(size, volume.dtype)
    padded[: shape[0], : shape[1], : shape[2]] = volume
    weight = np.ones(window)
    if blend == "gaussian":
        for axis, n in enumerate(window):
            line = np.exp(-(((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) / 2)
            weight = weight * line.reshape([-1 if a == axis else 1 for a in range(3)])
        weight = np.maximum(weight, 1e-3)
    total, weights = np.zeros(size), np.zeros(size)
    for index in itertools.product(*map(range, counts)):
        place = tuple(slice(i * s, i * s + w) for i, s, w in zip(index, stride, window, strict=True))
        if (padded[place] <= air).all():
            continue
        total[place] += weight * probability(padded[place])
        weights[place] += weight
    mean = np.divide(total, weights, out=np.zeros(size), where=weights > 0)
    return mean[: shape[0], : shape[1], : shape[2]]


class Wavy(nn.Module):
    """Logits that depend on the place in the window and on the voxels, so that a wrong place shows."""

    def forward(self, x):
        place = torch.arange(x[0, 0].numel(), dtype=torch.float32).reshape(x.shape[2:])
        return 4 * x - 2 + torch.sin(place / 5)


class Constant(nn.Module):
    def __init__(self, logit):
        super().__init__()
        self.logit = logit

    def forward(self, x):
        return torch.full_like(x, self.logit)


def probability_of(module, volume_dtype=np.uint8):
    def probability(voxels):
        scale = np.iinfo(volume_dtype).max
        inputs = torch.from_numpy(voxels.astype(np.float32) / scale)[None, None]
        with torch.inference_mode():
            return torch.sigmoid(module(inputs).double())[0, 0].numpy()

    return probability


def lazily(array):
    return xr.DataArray(da.from_array(array, chunks=16), dims=("z", "y", "x"))


sizes = st.integers(1, 40)
windows = st.sampled_from([4, 6, 8, 12])


@st.composite
def cases(draw):
    shape = draw(st.tuples(sizes, sizes, sizes))
    window = draw(st.tuples(windows, windows, windows))
    overlap = draw(st.sampled_from([0.0, 0.5, 0.5, 0.25, 0.75]))
    if any(w * (1 - overlap) % 1 for w in window):
        overlap = 0.5
    volume = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, shape, np.uint8)
    z, y, x = (draw(st.integers(0, n)) for n in shape)
    volume[:z, :y, :x] = 0
    air = draw(st.sampled_from([0, 0, 3, -1]))
    return volume, window, overlap, draw(st.sampled_from(["gaussian", "constant"])), air


@given(cases(), st.tuples(sizes, sizes, sizes), st.integers(1, 3))
def test_lazy_equals_brute_force_and_no_block_size_shows(case, block, batch):
    volume, window, overlap, blend, air = case
    stride = [round(w * (1 - overlap)) for w in window]
    settings = {"window": window, "overlap": overlap, "blend": blend, "air": air}
    found = predict(lazily(volume), Wavy(), block=block, batch=batch, **settings).values
    expected = brute_force(volume, probability_of(Wavy()), window, stride, blend, air)
    assert found.dtype == np.uint8
    assert np.abs(found / 255 - expected).max() <= 1 / 255
    other = predict(lazily(volume), Wavy(), block=64, **settings).values
    np.testing.assert_array_equal(found, other)


@given(cases(), st.floats(-3, 3))
def test_a_constant_network_gives_a_constant(case, logit):
    volume, window, overlap, blend, _ = case
    settings = {"window": window, "overlap": overlap, "blend": blend, "air": -1}
    found = predict(lazily(volume), Constant(logit), block=16, **settings).values
    assert np.abs(found - 255 / (1 + np.exp(-logit))).max() <= 0.5 + 0.005


def test_half_is_rounded_up():
    found = predict(lazily(np.ones((9, 40, 30), np.uint8)), Constant(0.0), window=8).values
    assert np.unique(found).tolist() == [128]


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("scan") / "scan.zarr"
    voxels = np.random.default_rng(3).integers(0, 255, (150, 60, 140), np.uint8)
    voxels[:, :, 70:] = 0
    zarr.create_array(path, data=voxels, chunks=(32, 32, 32), zarr_format=2)
    return str(path)


def contents(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()
    }


def test_runner_and_lazy_give_the_same_bytes_whatever_the_blocks_and_workers(scan, checkpoint, tmp_path):
    settings = PredictSettings(window=(16, 32, 16), block=128)
    predict_volume(scan, checkpoint, str(tmp_path / "a"), settings, RunOptions(workers=1))
    larger = dataclasses.replace(settings, block=(256, 128, 256))
    predict_volume(scan, checkpoint, str(tmp_path / "b"), larger, RunOptions(workers=3))
    a, b = open_volume(tmp_path / "a").values, open_volume(tmp_path / "b").values
    np.testing.assert_array_equal(a, b)
    lazy = predict(open_volume(scan), checkpoint, window=(16, 32, 16), block=48)
    np.testing.assert_array_equal(lazy.values, a)
    assert a[:, :, :70].min() > 0
    assert not a[:, :, 96:].any()
    model = load_checkpoint(checkpoint).model
    expected = brute_force(
        open_volume(scan).values, probability_of(model), (16, 32, 16), (8, 16, 8), "gaussian", 0
    )
    assert np.abs(a / 255 - expected).max() <= 1 / 255


def test_a_box_holds_what_the_whole_run_would_give_there(scan, checkpoint, tmp_path):
    whole = predict(open_volume(scan), checkpoint, window=32).values
    settings = PredictSettings(window=32, box="100:140,20:,30:60", block=128)
    predict_volume(scan, checkpoint, str(tmp_path / "p"), settings)
    found = open_volume(tmp_path / "p").values
    box = Box.parse("100:140,20:,30:60", Zyx(*whole.shape)).slices
    np.testing.assert_array_equal(found[box], whole[box])
    found[box] = 0
    assert not found.any()


def test_slicing_the_lazy_result_computes_no_more_than_it_needs():
    read = []

    class Watched:
        shape, dtype, ndim = (1000, 1000, 1000), np.dtype(np.uint8), 3

        def __getitem__(self, key):
            read.append(tuple((s.start, s.stop) for s in key))
            return np.full([s.stop - s.start for s in key], 9, np.uint8)

    lazy = da.from_array(Watched(), chunks=128, name="watched", meta=np.empty((0, 0, 0), np.uint8))
    ink = predict(xr.DataArray(lazy, dims=("z", "y", "x")), Constant(0.0), window=32, block=128)
    assert read == []
    assert (ink[0:4, 0:4, 0:4].values == 128).all()
    assert all(stop <= 256 for box in read for _, stop in box)


def test_axes_turn_the_window_for_the_network(checkpoint):
    loaded = load_checkpoint(checkpoint)
    volume = np.random.default_rng(0).integers(1, 255, (16, 24, 32), np.uint8)
    turned = predict(lazily(volume.transpose(1, 2, 0)), loaded, window=(8, 16, 8)).values
    found = predict(lazily(volume), loaded, window=(8, 8, 16), axes="yxz").values
    np.testing.assert_array_equal(found, turned.transpose(2, 0, 1))


def test_uint16_is_scaled_by_its_full_range():
    volume = np.random.default_rng(0).integers(1, 65535, (12, 12, 12), np.uint16)
    found = predict(lazily(volume), Wavy(), window=8).values
    expected = brute_force(volume, probability_of(Wavy(), np.uint16), (8, 8, 8), (4, 4, 4), "gaussian", 0)
    assert np.abs(found / 255 - expected).max() <= 1 / 255


class Nan(nn.Module):
    def forward(self, x):
        return torch.where(x > 0.9, torch.nan, x)


def test_nan_stops_and_names_the_window():
    volume = np.ones((8, 8, 24), np.uint8)
    volume[4, 4, 20] = 255
    with pytest.raises(InputError, match="nan in window 0:8,0:8,16:24: check"):
        predict(lazily(volume), Nan(), window=8).compute()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"window": 15}, "window 15,15,15 does not fit the network"),
        ({"overlap": 1.0}, "overlap 1.0 is out of range"),
        ({"window": 16, "overlap": 0.3}, "stride must be whole: try overlap 0.3125"),
        ({"blend": "linear"}, "blend 'linear' is unknown: use gaussian or constant"),
        ({"device": "tpu"}, "device 'tpu' is unknown"),
        ({"dtype": "float64"}, "dtype 'float64' is unknown"),
        ({"batch": 0}, "batch 0 cannot be"),
        ({"axes": "zzx"}, "axes"),
        ({"box": "0:1,0:1,0:1"}, "slice the lazy result instead"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_computed(settings, match, checkpoint):
    volume = xr.DataArray(da.ones((16, 16, 16), dtype="uint8"), dims=("z", "y", "x"))
    with pytest.raises(InputError, match=match):
        predict(volume, checkpoint, **settings).compute()


def test_dims_must_be_named():
    with pytest.raises(InputError, match="rename or transpose"):
        predict(xr.DataArray(np.ones((4, 4, 4), np.uint8), dims=("x", "y", "z")), Constant(0.0), window=4)


def test_plan_writes_nothing_and_tells_windows_and_air(scan, checkpoint, tmp_path):
    plan = str(plan_predict(scan, checkpoint, str(tmp_path / "p"), PredictSettings(window=16, block=128)))
    assert not (tmp_path / "p").exists()
    assert "estimated time" in plan
    assert "lie in air" in plan


def test_other_settings_are_refused_and_what_was_there_stays(scan, checkpoint, tmp_path):
    out = tmp_path / "p"
    settings = PredictSettings(window=32, box="0:32,:,:")
    predict_volume(scan, checkpoint, str(out), settings)
    before = contents(out)
    with pytest.raises(InputError, match=r"stride was \[16, 16, 16\], is \[24, 24, 24\]"):
        predict_volume(scan, checkpoint, str(out), dataclasses.replace(settings, overlap=0.25))
    assert contents(out) == before


def test_real_surface_volumes_are_predicted_with_flat_windows(real_data, checkpoint, tmp_path):
    for name, box in (
        ("phi_rev.zarr", "0:9,0:130,0:128"),
        ("scroll1_20231005123335_2-4_left/volume.zarr", "0:13,900:1030,:128"),
    ):
        url = str(real_data / name)
        out = str(tmp_path / name.replace("/", "_"))
        torch.manual_seed(0)
        save_checkpoint(tmp_path / "deep.pt", UNet3D(f_maps=4, levels=5))
        predict_volume(url, str(tmp_path / "deep.pt"), out, PredictSettings(window=(16, 128, 128), box=box))
        scan = open_volume(url)
        assert open_volume(out).shape == scan.shape
        part = open_volume(out)[Box.parse(box, Zyx(*scan.shape)).slices].values
        assert part.std() > 0


@pytest.mark.parametrize(
    ("name", "window", "stride"),
    [
        ("shell_225x128x128.tif", (32, 64, 64), (16, 32, 32)),
        ("bone_128x128x128.tif", (32, 64, 64), (16, 32, 32)),
        ("bone_128x128x128.tif", (1, 96, 96), (1, 48, 48)),
    ],
)
def test_real_3d_volumes_equal_brute_force(name, window, stride, real_data, tmp_path):
    inkzarr.ingest(str(real_data / name), str(tmp_path / "scan.zarr"))
    torch.manual_seed(2)
    network = theirs(f_maps=4, levels=3, flat=window[0] == 1).eval()
    torch.save(network.state_dict(), tmp_path / "bare.pt")
    settings = PredictSettings(window=window, block=128)
    predict_volume(str(tmp_path / "scan.zarr"), str(tmp_path / "bare.pt"), str(tmp_path / "p.zarr"), settings)
    volume = open_volume(tmp_path / "scan.zarr").values
    expected = brute_force(volume, probability_of(network), window, stride, "gaussian", 0)
    assert np.abs(open_volume(tmp_path / "p.zarr").values / 255 - expected).max() <= 1 / 255


def test_checkpoint_normalisation_is_used():
    model = UNet3D(f_maps=4, levels=2)
    plain = Checkpoint(model, Normalisation(), "zyx", {}, "a")
    shifted = Checkpoint(model, Normalisation(low=0.0, high=510.0), "zyx", {}, "b")
    volume = np.full((8, 8, 8), 200, np.uint8)
    half = np.full((8, 8, 8), 100, np.uint8)
    a = predict(lazily(volume), shifted, window=8).values
    b = predict(lazily(half), plain, window=8).values
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("axes", "window", "told"),
    [
        ("zyx", (1, 16, 16), None),
        ("zyx", (4, 16, 16), "1,16,16"),
        ("yxz", (16, 1, 16), None),
        ("yxz", (16, 2, 16), "16,1,16"),
    ],
)
def test_a_flat_network_that_is_given_deep_windows_is_told(axes, window, told, caplog):
    flat = Checkpoint(UNet3D(f_maps=4, levels=2, flat=True), Normalisation(), axes, {}, "flat")
    predict(lazily(np.ones((16, 16, 16), np.uint8)), flat, window=window)
    assert [record.message.rpartition(" ")[2] for record in caplog.records] == ([told] if told else [])
