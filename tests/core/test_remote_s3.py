"""Volumes in a bucket of an S3 server that is a process of its own: written, resumed, guarded, and survived."""

import dataclasses
import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore

from inkzarr.core import lock, remote
from inkzarr.core.errors import BlocksFailedError, InkzarrError, InputError, StoreError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.job import Job, RunOptions
from inkzarr.core.lock import locked
from inkzarr.core.remote import open_store
from inkzarr.core.runner import plan_blocks, write_blocks
from inkzarr.core.schema import LOCK, VolumeSpec
from inkzarr.core.store import open_stored, open_volume
from inkzarr.info import info
from tests.core.line import Line
from tests.stored import keys, tree

SECRET = "wJalrXUtnFEMI-not-a-real-one"


WIDE = Zyx(130, 260, 128)


def s3_job(out, options, **layout):
    return Job(
        "copy",
        out,
        VolumeSpec(WIDE, np.dtype("uint8"), **layout),
        Zyx.of(128),
        {"a": 1},
        storage_options=options,
    )


def place(box):
    return np.full(box.shape, 1 + sum(box.start) // 128, "uint8")


@pytest.mark.parametrize("layout", [{}, {"zarr_format": 3, "shard": 256}], ids=["v2", "v3-shards"])
def test_s3_holds_what_a_local_disk_would(s3, tmp_path, layout):
    name = f"scrolls/{len(layout)}/out.zarr"
    write_blocks(s3_job(f"{tmp_path}/out.zarr", None, **layout), place, RunOptions())
    write_blocks(s3_job(f"s3://{name}", s3, **layout), place, RunOptions())
    there = keys(s3, name)
    assert there == tree(tmp_path / "out.zarr")
    assert not any(SECRET.encode() in body for body in there.values())
    scan = open_volume(f"s3://{name}", storage_options=s3)
    assert (scan.to_numpy() == open_volume(tmp_path / "out.zarr").to_numpy()).all()
    stored = open_stored(f"s3://{name}", storage_options=s3)
    assert stored.identity == open_stored(f"{tmp_path}/out.zarr").identity
    assert np.array_equal(stored.may_exceed(1), open_stored(f"{tmp_path}/out.zarr").may_exceed(1))
    assert "130" in str(info(f"s3://{name}", storage_options=s3))
    assert write_blocks(s3_job(f"s3://{name}", s3, **layout), place, RunOptions()).resumed > 0


def test_s3_names_are_no_patterns(s3):
    for name in ("odd/pred1.zarr", "odd/pred[1].zarr"):
        write_blocks(s3_job(f"s3://scrolls/{name}", s3), place, RunOptions())
    before = keys(s3, "scrolls/odd/pred1.zarr")
    job = dataclasses.replace(s3_job("s3://scrolls/odd/pred[1].zarr", s3), fingerprint={"a": 2})
    write_blocks(job, lambda box: np.zeros(box.shape, "uint8"), RunOptions(overwrite=True))
    assert keys(s3, "scrolls/odd/pred1.zarr") == before
    assert not open_volume("s3://scrolls/odd/pred[1].zarr", storage_options=s3).to_numpy().any()


def test_s3_tells_of_a_key_that_it_does_not_delete(s3, monkeypatch):
    """A bucket whose rules let nothing be deleted answers 200, and names the keys."""
    out = "s3://scrolls/kept/out.zarr"
    write_blocks(s3_job(out, s3), place, RunOptions())

    async def refused(self, *given, **more):
        return []

    async def denied(self, path, **more):
        raise PermissionError(errno.EACCES, "Access Denied", path)

    monkeypatch.setattr("s3fs.S3FileSystem._bulk_delete", refused)
    monkeypatch.setattr("s3fs.S3FileSystem._rm_file", denied)
    before = keys(s3, "scrolls/kept/out.zarr")
    job = dataclasses.replace(s3_job(out, s3), fingerprint={"a": 2})
    with pytest.raises(StoreError, match="Access Denied"):
        write_blocks(job, place, RunOptions(overwrite=True))
    monkeypatch.undo()
    assert {key for key in keys(s3, "scrolls/kept/out.zarr") if "blocks" in key} <= before.keys()
    with pytest.raises(InputError, match="a was 1, is 2"):
        write_blocks(job, place, RunOptions())


def test_s3_resumes_after_failures(s3, tmp_path):
    def failing(box):
        if box.start == (0, 128, 0):
            msg = "told to fail"
            raise ValueError(msg)
        return place(box)

    job = s3_job("s3://scrolls/resumed/out.zarr", s3)
    with pytest.raises(BlocksFailedError, match="1 of 6 blocks failed"):
        write_blocks(job, failing, RunOptions(workers=2))
    assert plan_blocks(job, RunOptions()).done == 5
    assert write_blocks(job, place, RunOptions()).resumed == 5
    write_blocks(s3_job(f"{tmp_path}/out.zarr", None), place, RunOptions())
    assert keys(s3, "scrolls/resumed/out.zarr") == tree(tmp_path / "out.zarr")


def test_s3_is_overwritten_whole(s3, tmp_path):
    url = "s3://scrolls/over/out.zarr"
    write_blocks(s3_job(url, s3, zarr_format=3), place, RunOptions())
    neighbour = s3_job("s3://scrolls/over/out.zarr2", s3)
    write_blocks(neighbour, place, RunOptions())
    with pytest.raises(InputError, match="zarr_format was 3, is 2"):
        write_blocks(s3_job(url, s3), place, RunOptions())
    write_blocks(s3_job(url, s3), place, RunOptions(overwrite=True))
    write_blocks(s3_job(f"{tmp_path}/out.zarr", None), place, RunOptions())
    assert keys(s3, "scrolls/over/out.zarr") == tree(tmp_path / "out.zarr")
    assert write_blocks(neighbour, place, RunOptions()).resumed == 6


def test_s3_foreign_data_stays(s3):
    import s3fs

    fs = s3fs.S3FileSystem(**s3, skip_instance_cache=True)
    fs.pipe_file("scrolls/holiday/beach.jpg", b"sand")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"did not write|is no Zarr volume"):
            write_blocks(s3_job("s3://scrolls/holiday", s3), place, RunOptions(overwrite=overwrite))
    assert keys(s3, "scrolls/holiday") == {"beach.jpg": b"sand"}


def test_s3_missing_chunks_are_listed(s3):
    job = s3_job("s3://scrolls/sparse/out.zarr", s3)
    write_blocks(job, lambda box: place(box) * (box.start == (128, 0, 0)), RunOptions())
    stored = open_stored(job.out, storage_options=s3)
    sync_delete(stored)
    assert np.argwhere(open_stored(job.out, storage_options=s3).may_exceed(0)).tolist() == [[1, 0, 0]]


def sync_delete(stored):
    """The ledger, so that only the list of chunks is left to tell."""
    writable = open_store(
        stored.url, storage_options=stored.array.store._store.fs.storage_options, read_only=False
    )
    sync(writable.delete_dir(".inkzarr/0"))


def test_s3_that_cannot_be_had(s3, monkeypatch):
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(InkzarrError) as raised:
        open_volume("s3://scrolls/nothing", storage_options=s3)
    assert isinstance(raised.value, InputError)
    with pytest.raises((InputError, StoreError)):
        open_volume("s3://no-such-bucket/scan.zarr", storage_options=s3)
    nobody = {"client_kwargs": s3["client_kwargs"]}
    began = time.monotonic()
    with pytest.raises(StoreError, match="redentials"):
        open_volume("s3://scrolls/1/out.zarr", storage_options=nobody)
    assert time.monotonic() - began < 5, "asking again brings no credentials"


def test_s3_arrays_are_guarded_too(s3):
    out = "s3://scrolls/guarded.zarr"
    write_blocks(s3_job(out, s3), place, RunOptions())
    assert open_stored(f"{out}/0", storage_options=s3).ledger is not None
    assert open_stored(f"{out}/0", storage_options=s3).voxel_size_um == 7.91
    import s3fs

    s3fs.S3FileSystem(**s3).rm_file("scrolls/guarded.zarr/0/0/0/0")
    with pytest.raises(StoreError, match="is lost, its ledger knows of voxels in it"):
        open_stored(f"{out}/0", storage_options=s3).read(Box.whole(WIDE))
    zarr.save_array("s3://scrolls", np.ones((4, 4, 4), "uint8"), storage_options=s3)
    assert open_stored("s3://scrolls", storage_options=s3).ledger is None


@pytest.fixture
def line(s3, monkeypatch):
    """A line to the server that can break, and short patience; and options to go through it."""
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.5)
    made = Line(s3["client_kwargs"]["endpoint_url"])
    yield made, {**s3, "client_kwargs": {"endpoint_url": made.url}}
    made.close()


KINDS = {
    "v2-blosc": {"zarr_format": 2},
    "v2-raw": {"zarr_format": 2, "compressors": None},
    "v3-raw": {"zarr_format": 3, "compressors": None},
    "v3-shards": {"zarr_format": 3, "shards": (8, 16, 8)},
}
KEYS = {"v2-blosc": "0.1.2", "v2-raw": "0.1.2", "v3-raw": "c/0/1/2", "v3-shards": "c/0/0/2"}


@pytest.fixture(scope="module")
def voxels(s3):
    found = np.random.default_rng(0).integers(1, 255, (16, 16, 24), dtype=np.uint8)
    for kind, layout in KINDS.items():
        place = f"s3://scrolls/kinds/{kind}"
        zarr.create_array(place, data=found, chunks=(8, 8, 8), storage_options=s3, **layout)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_s3_bursts_are_survived(line, voxels, kind):
    broken, options = line
    metadata = "zarr.json" if kind.startswith("v3") else ".zarray"
    broken.faults[f"{kind}/{metadata}"] = [503, 500, "fine"]
    broken.faults[f"{kind}/{KEYS[kind]}"] = [500, 503, "reset", "short", "hang", "fine"]
    assert (open_volume(f"s3://scrolls/kinds/{kind}", storage_options=options).to_numpy() == voxels).all()


@pytest.mark.parametrize("kind", KINDS)
def test_s3_has_no_such_key(line, voxels, kind):
    broken, options = line
    broken.faults[f"{kind}/{KEYS[kind]}"] = [404]
    expected = voxels.copy()
    expected[:8, 0 if "shards" in kind else 8 :, 16:] = 0
    assert (open_volume(f"s3://scrolls/kinds/{kind}", storage_options=options).to_numpy() == expected).all()


@pytest.mark.parametrize("kind", ["v2-raw", "v3-shards"])
@pytest.mark.parametrize("fault", [403, 500, 503, "reset", "short", "html", "hang"])
def test_s3_lasting_faults_name_the_chunk(line, voxels, kind, fault, monkeypatch):
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    broken, options = line
    broken.faults[f"{kind}/{KEYS[kind]}"] = [fault]
    scan = open_volume(f"s3://scrolls/kinds/{kind}", storage_options=options)
    with pytest.raises(StoreError, match=KEYS[kind]) as raised:
        scan.compute()
    assert raised.value.exit_code == 4
    assert "\n" not in str(raised.value)
    assert (scan[8:].compute() == voxels[8:]).all(), "what is sound can be read"


def test_s3_is_asked_once_for_a_key(line, voxels):
    """Not for its size first; and tries are ours alone, not multiplied by those of the libraries below."""
    broken, options = line
    stored = open_stored("s3://scrolls/kinds/v2-raw", storage_options=options)
    assert (stored.read(Box.whole(stored.shape)) == voxels).all()
    chunks = {name: n for name, n in broken.asked.items() if name[-1].isdigit()}
    assert set(chunks) == {
        f"GET /scrolls/kinds/v2-raw/{z}.{y}.{x}" for z in (0, 1) for y in (0, 1) for x in (0, 1, 2)
    }
    assert set(chunks.values()) == {1}
    broken.faults["v2-raw/0.1.2"] = [500]
    with pytest.raises(StoreError, match=f"{remote.ATTEMPTS} tries"):
        stored.read(Box.whole(stored.shape))
    assert broken.asked["GET /scrolls/kinds/v2-raw/0.1.2"] == 1 + remote.ATTEMPTS


def test_s3_writes_survive_bursts(line, tmp_path):
    broken, options = line
    broken.faults["broken.zarr/0/0/1/0"] = [503, "reset", 500, "fine"]
    broken.faults["broken.zarr/.zattrs"] = [500, "fine"]
    write_blocks(s3_job("s3://scrolls/broken.zarr", options), place, RunOptions())
    write_blocks(s3_job(f"{tmp_path}/out.zarr", None), place, RunOptions())
    assert keys(options, "scrolls/broken.zarr") == tree(tmp_path / "out.zarr")


def test_s3_lasting_faults_of_writing(line):
    broken, options = line
    broken.faults["lasting.zarr/0/0/1/0"] = [403]
    job = s3_job("s3://scrolls/lasting.zarr", options)
    with pytest.raises(
        StoreError, match=r"1 of 6 blocks failed.*cannot write 0/0/1/0 of s3://scrolls"
    ) as raised:
        write_blocks(job, place, RunOptions())
    assert raised.value.exit_code == 4
    del broken.faults["lasting.zarr/0/0/1/0"]
    assert write_blocks(job, place, RunOptions()).resumed == 5


def test_a_key_is_created_in_one_step_where_the_store_can(line, monkeypatch):
    """In two where S3 says that it does not know how; any other fault is a fault."""
    broken, options = line
    store = open_store("s3://scrolls/created", storage_options=options, read_only=False)
    first, second = (default_buffer_prototype().buffer.from_bytes(body) for body in (b"first", b"second"))
    with monkeypatch.context() as patch:
        patch.setattr(FsspecStore, "set_if_not_exists", None)  # the two steps: not taken
        for body in (first, second):
            sync(store.set_if_not_exists("one", body))
        broken.faults["created/bad"] = [403]
        with pytest.raises(StoreError, match=r"cannot write bad of s3://scrolls/created \(1 tries\)"):
            sync(store.set_if_not_exists("bad", first))
    broken.faults["created/two"] = [501, "fine"]
    sync(store.set_if_not_exists("two", first))
    sync(store.set_if_not_exists("two", second))
    assert keys(options, "scrolls/created") == {"one": b"first", "two": b"first"}


def test_s3_is_locked(s3, monkeypatch):
    """Created in one step; refused while its beat goes on, taken over once it stands still."""
    for name, seconds in (("BEAT_S", 0.1), ("WATCH_S", 0.1), ("DEAD_S", 2.0)):
        monkeypatch.setattr(lock, name, seconds)
    monkeypatch.setattr(lock, "_machine", lambda: "")  # as on another machine
    url = "s3://scrolls/locked.zarr"

    def try_it():
        with locked(url, storage_options=s3):
            return keys(s3, "scrolls/locked.zarr")

    with ThreadPoolExecutor(1) as elsewhere:
        with locked(url, storage_options=s3):
            with pytest.raises(
                InputError, match=r"s3://scrolls/locked\.zarr is being written by another run, p"
            ):
                elsewhere.submit(try_it).result()
            (held,) = keys(s3, "scrolls/locked.zarr").values()
        assert keys(s3, "scrolls/locked.zarr") == {}
        store = open_store(url, storage_options=s3, read_only=False)
        for body in (held, b"something else"):
            sync(store.set_if_not_exists(LOCK, default_buffer_prototype().buffer.from_bytes(body)))
        assert keys(s3, "scrolls/locked.zarr") == {LOCK: held}, "the second creation changes nothing"
        assert LOCK in elsewhere.submit(try_it).result()
    assert keys(s3, "scrolls/locked.zarr") == {}
