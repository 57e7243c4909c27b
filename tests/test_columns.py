"""Blocks one below the other: no window is run twice, no plane read twice, and the bytes are the same."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import zarr

from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.job import Job, RunOptions
from inkzarr.core.schema import VolumeSpec
from inkzarr.core.store import open_volume
from inkzarr.core.volume import StoredVolume
from inkzarr.nn import columns
from inkzarr.nn.columns import Leavings, Left
from inkzarr.nn.engine import Engine
from inkzarr.predict import PredictSettings, plan_predict, predict, predict_volume

SCROLL_1 = (14376, 7888, 8096)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "scan.zarr"
    voxels = np.random.default_rng(3).integers(0, 255, (300, 40, 60), np.uint8)
    voxels[140:220] = 0
    voxels[150, 7, 9] = 1
    zarr.create_array(path, data=voxels, chunks=(32, 32, 32), zarr_format=2)
    return str(path)


@pytest.fixture
def counted(monkeypatch):
    """Windows that the network runs, and planes that are read."""
    told = {"windows": 0, "planes": []}
    run, read = Engine.probabilities, StoredVolume.read

    def counting(self, windows, dtype):
        told["windows"] += len(windows)
        return run(self, windows, dtype)

    def reading(self, box):
        told["planes"] += range(box.start.z, box.stop.z) if box.shape.y > 32 else ()
        return read(self, box)

    monkeypatch.setattr(Engine, "probabilities", counting)
    monkeypatch.setattr(StoredVolume, "read", reading)
    return told


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Nothing(Leavings):
    """Where every block is computed by another worker."""

    def put(self, run, start, left):
        pass


@pytest.mark.parametrize(
    ("window", "overlap", "box"),
    [(32, 0.5, None), (32, 0.25, None), (32, 0.75, None), (32, 0.5, "70:290,3:,:50")],
)
def test_no_window_is_run_and_no_plane_read_twice(
    scan, checkpoint, tmp_path, counted, monkeypatch, window, overlap, box
):
    settings = PredictSettings(window=window, overlap=overlap, block=128, air=0, box=box)
    predict_volume(scan, checkpoint, str(tmp_path / "column"), settings)
    together, planes = counted["windows"], sorted(counted["planes"])
    assert planes == sorted(set(planes))
    counted.update(windows=0)
    whole = Box.whole((300, 40, 60)) if box is None else Box.parse(box, Zyx(300, 40, 60))
    predict(open_volume(scan), checkpoint, window=window, overlap=overlap, block=300)[whole.slices].compute()
    if box is None:
        assert together == counted["windows"]
    counted.update(windows=0)
    monkeypatch.setattr(columns, "leavings", Nothing())
    predict_volume(scan, checkpoint, str(tmp_path / "apart"), settings)
    assert counted["windows"] > together
    assert files(tmp_path / "apart") == files(tmp_path / "column")


def test_what_blocks_leave_is_bounded_and_forgotten():
    left = Left(None, np.zeros(1))
    leavings = Leavings()
    for number in range(2 * columns.MOST_LEFT):
        leavings.put("run", Zyx(number, 0, 0), left)
    assert leavings.take("run", Zyx(0, 0, 0)) is None
    assert leavings.take("run", Zyx(2 * columns.MOST_LEFT - 1, 0, 0)) is left
    assert leavings.take("run", Zyx(2 * columns.MOST_LEFT - 1, 0, 0)) is None
    leavings.put("other", Zyx(0, 0, 0), left)
    assert leavings.take("run", Zyx(2 * columns.MOST_LEFT - 2, 0, 0)) is None


def test_chains_are_columns_cut_where_there_are_too_few():
    spec = VolumeSpec(Zyx(1000, 200, 200), np.dtype(np.uint8))
    job = Job("test", "out", spec, Zyx(128, 128, 256), {}, columns=True)
    boxes = list(job.blocks())
    for least, chains in ((1, 2), (2, 2), (3, 4), (100, 16)):
        found = job.chains(boxes, least)
        assert len(found) == chains
        assert sorted(itertools.chain(*found)) == boxes
        for chain in found:
            for above, below in itertools.pairwise(chain):
                assert below.start == above.start._replace(z=above.stop.z)


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


@pytest.mark.parametrize(
    ("memory", "block", "redundancy"), [(12, "128,1024,1024", 1.116), (0.5, "128,512,512", 1.256)]
)
def test_the_more_memory_the_fewer_windows_are_run_twice(
    scroll_1, checkpoint, tmp_path, memory, block, redundancy
):
    settings = PredictSettings(batch=1, window=(16, 128, 128))
    options = RunOptions(memory=int(memory * 10**9))
    plan = str(plan_predict(scroll_1, checkpoint, str(tmp_path / "out"), settings, options))
    assert f"of {block}," in plan
    assert f"redundancy      {redundancy}," in plan
