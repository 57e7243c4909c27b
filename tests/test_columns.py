"""Blocks of a column: no window is run twice, no voxel read twice, and the bytes are the same."""

import contextlib
import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

import inkzarr.nn.sums
from inkzarr.core.blending import window_weights
from inkzarr.core.geometry import Box, Windows, Zyx
from inkzarr.core.job import Job, RunOptions
from inkzarr.core.pool import Threads
from inkzarr.core.runner import _Task
from inkzarr.core.schema import VolumeSpec
from inkzarr.core.store import open_volume
from inkzarr.core.volume import StoredVolume
from inkzarr.nn import blocks, columns
from inkzarr.nn.aside import IDLE_COLUMNS, Aside, Column, Shelf
from inkzarr.nn.engine import Engine
from inkzarr.nn.sums import Sums
from inkzarr.predict import PredictSettings, plan_predict, predict, predict_volume
from tests.test_full_disk import files_up_to

SCROLL_1 = (14376, 7888, 8096)
SHAPE = (300, 150, 270)


@pytest.fixture(scope="module", params=[(32, 32, 32), (48, 150, 160)])
def scan(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "scan.zarr"
    voxels = np.random.default_rng(3).integers(0, 255, SHAPE, np.uint8)
    voxels[100:200] = voxels[:, 100:] = 0
    voxels[50:260, 60:, 120:160] = 9
    zarr.create_array(path, data=voxels, chunks=request.param, zarr_format=2)
    return str(path)


@pytest.fixture
def counted(monkeypatch):
    """Windows that a quick network runs, and how often each voxel is read."""
    told = {"windows": 0, "read": np.zeros(SHAPE, np.uint8)}
    read = StoredVolume.read

    def running(self, windows, dtype):
        told["windows"] += len(windows)
        return [(window.float() / 255).square() for window in windows]

    def reading(self, box):
        told["read"][box.slices] += 1
        return read(self, box)

    monkeypatch.setattr(Engine, "probabilities", running)
    monkeypatch.setattr(StoredVolume, "read", reading)
    monkeypatch.setattr(StoredVolume, "identity", {"name": "scan"})  # which reads samples
    return told


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Nothing(Aside):
    """Where every block is computed by another worker."""

    @contextlib.contextmanager
    def column(self, run, start, *, in_file, last):
        yield Column(in_file=in_file)


@pytest.mark.parametrize(
    ("window", "overlap", "box"),
    [
        (32, 0.5, None),
        ((64, 48, 80), 0.75, None),
        ((160, 64, 64), 0.5, None),
        (48, 0.0, None),
        (32, 0.5, "70:290,3:,:250"),
    ],
)
@pytest.mark.parametrize("width", [1024, 128])
def test_in_a_column_no_window_is_run_and_no_voxel_read_twice(
    scan, checkpoint, tmp_path, counted, monkeypatch, window, overlap, box, width
):
    monkeypatch.setattr(columns, "WIDTH", width)
    settings = PredictSettings(window=window, overlap=overlap, block=128, air=0, box=box)
    predict_volume(scan, checkpoint, str(tmp_path / "column"), settings)
    together, read = counted["windows"], counted["read"].max()
    assert read == 1 if width == 1024 else 1 < read <= 6  # by 2 x 3 columns
    counted.update(windows=0)
    whole = Box.whole(SHAPE) if box is None else Box.parse(box, Zyx(*SHAPE))
    lazy = predict(open_volume(scan), checkpoint, window=window, overlap=overlap, block=300)[whole.slices]
    np.testing.assert_array_equal(zarr.open(tmp_path / "column" / "0")[whole.slices], lazy.values)
    if box is None and width == 1024:
        assert together == counted["windows"]
    counted.update(windows=0)
    monkeypatch.setattr(blocks, "aside", Nothing())
    predict_volume(scan, checkpoint, str(tmp_path / "apart"), settings)
    assert counted["windows"] >= together
    assert files(tmp_path / "apart") == files(tmp_path / "column")


@pytest.mark.parametrize("shelf", [True, False])
def test_a_block_that_fails_and_is_tried_again_changes_no_voxel(
    scan, checkpoint, tmp_path, counted, monkeypatch, shelf
):
    settings = PredictSettings(window=32, block=128)
    predict_volume(scan, checkpoint, str(tmp_path / "smooth"), settings)
    smooth, compute, failed = counted["windows"], blocks.PredictedBlock.__call__, set()
    column = Aside.column
    monkeypatch.setattr(Aside, "column", lambda *given, last, **_: column(*given, in_file=shelf, last=last))

    def failing(self, box):
        found = compute(self, box)
        if box.start not in failed and sum(box.start) // 128 % 2:
            failed.add(box.start)
            raise OSError(box)
        return found

    monkeypatch.setattr(blocks.PredictedBlock, "__call__", failing)
    monkeypatch.setattr("inkzarr.core.runner.FIRST_WAIT_S", 0)
    predict_volume(scan, checkpoint, str(tmp_path / "rough"), settings)
    assert failed
    assert counted["windows"] - smooth > smooth
    assert files(tmp_path / "rough") == files(tmp_path / "smooth")


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_plan_foresees_what_a_run_does_that_is_taken_up(
    scan, checkpoint, tmp_path, counted, monkeypatch, after
):
    given, written, write = (scan, checkpoint, str(tmp_path / "ink")), [], _Task._write
    settings = PredictSettings(window=32, block=128, air=-1)

    def stopping(self, box, *arrays):
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(box)
        return write(self, box, *arrays)

    with monkeypatch.context() as patch:
        patch.setattr(_Task, "_write", stopping)
        with pytest.raises(KeyboardInterrupt):
            predict_volume(*given, settings)
        for thread in [one for one in threading.enumerate() if one.name.startswith("block")]:
            thread.join(60)  # the next block may have been begun
    foreseen = int(plan_predict(*given, settings).extra["windows"].split()[0])
    counted.update(windows=0)
    predict_volume(*given, settings)
    assert foreseen <= counted["windows"] <= (1.15 if after else 1) * foreseen


def test_two_lanes_of_one_column_change_no_voxel(scan, checkpoint, tmp_path, counted, monkeypatch):
    settings = PredictSettings(window=32, block=128)
    predict_volume(scan, checkpoint, str(tmp_path / "one"), settings)
    one = counted["windows"]
    monkeypatch.setattr(Threads, "columns", 3)
    predict_volume(scan, checkpoint, str(tmp_path / "several"), settings, RunOptions(workers=3))
    assert one <= counted["windows"] - one < 1.5 * one
    assert files(tmp_path / "several") == files(tmp_path / "one")


def test_what_blocks_leave_is_bounded_and_forgotten(scan, checkpoint, tmp_path, counted, monkeypatch):
    aside = Aside()

    def kept(run, number):
        with aside.column(run, Zyx(0, 0, number), in_file=False, last=False) as column:
            return column

    first = kept("run", 0)
    assert kept("run", 0) is first
    for number in range(2 * IDLE_COLUMNS):
        kept("run", number)
    assert len(aside) == IDLE_COLUMNS + 1
    assert kept("run", 0) is not first
    kept("other", 0)
    assert len(aside) == 1
    with aside.column("other", Zyx(0, 0, 0), in_file=False, last=True):
        pass
    assert len(aside) == 0
    monkeypatch.setattr(blocks, "aside", aside)
    predict_volume(scan, checkpoint, str(tmp_path / "ink"), PredictSettings(window=32, block=128))
    assert counted["windows"]
    assert len(aside) == 0


def test_workers_of_a_cluster_forget_a_run_that_is_over(scan, checkpoint, tmp_path):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        options = RunOptions(scheduler=cluster.scheduler_address)
        box = "0:128,:,:"  # a layer whose lanes end before the column does
        predict_volume(scan, checkpoint, str(tmp_path / "ink"), PredictSettings(window=32, box=box), options)
        left = client.run(lambda: len(__import__("inkzarr.nn.aside").nn.aside.aside))
    assert list(left.values()) == [0]


def test_a_full_temporary_folder_costs_time_and_no_voxel(
    scan, checkpoint, tmp_path, counted, monkeypatch, caplog
):
    settings = PredictSettings(window=32, block=128)
    predict_volume(scan, checkpoint, str(tmp_path / "room"), settings)
    room = counted["windows"]
    write = Shelf.put

    def put(self, array):
        with files_up_to(10**5):
            return write(self, array)

    monkeypatch.setattr(Shelf, "put", put)
    predict_volume(scan, checkpoint, str(tmp_path / "full"), settings)
    assert 1.2 * room < counted["windows"] - room
    assert files(tmp_path / "full") == files(tmp_path / "room")
    (told,) = (record.message for record in caplog.records)
    assert "too large), windows are run twice: make room there, or set TMPDIR" in told


@pytest.mark.parametrize("offset", [-(2**40), 2**40], ids=["refused", "cut short"])
def test_what_cannot_be_read_back_costs_time_and_no_voxel(
    scan, checkpoint, tmp_path, counted, monkeypatch, caplog, offset
):
    settings = PredictSettings(window=32, block=128)
    predict_volume(scan, checkpoint, str(tmp_path / "read"), settings)
    once = counted["windows"]
    planes, asked = Shelf.planes, itertools.count()

    def failing(self, place, start, stop):
        return planes(self, place if next(asked) % 3 != 2 else place._replace(offset=offset), start, stop)

    monkeypatch.setattr(Shelf, "planes", failing)
    predict_volume(scan, checkpoint, str(tmp_path / "failed"), settings)
    assert counted["windows"] - once > once
    assert files(tmp_path / "failed") == files(tmp_path / "read")
    (told,) = (record.message for record in caplog.records)
    assert "cannot be read back (" in told


@given(
    st.tuples(*[st.integers(1, 20)] * 3),
    st.sampled_from([(4, 2), (4, 3), (6, 2), (8, 2)]),
    st.sampled_from(["gaussian", "constant"]),
    st.randoms(),
)
def test_sums_are_the_same_in_any_order_and_from_parts(shape, size, blend, random):
    box, cpu = Box.whole(shape), torch.device("cpu")
    windows = Windows(box.shape, *map(Zyx.of, size))
    rng = np.random.default_rng(0)
    found = {index: rng.random(windows.window, np.float32) for index in windows.touching(box).indices()}
    whole, left, right = (Sums(box, windows, blend, cpu) for _ in range(3))
    for index, probability in found.items():
        whole.add([index], [torch.from_numpy(probability)])
    for index in random.sample(sorted(found), len(found)):
        random.choice([left, right]).add([index], [torch.from_numpy(found[index])])
    left.part(box).add_(right.part(box))
    left.ran |= right.ran
    one = whole.finish(box)
    np.testing.assert_array_equal(left.finish(box), one)
    assert not left.part(box).any()
    total, weights = np.zeros((2, *(n + size[0] for n in shape)))
    weight = window_weights(windows.window, blend).astype(np.float64)
    for index, probability in found.items():
        total[windows.box(index).slices] += probability * weight
        weights[windows.box(index).slices] += weight
    exact = 255 * (total / np.where(weights, weights, 1))[box.slices]
    assert np.abs(one.numpy() - exact).max() <= 0.5 + 0.005


@given(st.lists(st.tuples(*[st.integers(0, 6)] * 3), min_size=1, max_size=5, unique=True), st.integers(1, 5))
def test_threads_that_add_windows_share_no_plane(indices, threads):
    windows = Windows(Zyx(20, 20, 20), Zyx(8, 8, 8), Zyx(2, 2, 2))
    sums = Sums(Box.whole(windows.shape), windows, "constant", torch.device("cpu"))
    planes, run = [], inkzarr.nn.sums.on_threads

    def one_by_one(name, kernel, jobs):
        for n in range(threads):
            before = sums.part(sums.box).clone()
            for job in jobs:
                assert kernel(n, threads, *job)
            planes.append({int(z) for z in (sums.part(sums.box) != before).any(2).any(1).nonzero()})
        return [[True]]

    inkzarr.nn.sums.on_threads = one_by_one
    try:
        sums.add([Zyx(*index) for index in indices], [torch.ones(8, 8, 8)] * len(indices))
    finally:
        inkzarr.nn.sums.on_threads = run
    assert sum(map(len, planes)) == len(set().union(*planes))
    whole = Sums(sums.box, windows, "constant", torch.device("cpu"))
    for index in indices:
        whole.add([Zyx(*index)], [torch.ones(8, 8, 8)])
    assert torch.equal(sums.part(sums.box), whole.part(sums.box))


def test_chains_are_columns_cut_where_there_are_too_few():
    spec = VolumeSpec(Zyx(1000, 200, 200), np.dtype(np.uint8))
    job = Job("test", "out", spec, Zyx(128, 128, 64), {}, columns=Zyx(1000, 128, 200))
    boxes = list(job.blocks())
    for least, chains in ((1, 2), (2, 2), (3, 4), (100, 32)):
        found = job.chains(boxes, least)
        assert len(found) == chains
        assert sorted(itertools.chain(*found)) == boxes
        for chain in found:
            assert chain == sorted(chain)
            assert len({box.start.y for box in chain}) == 1


@pytest.fixture(scope="module")
def scroll_1(tmp_path_factory):
    """A scan of Scroll 1's shape with one chunk in a thousand."""
    path = tmp_path_factory.mktemp("scroll") / "scan.zarr"
    scan = zarr.create_array(
        path, shape=SCROLL_1, chunks=(128,) * 3, dtype="uint8", zarr_format=2, compressors=None,
        chunk_key_encoding={"name": "v2", "separator": "/"}, fill_value=0,
    )  # fmt: skip
    scan[5120:5248, 3840:3968, 2560:2688] = 9
    chunk = next(file for file in Path(path).rglob("*/*/*") if file.is_file())
    rng = np.random.default_rng(0)
    for index in rng.integers(0, [-(-n // 128) for n in SCROLL_1], (450, 3)):
        place = Path(path, *map(str, index))
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.hardlink_to(chunk)
    return str(path)


@pytest.mark.parametrize(("memory", "block"), [(12, "128,256,256"), (0.12, "128,128,128")])
def test_the_memory_does_not_change_how_often_windows_are_run(scroll_1, checkpoint, tmp_path, memory, block):
    settings = PredictSettings(batch=1, window=(16, 128, 128))
    options = RunOptions(memory=int(memory * 10**9))
    plan = str(plan_predict(scroll_1, checkpoint, str(tmp_path / "out"), settings, options))
    assert f"of {block}," in plan
    assert "redundancy      1.116," in plan
