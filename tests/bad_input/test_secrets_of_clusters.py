"""What is secret of a store is in no plan, and in no log of a scheduler or its workers."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner

from inkzarr.cli import cli
from inkzarr.nn.checkpoint import save_checkpoint
from inkzarr.nn.unet import UNet3D
from tests.core.web import Web

CANARY = "CANARYq7Zx"
MAIN = [sys.executable, "-c", "from inkzarr.cli import main; main()"]
CLUSTER = """
import distributed, sys
if __name__ == "__main__":
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0")
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()
    cluster.close()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    voxels = np.random.default_rng(0).integers(1, 255, (20, 32, 40), np.uint8)
    zarr.create_array(home / "served" / "scan.zarr", data=voxels, chunks=(20, 16, 20), zarr_format=2)
    torch.manual_seed(0)
    save_checkpoint(home / "unet.pt", UNet3D(f_maps=4, levels=2))
    (home / "cluster.py").write_text(CLUSTER)
    return home


@pytest.fixture(scope="module")
def web(home):
    server = Web(home / "served")
    yield server
    server.close()


def words(web, command):
    """With a password in the URL, and a header that is secret."""
    url = f"{web.url.replace('://', f'://me:{CANARY}@')}/scan.zarr"
    options = ["--storage-options", json.dumps({"headers": {"X-Token": CANARY}})]
    return [*(word.replace("SCAN", url) for word in command.split()), *options]


@pytest.mark.parametrize(
    "command",
    [
        "ingest SCAN out.zarr --plan",
        "predict SCAN unet.pt out.zarr --window 16 --plan --json-logs",
        "flatten SCAN flat:4 out.png --depth 1 --plan",
    ],
)
def test_no_plan_tells_one(web, home, monkeypatch, command):
    monkeypatch.chdir(home)
    done = CliRunner().invoke(cli, words(web, command))
    assert done.exit_code == 0, done.output
    assert "blocks" in done.output
    assert CANARY not in done.output


@pytest.mark.slow
def test_no_log_of_a_cluster_tells_one(web, home, tmp_path):
    web.faults["scan.zarr/0.1.0"] = [403]
    with (tmp_path / "log.txt").open("w") as log:
        cluster = subprocess.Popen(
            [sys.executable, home / "cluster.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "DASK_LOGGING__DISTRIBUTED": "debug"},
        )
        try:
            address = cluster.stdout.readline().strip()
            command = (
                f"predict SCAN unet.pt out.zarr --window 16 --block 16 --device cpu --scheduler {address}"
            )
            failed = subprocess.run(
                [*MAIN, *words(web, command)], capture_output=True, text=True, check=False, cwd=home
            )
        finally:
            cluster.stdin.close()
            cluster.wait(60)
            cluster.stdout.close()
    assert CANARY not in failed.stdout + failed.stderr
    assert failed.returncode in (4, 5), failed.stderr
    told = (tmp_path / "log.txt").read_text()
    assert "predict" in told, "the workers logged what failed"
    assert CANARY not in told
    files = [path for path in (home / "out.zarr").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
