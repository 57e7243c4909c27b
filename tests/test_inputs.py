"""What a run must notice of its inputs: unfinished, replaced, lost, its own target."""

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import zarr

import inkzarr
from inkzarr.components import ComponentSettings, plan_components
from inkzarr.core.errors import InputError, StoreError
from inkzarr.core.geometry import Grid, Zyx
from inkzarr.core.job import RunOptions
from inkzarr.core.store import open_stored, open_volume
from inkzarr.nn.blocks import PredictedBlock
from inkzarr.nn.checkpoint import load_checkpoint, save_checkpoint
from inkzarr.nn.engine import Engine, cached_engine
from inkzarr.nn.unet import UNet3D
from inkzarr.predict import PredictSettings, plan_predict, predict, predict_volume
from inkzarr.writers.planes import PlaneSettings

SMALL = PredictSettings(window=16, block=128)


def network(path, seed, **channels):
    torch.manual_seed(seed)
    save_checkpoint(path, UNet3D(f_maps=4, levels=2, **channels))
    return str(path)


def scan_of(folder, seed):
    """A scan.zarr that inkzarr made of random voxels."""
    folder.mkdir(exist_ok=True)
    voxels = np.random.default_rng(seed).integers(1, 255, (20, 140, 24), np.uint8)
    zarr.create_array(folder / "raw.zarr", data=voxels, chunks=(20, 64, 24), zarr_format=2, overwrite=True)
    inkzarr.ingest(str(folder / "raw.zarr"), str(folder / "scan.zarr"), options=RunOptions(overwrite=True))
    return str(folder / "scan.zarr")


def unfinish(url):
    manifest = Path(url, ".inkzarr", "0", "manifest.json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"state": "running"}))


def test_an_input_is_never_the_target(tmp_path):
    scan, unet = scan_of(tmp_path, 0), network(tmp_path / "unet.pt", 0)
    before = open_volume(scan).values
    for options in (RunOptions(), RunOptions(overwrite=True)):
        for out in (scan, f"{scan}/ink.zarr"):
            with pytest.raises(InputError, match="lie in each other: choose another name"):
                predict_volume(scan, unet, out, SMALL, options)
    np.testing.assert_array_equal(open_volume(scan).values, before)


def test_no_file_is_written_into_an_input(tmp_path):
    scan = scan_of(tmp_path, 0)
    (tmp_path / "link").symlink_to(scan)
    beside = str(tmp_path / "raw.zarr")
    before = sorted(tmp_path.rglob("*"))
    into = f"{scan}/a.parquet"
    for use in (
        lambda: inkzarr.export(scan, f"{scan}/a.nrrd"),
        lambda: inkzarr.export(f"file://{scan}", tmp_path / "link" / "a.tif", overwrite=True),
        lambda: inkzarr.export(scan, f"{scan}/slices/*.png"),
        lambda: inkzarr.export(beside, f"{scan}/a.mp4", planes=PlaneSettings(beside=scan)),
        lambda: inkzarr.components(scan, into),
        lambda: plan_components(scan, into),
        lambda: inkzarr.components(beside, into, ComponentSettings(sheet=tmp_path / "a.html", scan=scan)),
        lambda: inkzarr.components(scan, tmp_path / "a.parquet", ComponentSettings(sheet=f"{scan}/a.html")),
    ):
        with pytest.raises(InputError, match="lie in each other: choose another name"):
            use()
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_not_written_yet_is_not_read_as_air(tmp_path):
    scan, unet = scan_of(tmp_path, 0), network(tmp_path / "unet.pt", 0)
    unfinish(scan)
    for use in (
        lambda: predict_volume(scan, unet, str(tmp_path / "o"), SMALL),
        lambda: inkzarr.ingest(scan, str(tmp_path / "o")),
        lambda: inkzarr.export(scan, tmp_path / "o.nrrd"),
        lambda: inkzarr.export(f"{scan}/0", tmp_path / "o.nrrd"),
        lambda: inkzarr.pyramid(scan),
    ):
        with pytest.raises(InputError, match="unfinished: run the command that makes it again"):
            use()
    assert not list(tmp_path.glob("o*"))


def test_a_chunk_that_is_lost_is_not_air(tmp_path):
    scan = scan_of(tmp_path, 0)
    (tmp_path / "scan.zarr" / "0" / "0" / "1" / "0").unlink()
    with pytest.raises(StoreError, match=r"chunk 0/0/1/0 of .* is lost, its ledger knows of voxels in it"):
        open_volume(scan).load()
    travelled = pickle.loads(pickle.dumps(open_stored(scan)))
    with pytest.raises(StoreError, match="is lost"):
        travelled[0:1, 130:140, 0:1]
    assert open_volume(scan)[:, :100].values.all()


@pytest.mark.parametrize("left", [0, 1])
def test_a_chunk_whose_line_a_ledger_lost_is_not_air(tmp_path, left):
    scan = scan_of(tmp_path, 0)
    whole = open_volume(scan).values
    ledger = Path(scan, ".inkzarr", "0", "blocks.jsonl")
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(lines[:left])) if left else ledger.unlink()
    stored = open_stored(scan)
    for reader in (stored, pickle.loads(pickle.dumps(stored))):
        assert not any(map(reader.known_empty, Grid(stored.shape, stored.chunks).indices()))
    unet = network(tmp_path / "unet.pt", 0)
    np.testing.assert_array_equal(open_volume(scan).values, whole)
    predict_volume(scan, unet, str(tmp_path / "a"), SMALL)
    ledger.write_text("".join(lines))
    predict_volume(scan, unet, str(tmp_path / "b"), SMALL)
    np.testing.assert_array_equal(open_volume(tmp_path / "a").values, open_volume(tmp_path / "b").values)


def test_another_input_of_the_same_name_is_refused(tmp_path):
    unet, out = network(tmp_path / "unet.pt", 0), str(tmp_path / "o.zarr")
    predict_volume(scan_of(tmp_path / "a", 1), unet, out, SMALL)
    with pytest.raises(InputError, match=r"input.voxels was \d+, is \d+"):
        predict_volume(scan_of(tmp_path / "b", 2), unet, out, SMALL)
    bare = str(tmp_path / "bare.zarr")
    predict_volume(str(tmp_path / "a" / "raw.zarr"), unet, bare, SMALL)
    with pytest.raises(InputError, match=r"input.sample was \[.*is \["):
        predict_volume(str(tmp_path / "b" / "raw.zarr"), unet, bare, SMALL)


def test_a_checkpoint_that_was_replaced_is_read_anew(tmp_path):
    scan = scan_of(tmp_path, 0)
    found = []
    for seed in (1, 2):
        unet = network(tmp_path / "unet.pt", seed)
        predict_volume(scan, unet, str(tmp_path / f"o{seed}"), SMALL)
        found.append(open_volume(tmp_path / f"o{seed}").values)
    assert (found[0] != found[1]).any()


@pytest.mark.parametrize("channels", [{"in_channels": 3}, {"out_channels": 2}])
def test_networks_of_several_channels_are_refused(channels, tmp_path):
    unet = network(tmp_path / "unet.pt", 0, **channels)
    with pytest.raises(InputError, match="one of each is needed"):
        predict_volume(scan_of(tmp_path, 0), unet, str(tmp_path / "o"), SMALL)
    assert not (tmp_path / "o").exists()


def test_settings_that_change_no_voxel_may_change(tmp_path):
    scan, unet, out = scan_of(tmp_path, 0), network(tmp_path / "unet.pt", 0), str(tmp_path / "o")
    predict_volume(scan, unet, out, SMALL)
    same = PredictSettings(window=(16, 16, 16), overlap=0.50000001, axes="zyx", block=256, batch=3)
    assert predict_volume(scan, unet, out, same).resumed == 1


def test_a_plan_counts_what_is_left(tmp_path):
    scan, unet, out = scan_of(tmp_path, 0), network(tmp_path / "unet.pt", 0), str(tmp_path / "o")
    fresh = plan_predict(scan, unet, out, SMALL)
    predict_volume(scan, unet, out, SMALL)
    left = plan_predict(scan, unet, out, SMALL)
    assert fresh.extra["windows"] != left.extra["windows"] == "0 to run; 0 of 68 lie in air"


class Tight(torch.nn.Module):
    """Has memory for two windows."""

    def forward(self, windows):
        if len(windows) > 2:
            raise torch.cuda.OutOfMemoryError
        return windows


def test_out_of_memory_halves_the_batch_and_says_so(caplog):
    windows = [torch.full((4, 4, 4), n, dtype=torch.uint8) for n in range(7)]
    engine = Engine(Tight(), batch=8, device="cpu")
    with caplog.at_level(logging.WARNING):
        found = engine.probabilities(windows, np.dtype("uint8"))
    assert engine.batch == 2
    assert caplog.text.count("out of memory: going on with batches of") == 2
    for n, probability in enumerate(found):
        torch.testing.assert_close(probability, torch.sigmoid(torch.full((4, 4, 4), n / 255)))


def test_out_of_memory_in_a_block_loses_no_window():
    volume = xr.DataArray(
        np.random.default_rng(0).integers(1, 255, (32, 32, 32), np.uint8), dims=tuple("zyx")
    )
    found = [predict(volume, Tight(), window=8, block=32, batch=n, device="cpu").values for n in (1, 8)]
    np.testing.assert_array_equal(*found)


class Never(torch.nn.Module):
    def forward(self, _windows):
        raise torch.cuda.OutOfMemoryError


def test_a_window_too_large_for_the_device_is_one_clear_line():
    with pytest.raises(InputError, match=r"one window of \(4, 4, 4\) does not fit the memory of cpu"):
        Engine(Never(), batch=2, device="cpu").probabilities([torch.zeros(4, 4, 4)], np.dtype("uint8"))


def test_a_checkpoint_that_is_replaced_meanwhile_changes_no_voxel(tmp_path, monkeypatch):
    scan, unet, out = scan_of(tmp_path, 0), network(tmp_path / "unet.pt", 0), str(tmp_path / "out")
    predict_volume(scan, unet, str(tmp_path / "alone"), SMALL)
    computed = PredictedBlock.__call__

    def replacing(self, block):
        network(tmp_path / "unet.pt", 1)
        return computed(self, block)

    monkeypatch.setattr(PredictedBlock, "__call__", replacing)
    predict_volume(scan, unet, out, SMALL)
    np.testing.assert_array_equal(open_volume(out).values, open_volume(tmp_path / "alone").values)


def test_a_worker_with_another_checkpoint_says_so(tmp_path):
    unet = network(tmp_path / "unet.pt", 0)
    sha256 = load_checkpoint(unet).sha256
    assert cached_engine(unet, None, None, "cpu", "float32", sha256).token == sha256
    network(tmp_path / "unet.pt", 1)
    assert cached_engine(unet, None, None, "cpu", "float32", sha256).token == sha256
    assert cached_engine(unet, None, None, "cpu", "float32").token != sha256
    with pytest.raises(InputError, match=r"unet.pt' was replaced while a run used it.*--overwrite"):
        cached_engine(unet, None, None, "cpu", "float32", sha256)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_gpu_gives_what_the_cpu_gives(dtype, tmp_path):
    scan, unet = scan_of(tmp_path, 0), network(tmp_path / "unet.pt", 0)
    found = {}
    for device in ("cpu", "cuda"):
        chosen = PredictSettings(
            window=16, block=128, device=device, dtype=dtype if device == "cuda" else "float32"
        )
        predict_volume(scan, unet, str(tmp_path / device), chosen)
        found[device] = open_volume(tmp_path / device).values.astype(int)
    assert np.abs(found["cpu"] - found["cuda"]).max() <= (1 if dtype == "float32" else 8)


def test_a_volume_travels_with_two_bits_a_chunk(tmp_path):
    stored = open_stored(scan_of(tmp_path, 0))
    travelled = pickle.loads(pickle.dumps(stored))
    assert not any(travelled.known_empty(Zyx(0, y, 0)) for y in range(2))
    chunks = np.random.default_rng(0).random((2, 113, 62, 64)) < 0.5
    stored.__dict__["_written"] = chunks
    sent = pickle.dumps(stored)
    assert len(sent) < chunks.size / 8 + 5000
    received = pickle.loads(sent)
    assert all(
        received.known_empty(Zyx(*at)) == chunks[1][at] for at in [(0, 0, 0), (112, 61, 63), (50, 3, 7)]
    )
