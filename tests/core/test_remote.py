"""Remote volumes: only "no such key" is an empty chunk; every other fault is survived or named."""

import time

import numpy as np
import pytest
import zarr

from inkzarr.core import remote
from inkzarr.core.errors import InputError, StoreError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.job import Job, RunOptions
from inkzarr.core.remote import is_remote, without_secrets
from inkzarr.core.runner import plan_blocks, write_blocks
from inkzarr.core.schema import VolumeSpec
from inkzarr.core.store import open_all, open_stored, open_volume
from inkzarr.info import info
from tests.core.web import Web

pytest.importorskip("aiohttp")

SHAPE = Zyx(16, 16, 24)
KINDS = {
    "v2-blosc": {"zarr_format": 2},
    "v2-raw": {"zarr_format": 2, "compressors": None},
    "v3-zstd": {"zarr_format": 3},
    "v3-raw": {"zarr_format": 3, "compressors": None},
    "v3-shards": {"zarr_format": 3, "shards": (8, 16, 8)},
    "v3-raw-shards": {"zarr_format": 3, "shards": (8, 16, 8), "compressors": None},
}
KEYS = {"v2-blosc": "0.1.2", "v2-raw": "0.1.2", "v3-zstd": "c/0/1/2", "v3-raw": "c/0/1/2"}
KEYS |= {"v3-shards": "c/0/0/2", "v3-raw-shards": "c/0/0/2"}


@pytest.fixture(scope="module")
def voxels():
    return np.random.default_rng(0).integers(1, 255, SHAPE, dtype=np.uint8)


@pytest.fixture(scope="module")
def served(tmp_path_factory, voxels):
    folder = tmp_path_factory.mktemp("served")
    for name, layout in KINDS.items():
        zarr.create_array(folder / name, data=voxels, chunks=(8, 8, 8), **layout)
    return folder


@pytest.fixture
def web(served, monkeypatch):
    """The server, and short patience: half a second of silence, six tries."""
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.5)
    server = Web(served)
    yield server
    server.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_volume(web, voxels, kind):
    assert (open_volume(f"{web.url}/{kind}").to_numpy() == voxels).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_such_key_is_an_empty_chunk(web, voxels, kind):
    web.faults[f"{kind}/{KEYS[kind]}"] = [404]
    expected = voxels.copy()
    expected[:8, 0 if "shards" in kind else 8 :, 16:] = 0
    assert (open_volume(f"{web.url}/{kind}").to_numpy() == expected).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", [401, 403, 410, 429, 500, 503, "reset", "short", "html"])
def test_a_lasting_fault_names_the_chunk(web, kind, fault):
    key = f"{kind}/{KEYS[kind]}"
    web.faults[key] = [fault]
    scan = open_volume(f"{web.url}/{kind}")
    with pytest.raises(StoreError, match=KEYS[kind]) as raised:
        scan.compute()
    assert raised.value.exit_code == 4
    assert "\n" not in str(raised.value)
    assert scan[8:].compute().any(), "what is sound can be read"


@pytest.mark.parametrize("kind", ["v2-raw", "v3-shards"])
def test_silence_is_an_error(web, kind, monkeypatch):
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    web.faults[f"{kind}/{KEYS[kind]}"] = ["hang"]
    began = time.monotonic()
    with pytest.raises(StoreError, match=rf"{KEYS[kind]}.*no answer in 0\.5 s"):
        open_volume(f"{web.url}/{kind}").compute()
    assert time.monotonic() - began < 10


def test_slowness_is_none(web, voxels):
    """Each chunk takes twice as long as silence may."""
    for key in ("0.0.0", "0.1.2"):
        web.faults[f"v2-raw/{key}"] = ["trickle"]
    assert (open_volume(f"{web.url}/v2-raw").to_numpy() == voxels).all()
    assert web.asked["v2-raw/0.1.2"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_bursts_are_survived(web, voxels, kind):
    metadata = "zarr.json" if kind.startswith("v3") else ".zarray"
    web.faults[f"{kind}/{metadata}"] = [503, 500, "fine"]
    web.faults[f"{kind}/{KEYS[kind]}"] = [500, 503, "reset", "short", 502, "fine"]
    assert (open_volume(f"{web.url}/{kind}").to_numpy() == voxels).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_decode_is_asked_for_again(web, voxels, kind):
    """A proxy's page in place of a chunk."""
    web.faults[f"{kind}/{KEYS[kind]}"] = ["html", "html", "fine"]
    assert (open_volume(f"{web.url}/{kind}").to_numpy() == voxels).all()


@pytest.mark.parametrize("kind", ["v2-raw", "v3-zstd"])
def test_a_wrong_body_that_was_kept_is_fetched_again(web, voxels, kind, tmp_path):
    """Also by a later process, where nobody fetched it again in time."""
    options = {"cache": str(tmp_path)}
    web.faults[f"{kind}/{KEYS[kind]}"] = ["html"]
    with pytest.raises(StoreError, match=KEYS[kind]):
        open_volume(f"{web.url}/{kind}", storage_options=options).compute()
    del web.faults[f"{kind}/{KEYS[kind]}"]
    for _ in range(2):
        assert (open_volume(f"{web.url}/{kind}", storage_options=options).to_numpy() == voxels).all()
    assert web.asked[f"{kind}/0.0.0" if kind == "v2-raw" else f"{kind}/c/0/0/0"] <= 2


def test_tries_are_counted(web):
    web.faults["v2-raw/0.1.2"] = [500]
    web.faults["v2-blosc/0.1.2"] = [403]
    for kind in ("v2-raw", "v2-blosc"):
        with pytest.raises(StoreError):
            open_stored(f"{web.url}/{kind}").read(Box(Zyx(0, 8, 16), Zyx(8, 16, 24)))
    assert web.asked["v2-raw/0.1.2"] == remote.ATTEMPTS
    assert web.asked["v2-blosc/0.1.2"] == 1, "what is refused is not asked again"


@pytest.mark.parametrize("kind", ["v3-shards", "v3-raw-shards"])
def test_a_server_without_ranges_is_refused(web, kind):
    """It sends the whole shard for each part: never taken for the part."""
    web.ranges = False
    with pytest.raises(StoreError, match=r"bytes, not the \d+ asked for"):
        open_volume(f"{web.url}/{kind}").compute()


@pytest.mark.parametrize("fault", [403, 500, "reset", "hang"])
def test_faults_of_metadata(web, fault, monkeypatch):
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    web.faults["v2-raw/.zarray"] = web.faults["v3-raw/zarr.json"] = [fault]
    for kind in ("v2-raw", "v3-raw"):
        with pytest.raises(StoreError, match=r"cannot read (\.zarray|zarr\.json) of http://127") as raised:
            open_volume(f"{web.url}/{kind}")
        assert "\n" not in str(raised.value)


def test_what_is_no_volume(web):
    web.faults["v3-raw/zarr.json"] = ["html"]
    with pytest.raises(InputError, match=r"metadata at http.* cannot be used"):
        open_volume(f"{web.url}/v3-raw")
    with pytest.raises(InputError, match="no Zarr volume at http"):
        open_volume(f"{web.url}/nothing")
    with pytest.raises(InputError, match="cannot be opened"):
        open_volume("gopher://host/scan.zarr")
    with pytest.raises(StoreError, match="cannot read"):
        open_volume("http://127.0.0.1:1/scan.zarr")


def test_pages_of_a_web_server_are_no_list_of_chunks(web):
    """A page may show a part of a folder, or a link to it: no chunk is missing for that."""
    web.listing = b'<a href="0.0.0">0.0.0</a>'
    stored = open_stored(f"{web.url}/v2-blosc")
    assert stored.stored_chunks() is None
    assert stored.may_exceed(0).all()


def test_many_requests_at_once(web, voxels):
    web.delay = 0.05
    stored = open_stored(f"{web.url}/v2-raw")
    assert (stored.read(Box.whole(SHAPE)) == voxels).all()
    assert web.most_busy >= 8


def test_a_volume_of_ours_over_http(tmp_path, monkeypatch):
    """Its ledger is read without a list, its levels and arrays are found."""
    job = Job("t", f"{tmp_path}/own.zarr", VolumeSpec(SHAPE, np.dtype("uint8")), SHAPE, {"a": 1})
    write_blocks(job, lambda box: np.full(box.shape, 9, "uint8"), RunOptions())
    labels = zarr.create_group(tmp_path / "labels.zarr", zarr_format=2)
    for name, dtype in (("ink", "uint8"), ("count", "uint16")):
        labels.create_array(name, shape=SHAPE, chunks=SHAPE, dtype=dtype)
    web = Web(tmp_path)
    try:
        stored = open_stored(f"{web.url}/own.zarr")
        assert stored.identity == open_stored(f"{tmp_path}/own.zarr").identity
        assert not stored.may_exceed(9).any()
        assert stored.may_exceed(8).all()
        assert "16" in str(info(f"{web.url}/own.zarr"))
        assert [array.level.path for array in open_all(f"{web.url}/labels.zarr")] == ["count", "ink"]
        with pytest.raises(InputError, match="it holds count, ink"):
            open_volume(f"{web.url}/labels.zarr")
        web.faults["own.zarr/.inkzarr/0/manifest.json"] = [403]
        with pytest.raises(StoreError, match="manifest"):
            _ = open_stored(f"{web.url}/own.zarr").identity
    finally:
        web.close()


def test_a_run_over_a_failing_source_is_taken_up(web, voxels, tmp_path):
    """The block whose chunk fails is reported, not filled with air; healed, the run ends."""
    source = open_stored(f"{web.url}/v2-blosc")
    out = tmp_path / "out.zarr"
    job = Job("copy", str(out), VolumeSpec(SHAPE, np.dtype("uint8")), SHAPE, {"input": source.identity})
    web.faults["v2-blosc/0.1.2"] = [500]
    with pytest.raises(StoreError, match=r"1 of 1 blocks failed.*0\.1\.2.*HTTP status 500") as raised:
        write_blocks(job, source.read, RunOptions())
    assert raised.value.exit_code == 4
    del web.faults["v2-blosc/0.1.2"]
    write_blocks(job, source.read, RunOptions())
    assert (open_volume(out).to_numpy() == voxels).all()


def test_secrets_stay_out(web, tmp_path):
    url = web.url.replace("http://", "http://me:hunter2@") + "/v2-blosc"
    stored = open_stored(url)
    assert stored.name == "v2-blosc"
    out = tmp_path / "out.zarr"
    spec = VolumeSpec(SHAPE, np.dtype("uint8"), lineage={"source": stored.name})
    options = {"headers": {"X-Token": "hunter2"}}
    job = Job("copy", str(out), spec, SHAPE, {"input": stored.identity}, storage_options=options)
    write_blocks(job, stored.read, RunOptions())
    told = f"{open_volume(url).attrs} {job} {plan_blocks(job, RunOptions())}"
    web.faults["v2-blosc/0.0.0"] = [500]
    with pytest.raises(StoreError) as raised:
        stored.read(Box.whole(SHAPE))
    assert "hunter2" not in told + str(raised.value)
    assert all(b"hunter2" not in path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert without_secrets("s3://bucket/scan.zarr?versionId=1") == "s3://bucket/scan.zarr"
    assert without_secrets("/data/a?b@c.zarr") == "/data/a?b@c.zarr"


def test_what_is_remote():
    assert [is_remote(url) for url in ("a", "/a", "file:///a", "http://a", "s3://a")] == [False] * 3 + [
        True
    ] * 2


WIDE = Zyx(130, 260, 128)


def place(box):
    return np.full(box.shape, 1 + sum(box.start) // 128, "uint8")


@pytest.fixture
def group(served):
    out = served / "group.zarr"
    if not out.exists():
        spec = VolumeSpec(WIDE, np.dtype("uint8"), 3.5)
        write_blocks(Job("copy", str(out), spec, Zyx.of(128), {}), place, RunOptions())
    return "group.zarr"


def test_an_array_that_is_named_has_its_groups_ledger(web, group):
    stored = open_stored(f"{web.url}/{group}/0")
    assert stored.voxel_size_um == 3.5
    web.faults[f"{group}/0/0/0/0"] = [404]
    with pytest.raises(StoreError, match="is lost, its ledger knows of voxels in it"):
        stored.read(Box.whole(WIDE))
    for key, what in (
        (".zgroup", open_stored),
        (".inkzarr/0/manifest.json", lambda url: open_stored(url).ledger),
    ):
        web.faults[f"{group}/{key}"] = [503]
        with pytest.raises(StoreError, match=key.rpartition("/")[2]):
            what(f"{web.url}/{group}/0")
        del web.faults[f"{group}/{key}"]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_who_may_read_an_array_need_not_look_around(web, group, status):
    for key in (".zgroup", ".zattrs", ".inkzarr/0/manifest.json"):
        web.faults[f"{group}/{key}"] = [status]
    stored = open_stored(f"{web.url}/{group}/0")
    assert stored.voxel_size_um is None
    assert stored.ledger is None
    assert stored.read(Box.whole(WIDE)).any()
