"""``verify --repair`` of volumes in a bucket: damaged, deleted and swapped chunks are whole again, and no secret is noted."""

import json

import numpy as np
import pytest
import s3fs
import tifffile
import torch
from click.testing import CliRunner

from inkzarr.cli import cli
from inkzarr.core import lock, runner
from inkzarr.core.errors import DamageError
from inkzarr.nn.checkpoint import save_checkpoint
from inkzarr.nn.unet import UNet3D
from tests.stored import keys

SHAPE = (8, 256, 384)
BUCKET = "scrolls"


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "SETTLE_S", 0.01)
        yield


@pytest.fixture(scope="module")
def run(s3):
    """The command line, with the bucket's options."""

    def invoke(*words):
        done = CliRunner().invoke(cli, [*map(str, words), "--storage-options", json.dumps(s3)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        assert s3["secret"] not in done.output
        return done

    return invoke


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    """Six chunks of 128 x 128 each: of a scan, of its shards, and of a prediction of it."""
    home = tmp_path_factory.mktemp("made")
    tifffile.imwrite(home / "scan.tif", np.random.default_rng(0).integers(1, 255, SHAPE, dtype=np.uint8))
    torch.manual_seed(0)
    save_checkpoint(home / "unet.pt", UNet3D(f_maps=4, levels=2))
    run("ingest", home / "scan.tif", f"s3://{BUCKET}/scan.zarr", "--voxel-size", "8")
    layout = ("--voxel-size", "8", "--zarr-format", "3", "--shard", "256")
    run("ingest", home / "scan.tif", f"s3://{BUCKET}/shards.zarr", *layout)
    options = ("--window", "8,64,64", "--overlap", "0", "--block", "128")
    run("predict", f"s3://{BUCKET}/scan.zarr", home / "unet.pt", f"s3://{BUCKET}/ink.zarr", *options)


def flip(files, chunks):
    body = bytearray(files.cat_file(chunks[1]))
    body[len(body) // 2] ^= 4
    files.pipe_file(chunks[1], bytes(body))


def cut(files, chunks):
    files.pipe_file(chunks[0], files.cat_file(chunks[0])[:40])


def delete(files, chunks):
    files.rm_file(chunks[-1])


def swap(files, chunks):
    first, last = files.cat_file(chunks[0]), files.cat_file(chunks[-1])
    files.pipe_file(chunks[0], last)
    files.pipe_file(chunks[-1], first)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage"),
    [("scan.zarr", flip), ("shards.zarr", cut), ("ink.zarr", delete), ("scan.zarr", swap)],
)
def test_a_damaged_volume_is_whole_again(made, run, s3, name, damage, monkeypatch):
    files = s3fs.S3FileSystem(**s3, use_listings_cache=False, skip_instance_cache=True)
    place, whole = f"{BUCKET}/{name}", keys(s3, f"{BUCKET}/{name}")
    chunks = sorted(key for key in files.find(f"{place}/0") if key.rpartition("/")[2].isdecimal())
    damage(files, chunks)
    hurt = keys(s3, place)
    damaged = {key for key, body in whole.items() if hurt.get(key) != body}
    assert damaged
    written = []
    honest = runner._Task._write

    def noted(self, box, array, *rest):
        written.append(box)
        return honest(self, box, array, *rest)

    monkeypatch.setattr(runner._Task, "_write", noted)
    with pytest.raises(DamageError, match="repair them with --repair") as told:
        run("verify", f"s3://{place}")
    assert all(key in str(told.value) for key in damaged)
    assert written == []
    assert "none damaged" in run("verify", f"s3://{place}", "--repair").output
    assert keys(s3, place) == whole
    assert 1 <= len(written) <= len(damaged), "no other block was computed"
    assert not [key for key, body in whole.items() if s3["secret"].encode() in body]
