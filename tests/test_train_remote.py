"""Training on scans of the web: faults pass by without a trace, or end the run and name the chunk."""

import pytest

from inkzarr.core import remote
from inkzarr.core.errors import StoreError
from inkzarr.train import train
from tests.core.web import Web
from tests.learned import make, settings

pytest.importorskip("aiohttp")

SMALL = {"f_maps": 4, "levels": 2}


@pytest.fixture
def web(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    server = Web(make(tmp_path))
    yield server
    server.close()


def chunks(folder, name):
    return [f"{name}/{path.name}" for path in (folder / name).iterdir() if path.name[0].isdigit()]


def test_two_scans_one_of_them_remote_and_failing_give_the_weights_of_local_ones(web, tmp_path):
    home, table = web.folder, str(web.folder / "train.parquet")
    keys = chunks(home, "scan.zarr") + chunks(home, "labels.zarr/count")
    web.faults = {key: [503, "reset", "short", "html", "fine"] for key in keys}
    weights = []
    for place in (str(home), web.url):
        second = {"volume": f"{place}/scan.zarr", "labels": f"{place}/labels.zarr", "patches": table}
        config = settings(home, epochs=1, scans=[second], valid_patches=None, network=SMALL)
        near = home / "scan.zarr", home / "labels.zarr", table
        report = train(*near, tmp_path / f"run{len(weights)}", config)
        assert report.step == 12, "the windows of both scans, three in a step"
        weights.append((tmp_path / f"run{len(weights)}" / "last.pt").read_bytes())
    assert weights[0] == weights[1]
    assert all(web.asked[key] >= 5 for key in chunks(home, "scan.zarr"))


def test_a_fault_that_lasts_ends_the_run_and_names_the_chunk(web, tmp_path):
    web.faults["scan.zarr/1.2.0"] = [403]
    place = f"{web.url}/scan.zarr", f"{web.url}/labels.zarr", web.folder / "train.parquet"
    with pytest.raises(StoreError, match=r"1.2.0 of .*scan.zarr") as error:
        train(*place, tmp_path / "run", settings(web.folder, epochs=1))
    assert error.value.exit_code == 4
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "last.pt").exists()
