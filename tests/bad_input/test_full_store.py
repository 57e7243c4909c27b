"""A store that has no room left: the run says so, nothing is called done, and goes on once there is room."""

import json

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

from inkzarr.cli import cli
from inkzarr.core import lock, remote, runner
from inkzarr.core.errors import BlocksFailedError, InputError, StoreError
from inkzarr.core.store import open_stored
from tests.core.line import Line
from tests.stored import keys

FULL = 507
SHAPE = (8, 256, 384)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("given")
    scan = np.random.default_rng(0).integers(1, 255, SHAPE, dtype=np.uint8)
    tifffile.imwrite(home / "scan.tif", scan)
    done = CliRunner().invoke(cli, ["ingest", f"{home}/scan.tif", f"{home}/scan.zarr", "--voxel-size", "8"])
    assert done.exit_code == 0, done.output
    return home


@pytest.fixture
def line(moto, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(runner, "FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(lock, "SETTLE_S", 0.01)
    line = Line(moto)
    yield line
    line.close()


COMMANDS = {
    "ingest": ["ingest", "HOME/scan.tif", "OUT", "--voxel-size", "8"],
    "components": [
        "components", "HOME/scan.zarr", "TMP/ids.parquet", "--labels", "OUT", "--min-voxels", "1",
    ],
}  # fmt: skip


@pytest.mark.parametrize("at", ["/0/0/1/1", ".jsonl"], ids=["a chunk", "the ledger"])
@pytest.mark.parametrize("stage", COMMANDS)
def test_it_is_told_and_the_run_goes_on_when_there_is_room(s3, line, home, tmp_path, stage, at):
    options = {**s3, "client_kwargs": {"endpoint_url": line.url}}

    def run(out):
        places = {"HOME": str(home), "TMP": str(tmp_path), "OUT": f"s3://scrolls/{out}"}
        words = list(COMMANDS[stage])
        for name, place in places.items():
            words = [word.replace(name, place) for word in words]
        return CliRunner().invoke(cli, [*words, "--storage-options", json.dumps(options)])

    name = f"{stage}{len(at)}"
    assert run(f"{name}/whole.zarr").exit_code == 0
    line.faults[at] = [FULL]
    full = run(f"{name}/out.zarr")
    with pytest.raises((StoreError, BlocksFailedError), match=r"cannot write .*InsufficientCapacity"):
        raise full.exception
    with pytest.raises(InputError, match="is unfinished"):
        open_stored(f"s3://scrolls/{name}/out.zarr", storage_options=s3).require_finished()
    line.faults.clear()
    assert run(f"{name}/out.zarr").exit_code == 0
    whole, found = (keys(s3, f"scrolls/{name}/{each}.zarr") for each in ("whole", "out"))
    without = {key: body for key, body in whole.items() if not key.endswith("manifest.json")}
    assert without == {key: found[key] for key in without}
    assert whole.keys() == found.keys()
