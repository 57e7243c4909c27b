"""Labels on a real scheduler with workers in other processes, some of which die; the script of docs/cluster.md."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from inkzarr.core import pool as pools
from inkzarr.core.errors import BlocksFailedError
from inkzarr.core.geometry import Zyx
from inkzarr.core.job import Job, RunOptions
from inkzarr.core.schema import VolumeSpec
from inkzarr.core.votes import LabelBlocks, VotedBlock
from inkzarr.labels import LabelSettings, labels
from inkzarr.testing.synthetic import SyntheticScroll
from tests.stored import tree

distributed = pytest.importorskip("distributed")

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("default")]

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (140, 200, 200)


@dataclass
class Started:
    """A scheduler and its workers, each a process of its own, as the commands of docs/cluster.md start them."""

    address: str
    scheduler: subprocess.Popen
    workers: list[subprocess.Popen]


def dask(*arguments):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "dask", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture
def started(tmp_path):
    told = tmp_path / "scheduler.json"
    local = ("--host", "127.0.0.1", "--no-dashboard")
    scheduler = dask("scheduler", "--port", "0", *local[:2], *local[2:], "--scheduler-file", str(told))
    workers = [
        dask(
            "worker",
            "--scheduler-file",
            str(told),
            "--nthreads",
            "1",
            *local,
            "--local-directory",
            str(tmp_path),
        )
        for _ in range(2)
    ]
    try:
        until = time.monotonic() + 60
        while not told.exists() and time.monotonic() < until:
            time.sleep(0.1)
        with distributed.Client(scheduler_file=str(told), set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
            address = client.scheduler.address
        yield Started(address, scheduler, workers)
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def scroll(tmp_path_factory):
    """Segments of a synthetic scroll, and their labels as threads of this process make them."""
    folder = tmp_path_factory.mktemp("scroll")
    SyntheticScroll(shape=SHAPE).write_segments(folder)
    make(folder, folder / "here.zarr")
    return folder, tree(folder / "here.zarr")


def make(folder, out, options=RunOptions()):
    settings = LabelSettings(shape=Zyx(*SHAPE), skip_blank=0, block=128)
    return labels(folder / "paths", folder / "inklabels", out, settings, options)


def test_the_same_bytes_and_the_same_ledger(started, scroll, tmp_path):
    folder, here = scroll
    report = make(folder, tmp_path / "out.zarr", RunOptions(scheduler=started.address))
    assert tree(tmp_path / "out.zarr") == here
    assert report.run.blocks == 8


@dataclass(frozen=True)
class Deadly:
    """Kills its process while it counts a block, the first time."""

    block: VotedBlock
    mark: str

    def __call__(self, box):
        try:
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return self.block(box)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_worker_that_dies_amid_a_block_costs_a_retry(started, scroll, tmp_path, monkeypatch):
    folder, here = scroll
    narrowed, last = LabelBlocks.narrowed, (128, 128, 128)
    mark = tmp_path / "died"

    def deadly(self, box):
        block = narrowed(self, box)
        return Deadly(block, str(mark)) if tuple(box.start) == last else block

    monkeypatch.setattr(LabelBlocks, "narrowed", deadly)
    report = make(folder, tmp_path / "out.zarr", RunOptions(scheduler=started.address))
    assert mark.exists(), "no block was underway when it died"
    assert [worker.poll() for worker in started.workers].count(None) >= 1
    assert report.run.blocks == 8
    assert tree(tmp_path / "out.zarr") == here


def test_a_scheduler_that_dies_amid_the_scan_ends_the_run(started, tmp_path, monkeypatch):
    monkeypatch.setattr(pools, "POLL_S", 0.5)
    job = Job("labels", str(tmp_path / "out.zarr"), VolumeSpec(Zyx(8, 8, 8), "u1"), Zyx.of(8), {})
    pool, failure, seen = pools.open_pool(RunOptions(scheduler=started.address), job), [], []

    def scan():
        try:
            for done in pools.map_in_order(pool, time.sleep, [0.2] * 500):
                seen.append(done)
        except BlocksFailedError as error:
            failure.append(str(error))

    thread = threading.Thread(target=scan, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not seen and time.monotonic() < until:
        time.sleep(0.05)
    started.scheduler.kill()
    thread.join(60)
    assert not thread.is_alive(), "the scan waits for a scheduler that is gone"
    assert 0 < len(seen) < 500
    assert f"the scheduler at {started.address} is gone" in failure[0]
    pool.close()


def test_the_script_of_the_page_runs_here_and_on_a_scheduler(started, tmp_path):
    """Unchanged, as a program: with the environment's scheduler, and without one."""
    (script,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "how-to" / "cluster.md").read_text(), re.DOTALL
    )
    (tmp_path / "labels_3d.py").write_text(script)
    made = []
    for name, more in (("here", {}), ("there", {"DASK_SCHEDULER_ADDRESS": started.address})):
        home = tmp_path / name
        SyntheticScroll(shape=(64, 160, 160)).write_segments(home)
        environment = os.environ | {"SCROLL": str(home), "PYTHONPATH": str(ROOT)} | more
        done = subprocess.run(
            [sys.executable, tmp_path / "labels_3d.py"],
            env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "windows with" in done.stdout
        assert ("dashboard:" in done.stderr) == bool(more), "it ran where it was not told to"
        made.append((tree(home / "labels.zarr"), (home / "patches.parquet").read_bytes()))
    assert made[0] == made[1]
