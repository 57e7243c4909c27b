"""What is secret of a store reaches nothing that is written or printed."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner

from inkzarr.cli import cli
from inkzarr.core.errors import InputError, StoreError, hide_secrets
from inkzarr.core.remote import open_store
from inkzarr.core.store import open_stored, open_volume
from inkzarr.info import info
from inkzarr.nn.checkpoint import save_checkpoint
from inkzarr.nn.unet import UNet3D
from inkzarr.verify import verify
from tests.core.web import Web

CANARY = "CANARYq7Zx"
COMMAND = [sys.executable, "-c", "from inkzarr.cli import main; main()"]


def run(*arguments, folder, **environment):
    """As a process of its own, so that all that it prints is seen."""
    told = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | environment,
    )
    assert CANARY not in told.stdout + told.stderr, told.stdout + told.stderr
    return told


def run_here(*arguments):
    """Quicker: in this process."""
    told = CliRunner().invoke(cli, [*map(str, arguments)])
    assert CANARY not in told.output, told.output
    return told


def written(folder):
    """Files below a folder that hold the canary, or are named by it."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return [p for p in files if CANARY.encode() in p.read_bytes() or CANARY in str(p.relative_to(folder))]


@pytest.fixture
def scan(tmp_path):
    voxels = np.random.default_rng(0).integers(1, 255, (20, 30, 40), np.uint8)
    zarr.create_array(tmp_path / "served" / "scan.zarr", data=voxels, chunks=(20, 16, 20), zarr_format=2)
    return tmp_path / "served"


@pytest.fixture
def web(scan):
    server = Web(scan)
    yield server
    server.close()


@pytest.fixture(scope="module")
def bucket():
    """An S3 server on loopback, and how it is reached: by a key that is the canary."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {
        "key": f"AKIA{CANARY}",
        "secret": f"{CANARY}secret",
        "token": f"{CANARY}token",
        "endpoint_url": f"http://{host}:{port}",
    }
    import fsspec

    fsspec.filesystem("s3", **options, skip_instance_cache=True).mkdir("scrolls")
    yield options
    server.stop()


@pytest.mark.slow
def test_a_run_on_s3_tells_no_key(bucket, scan, tmp_path, monkeypatch):
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "unet.pt", UNet3D(f_maps=4, levels=2))
    options = ["--storage-options", json.dumps(bucket)]
    monkeypatch.chdir(tmp_path)
    for command in (
        ["ingest", scan / "scan.zarr", "s3://scrolls/scan.zarr", *options],
        ["predict", "s3://scrolls/scan.zarr", "unet.pt", "s3://scrolls/p.zarr", "--window", "16", *options],
        ["info", "s3://scrolls/p.zarr", *options],
        ["verify", "s3://scrolls/p.zarr", *options],
        [
            "components",
            "s3://scrolls/p.zarr",
            "c.parquet",
            "--min-voxels",
            "1",
            "--sheet",
            "c.html",
            *options,
        ],
        ["export", "s3://scrolls/scan.zarr", "a.nrrd", *options],
    ):
        told = run_here(*command)
        assert told.exit_code == 0, told.output
    logged = ["predict", "s3://scrolls/scan.zarr", "unet.pt", "local.zarr", "--window", "16", "--json-logs"]
    named = {"INKZARR_PREDICT_STORAGE_OPTIONS": json.dumps(bucket)}
    assert run(*logged, folder=tmp_path, **named).returncode == 0
    for nowhere in ("s3://scrolls/none.zarr", "s3://nobody/scan.zarr"):
        assert run("info", nowhere, *options, folder=tmp_path).returncode in (3, 4)
    assert written(tmp_path) == []
    import fsspec

    files = fsspec.filesystem("s3", **bucket)
    stored = files.find("scrolls")
    assert len(stored) > 8
    assert not [name for name in stored if CANARY.encode() in files.cat_file(name) or CANARY in name]


@pytest.mark.parametrize("fault", ["fine", 403])
def test_a_url_with_a_password_is_told_without_it(fault, web, tmp_path):
    web.faults["scan.zarr/0.0.0"] = [fault]
    url = f"{web.url.replace('://', f'://me:{CANARY}@')}/scan.zarr"
    options = ["--storage-options", json.dumps({"headers": {"X-Token": CANARY}})]
    done = run("ingest", url, "o.zarr", *options, folder=tmp_path)
    assert done.returncode == (0 if fault == "fine" else 4), done.stderr
    if fault == 403:
        assert run("info", f"{url}/none?sig={CANARY}", folder=tmp_path).returncode == 3
        assert run("info", url, f"https://me:{CANARY}@h/x", folder=tmp_path).returncode == 2
    assert written(tmp_path) == []


def tell(error):
    """A traceback with all its causes, as Python and Jupyter print it."""
    import traceback

    return "".join(traceback.format_exception(error))


def test_no_repr_card_or_traceback_has_a_secret(web):
    web.faults["scan.zarr/0.0.1"] = [403]
    url = f"{web.url.replace('://', f'://me:{CANARY}@')}/scan.zarr"
    stored, volume = open_stored(url), open_volume(url)
    shown = [repr(stored), str(stored), repr(volume), volume._repr_html_(), stored.name, repr(volume.attrs)]
    found = info(url)
    shown += [str(found), repr(found), found._repr_html_(), str(stored.identity)]
    for read in (lambda: volume.load(), lambda: verify(url), lambda: stored.read(stored_box(stored))):
        with pytest.raises(StoreError) as caught:
            read()
        shown.append(tell(caught.value))
    with pytest.raises(InputError) as missing:
        open_stored(f"{url}/none")
    shown.append(tell(missing.value))
    with pytest.raises(InputError) as unknown:
        open_store(f"gopher://me:{CANARY}@host/x")
    shown.append(tell(unknown.value))
    assert not [text for text in shown if CANARY in text]


def stored_box(stored):
    from inkzarr.core.geometry import Box

    return Box.whole(stored.shape)


def test_a_worker_that_fails_logs_no_secret(web, caplog):
    """As distributed does it: with the repr of what the task was given."""
    url = f"{web.url.replace('://', f'://me:{CANARY}@')}/scan.zarr"
    with caplog.at_level(logging.WARNING):
        logging.getLogger("distributed.worker").warning("Compute Failed %r", (open_stored(url),))
    assert "scan.zarr" in caplog.text
    assert CANARY not in caplog.text


def test_the_line_to_go_on_has_no_secret():
    from inkzarr.cli import _told

    words = ["predict", f"s3://k:{CANARY}@b/x", "--storage-options", f'{{"key": "{CANARY}"}}', "--overwrite"]
    words += [f'--storage-options={{"key": "{CANARY}"}}', "--window", "64"]
    told = list(_told(words))
    assert CANARY not in " ".join(told)
    assert told[1:3] == ["s3://b/x", "--storage-options"]
    assert told[-2:] == ["--window", "64"]


def test_urls_are_told_without_secrets():
    for url, told in {
        "https://u:p@h/a?x=1#f: no": "https://h/a no",
        "simplecache::https://u:p@h/a": "simplecache::https://h/a",
        "s3://k@b/a and http://u:p@h/b": "s3://b/a and http://h/b",
        "/a@b/c?d": "/a@b/c?d",
        "file:///a?b": "file:///a?b",
        "tcp://127.0.0.1:8786": "tcp://127.0.0.1:8786",
    }.items():
        assert hide_secrets(url) == told
