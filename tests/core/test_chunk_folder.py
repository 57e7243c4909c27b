"""Chunks kept on a disk: fetched once, whole or not at all, and never more than they may be."""

import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from inkzarr.cli import cli
from inkzarr.core import chunk_folder
from inkzarr.core.chunk_folder import ChunkFolder
from inkzarr.core.errors import StoreError
from inkzarr.core.geometry import Box
from inkzarr.core.remote import open_store
from inkzarr.core.store import open_stored, open_volume
from tests.core.web import Web

pytest.importorskip("aiohttp")


@pytest.fixture
def web(tmp_path):
    voxels = np.random.default_rng(0).integers(1, 255, (16, 16, 24), np.uint8)
    voxels[8:] = 0
    (tmp_path / "served").mkdir()
    for name, layout in (("scan", {"zarr_format": 2}), ("shards", {"shards": (16, 16, 8)})):
        config = {"write_empty_chunks": False}
        zarr.create_array(tmp_path / "served" / name, data=voxels, chunks=(8, 8, 8), config=config, **layout)
    server = Web(tmp_path / "served")
    server.voxels = voxels
    yield server
    server.close()


def chunks(web):
    names = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
    return {key: n for key, n in web.asked.items() if not key.endswith((*names, "manifest.json"))}


@pytest.mark.parametrize("name", ["scan", "shards"])
def test_a_chunk_is_fetched_once(web, tmp_path, name):
    options = {"cache": str(tmp_path / "kept")}
    for _ in range(2):
        scan = open_volume(f"{web.url}/{name}", storage_options=options)
        assert (scan.to_numpy() == web.voxels).all()
        asked = chunks(web)
        web.asked.clear()
    stored = {key for key in asked if (web.folder / key).is_file()}
    assert not stored, "the second time nothing that is there is asked for; what is not there may appear"
    assert not list((tmp_path / "kept").rglob("*.partial"))


def test_volumes_do_not_mix(web, tmp_path):
    (web.folder / "other").mkdir()
    zarr.create_array(web.folder / "other" / "scan", data=web.voxels[::-1], chunks=(8, 8, 8), zarr_format=2)
    options = {"cache": str(tmp_path / "kept")}
    for _ in range(2):
        assert (open_volume(f"{web.url}/scan", storage_options=options) == web.voxels).all()
        assert (open_volume(f"{web.url}/other/scan", storage_options=options) == web.voxels[::-1]).all()


def test_a_damaged_file_is_fetched_again(web, tmp_path):
    options = {"cache": str(tmp_path / "kept")}
    open_volume(f"{web.url}/scan", storage_options=options).compute()
    for number, file in enumerate(sorted(path for path in (tmp_path / "kept").rglob("*") if path.is_file())):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content if number % 2 else content[:3])
    assert (open_volume(f"{web.url}/scan", storage_options=options) == web.voxels).all()


def test_a_fault_is_not_kept(web, tmp_path, monkeypatch):
    monkeypatch.setattr("inkzarr.core.remote.ATTEMPTS", 1)
    options = {"cache": str(tmp_path / "kept")}
    web.faults["scan/0.0.0"] = [500]
    with pytest.raises(StoreError, match=r"0\.0\.0"):
        open_volume(f"{web.url}/scan", storage_options=options).compute()
    del web.faults["scan/0.0.0"]
    assert (open_volume(f"{web.url}/scan", storage_options=options) == web.voxels).all()


@pytest.mark.parametrize(("name", "key"), [("scan", "0.0.0"), ("shards", "c/0/0/0")])
def test_what_does_not_decode_is_not_kept(web, tmp_path, name, key):
    """A proxy's page with status 200, at first in place of the chunk, then in place of the fetch again."""
    options = {"cache": str(tmp_path / "kept")}
    for faults in (["html", "html", "fine"], ["fine"]):
        web.faults[f"{name}/{key}"] = faults
        web.asked.clear()
        assert (open_volume(f"{web.url}/{name}", storage_options=options) == web.voxels).all()
    assert web.asked[f"{name}/{key}"] == 0, "now it is kept"


def test_the_folder_stays_small(tmp_path, monkeypatch):
    monkeypatch.setattr(chunk_folder, "SWEEP_EVERY", 1)
    kept = ChunkFolder(str(tmp_path), "https://host/scan", most=10_000)
    for number in range(50):
        kept.put(str(number), bytes(996))
        for file in tmp_path.glob("??/*"):  # as if a second had gone by
            told = file.stat()
            os.utime(file, (told.st_atime - 1, told.st_mtime - 1))
        kept.get("0")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10_000
    assert kept.get("0") is not None, "what is used stays"
    assert kept.get("49") is not None
    assert kept.get("1") is None


def put_and_get(folder):
    kept = ChunkFolder(folder, "https://host/scan")
    for number in range(200):
        kept.put(str(number % 7), bytes([number % 7]) * 10_000)
        assert kept.get(str(number % 5)) in (None, bytes([number % 5]) * 10_000)
    return True


def test_several_processes_share_a_folder(tmp_path):
    with ProcessPoolExecutor(2) as pool:
        assert all(pool.map(put_and_get, [str(tmp_path)] * 4))
    assert not list(tmp_path.rglob("*.partial"))


def test_a_folder_that_cannot_be_written_costs_nothing(web, tmp_path):
    (tmp_path / "file").write_text("no folder")
    options = {"cache": str(tmp_path / "file")}
    assert (open_volume(f"{web.url}/scan", storage_options=options) == web.voxels).all()


def test_the_command_line_keeps_chunks(web, tmp_path):
    for name in ("a.nrrd", "b.nrrd"):
        out = str(tmp_path / name)
        result = CliRunner().invoke(
            cli, ["export", f"{web.url}/scan", out, "--cache", str(tmp_path / "kept")]
        )
        assert result.exit_code == 0, result.output
    assert max(web.asked[key] for key in ("scan/0.0.0", "scan/0.1.2")) == 1
    assert Path(tmp_path / "a.nrrd").read_bytes() == Path(tmp_path / "b.nrrd").read_bytes()


def test_local_volumes_are_not_kept(web, tmp_path):
    open_stored(str(web.folder / "scan"), storage_options={"cache": str(tmp_path / "kept")})
    assert not (tmp_path / "kept").exists()


def test_blocks_that_want_the_same_chunk_wait_for_each_other(web, tmp_path):
    web.delay = 0.02
    stored = open_stored(f"{web.url}/scan", storage_options={"cache": str(tmp_path / "kept")})
    with ThreadPoolExecutor(8) as pool:
        whole = Box.whole(stored.shape)
        assert all((found == web.voxels).all() for found in pool.map(stored.read, [whole] * 8))
    asked = chunks(web)
    assert max(n for key, n in asked.items() if (web.folder / key).is_file()) == 1


def test_buckets_of_one_name_on_two_servers_share_nothing(tmp_path):
    pytest.importorskip("s3fs")
    ways = [
        {"client_kwargs": {"endpoint_url": "http://me:word@127.0.0.1:1"}},
        {"endpoint_url": "http://127.0.0.1:2"},
        {},
    ]
    stores = [
        open_store("s3://bucket/a.zarr", storage_options={"anon": True, "cache": tmp_path, **way})
        for way in ways
    ]
    places = [store.kept.place for store in stores]
    assert places == [
        "s3://bucket/a.zarr http://me:word@127.0.0.1:1",
        "s3://bucket/a.zarr http://127.0.0.1:2",
        "s3://bucket/a.zarr",
    ]
    stores[0].kept.put("0/0/0", b"voxels")
    assert [store.kept.get("0/0/0") for store in stores] == [b"voxels", None, None]
