"""The same bytes from a real scheduler and two worker processes, one of which may die."""

import contextlib
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
import zarr

import inkzarr
from inkzarr.components import ComponentSettings, components
from inkzarr.core import runner
from inkzarr.core.errors import BlocksFailedError, InputError
from inkzarr.core.geometry import Zyx
from inkzarr.core.job import Job, RunOptions
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import VolumeSpec
from inkzarr.core.store import open_stored, open_volume
from inkzarr.nn.checkpoint import save_checkpoint
from inkzarr.nn.unet import UNet3D
from inkzarr.predict import PredictSettings, predict_volume
from tests.stored import tree

distributed = pytest.importorskip("distributed")

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("default")]

SHAPE = Zyx(140, 260, 256)


@pytest.fixture(scope="module")
def cluster():
    """A scheduler and two workers, each a process of its own."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
    ) as started:
        yield started


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan")
    voxels = np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)
    zarr.create_array(folder / "scan.zarr", data=voxels, chunks=(64, 64, 64), zarr_format=2)
    return folder / "scan.zarr"


def copy_job(out):
    return Job("copy", str(out), VolumeSpec(SHAPE, np.dtype("uint8")), Zyx.of(128), {"of": "scan"})


class Copy:
    """A block function that can be sent: slow, and failing or deadly where it is told to."""

    def __init__(self, scan, *, slow=0.0, bad=(), deadly=None):
        self.stored, self.slow, self.bad, self.deadly = open_stored(str(scan)), slow, set(bad), deadly

    def __call__(self, box):
        time.sleep(self.slow)
        if tuple(box.start) in self.bad:
            msg = "told to fail"
            raise ValueError(msg)
        if self.deadly is not None:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.deadly, os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)
        return self.stored.read(box)


@pytest.fixture(scope="module")
def local(scan, tmp_path_factory):
    out = tmp_path_factory.mktemp("local") / "out.zarr"
    write_blocks(copy_job(out), Copy(scan), RunOptions(workers=2))
    return tree(out)


def test_a_run_on_a_cluster_has_the_bytes_of_a_local_one(cluster, scan, local, tmp_path, capsys):
    out = tmp_path / "out.zarr"
    options = RunOptions(scheduler=cluster.scheduler_address)
    report = write_blocks(copy_job(out), Copy(scan), options)
    assert report.blocks == 12
    assert tree(out) == local
    assert "dashboard: http://" in capsys.readouterr().err
    assert write_blocks(copy_job(out), Copy(scan), options).resumed == 12


def test_tasks_are_named_by_stage_and_place(cluster, scan, tmp_path):
    seen = set()

    class Noted(distributed.diagnostics.plugin.SchedulerPlugin):
        def transition(self, key, start, finish, *rest, **more):
            if finish == "processing":  # those of an earlier run are only forgotten
                seen.add(key)

    noted = Noted()
    cluster.scheduler.add_plugin(noted, name="noted")
    write_blocks(copy_job(tmp_path / "out.zarr"), Copy(scan), RunOptions(scheduler=cluster.scheduler_address))
    cluster.scheduler.remove_plugin(name="noted")
    names = {key[0] for key in seen}
    assert len(names) == 1, "one group of tasks for one run"
    assert names.pop().startswith("copy-")
    assert {key[1:] for key in seen} == {(z, y, x) for z in (0, 128) for y in (0, 128, 256) for x in (0, 128)}
    assert {distributed.utils.key_split(key) for key in seen} == {"copy"}


def test_components_on_a_cluster(cluster, scan, tmp_path):
    told = []
    for name, scheduler in (("here", None), ("there", cluster.scheduler_address)):
        sheet = tmp_path / f"{name}.html"
        settings = ComponentSettings(0.9, 2, labels=tmp_path / f"{name}.zarr", sheet=sheet, block=128)
        table = tmp_path / f"{name}.parquet"
        components(scan, table, settings, RunOptions(scheduler=scheduler))
        told.append((table.read_bytes(), tree(tmp_path / f"{name}.zarr" / "0"), sheet.read_bytes()))
    assert told[0] == told[1]


def test_a_lazy_array_on_a_cluster(cluster, scan, local, tmp_path):
    lazy = open_volume(scan).data
    write_blocks(copy_job(tmp_path / "out.zarr"), lazy, RunOptions(scheduler=cluster.scheduler_address))
    assert tree(tmp_path / "out.zarr") == local


def test_a_worker_that_dies_costs_a_retry(cluster, scan, local, tmp_path):
    before = {worker.worker_address for worker in cluster.workers.values()}
    deadly = Copy(scan, deadly=str(tmp_path / "died"))
    report = write_blocks(
        copy_job(tmp_path / "out.zarr"), deadly, RunOptions(scheduler=cluster.scheduler_address)
    )
    assert (tmp_path / "died").exists()
    assert report.blocks == 12
    assert tree(tmp_path / "out.zarr") == local
    assert before


def test_blocks_that_fail_are_reported_and_done_later(cluster, scan, local, tmp_path):
    options = RunOptions(scheduler=cluster.scheduler_address)
    with pytest.raises(BlocksFailedError, match=r"2 of 12 blocks failed.*128:140,0:128,0:128: told to fail"):
        write_blocks(copy_job(tmp_path / "out.zarr"), Copy(scan, bad=[(128, 0, 0), (0, 256, 128)]), options)
    report = write_blocks(copy_job(tmp_path / "out.zarr"), Copy(scan), options)
    assert report.resumed == 10
    assert tree(tmp_path / "out.zarr") == local


def test_the_scheduler_dies(scan, local, tmp_path, monkeypatch):
    """What was written counts; the run ends with a message and is taken up elsewhere."""
    out = tmp_path / "out.zarr"
    monkeypatch.setattr(runner, "FLUSH_EVERY_S", 0.0)
    failure = []
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as doomed:
        options = RunOptions(scheduler=doomed.scheduler_address, workers=2)

        def run():
            try:
                write_blocks(copy_job(out), Copy(scan, slow=0.3), options)
            except Exception as error:  # noqa: BLE001
                failure.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        until = time.monotonic() + 120
        while not list((out / ".inkzarr").rglob("blocks-*")) and time.monotonic() < until:
            time.sleep(0.02)
    thread.join(30)
    assert not thread.is_alive(), "the run waits for a scheduler that is gone"
    assert isinstance(failure[0], BlocksFailedError)
    assert "is gone; what is written stays" in str(failure[0])
    report = write_blocks(copy_job(out), Copy(scan), RunOptions(workers=2))
    assert report.resumed > 0
    assert tree(out) == local


def test_predict_on_a_cluster(cluster, scan, tmp_path):
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "unet.pt", UNet3D(f_maps=4, levels=2))
    settings = PredictSettings(window=32, overlap=0, block=128, box="0:140,0:128,0:256")
    for name, options in (("here", RunOptions()), ("there", RunOptions(scheduler=cluster.scheduler_address))):
        out = str(tmp_path / name / "out.zarr")
        predict_volume(str(scan), str(tmp_path / "unet.pt"), out, settings, options)
    assert tree(tmp_path / "here") == tree(tmp_path / "there")
    assert open_volume(tmp_path / "there" / "out.zarr").max() > 0


def test_no_scheduler_there(scan, tmp_path):
    """Told before anything is begun, or deleted."""
    out = tmp_path / "out.zarr"
    out.mkdir()
    (out / ".zgroup").write_text('{"zarr_format": 2}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inkzarr.core.pool.CONNECT_S", 1)
        with pytest.raises(InputError, match=r"no scheduler answers at tcp://127\.0\.0\.1:1 .*leave it out"):
            write_blocks(copy_job(out), Copy(scan), RunOptions(scheduler="tcp://127.0.0.1:1", overwrite=True))
    assert tree(out) == {".zgroup": b'{"zarr_format": 2}'}


def test_a_cluster_is_started_joined_and_shown(scan, local, tmp_path, monkeypatch):
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    with inkzarr.cluster(workers=1, memory="1GB") as started:
        assert started.dashboard.startswith("http://")
        assert f'<a href="{started.dashboard}"' in started._repr_html_()
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", started.address)
        with inkzarr.cluster() as joined:
            assert joined == started
            write_blocks(copy_job(tmp_path / "out.zarr"), Copy(scan), RunOptions(scheduler=joined.address))
        assert inkzarr.cluster(started.address) == started, "what was joined runs on"
    assert tree(tmp_path / "out.zarr") == local


def test_no_cluster_to_join(monkeypatch):
    monkeypatch.setattr("inkzarr.core.cluster.CONNECT_S", 1)
    with pytest.raises(InputError, match=r"no scheduler answers at tcp://127\.0\.0\.1:1 "):
        inkzarr.cluster("tcp://127.0.0.1:1")
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(InputError, match=r'pip install "inkzarr\[cluster\]"'):
        inkzarr.cluster()
