"""Settings are the same however they are given."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from inkzarr.components import ComponentSettings, components
from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Zyx
from inkzarr.core.job import RunOptions
from inkzarr.evaluate import EvaluateSettings
from inkzarr.labels import LabelSettings
from inkzarr.patches import PatchSettings
from inkzarr.split import SplitSettings
from inkzarr.view import view


def test_a_path_is_its_text(tmp_path):
    for kind, names in (
        (LabelSettings, ["like"]),
        (ComponentSettings, ["labels", "scan", "sheet"]),
        (EvaluateSettings, ["mask", "patches"]),
    ):
        assert kind(**{n: Path("a/b") for n in names}) == kind(**dict.fromkeys(names, "a/b"))
    ink = np.zeros((8, 20, 20), np.uint8)
    ink[2:5, 3:15, 4:15] = 200
    zarr.save_array(tmp_path / "ink.zarr", ink)
    settings = ComponentSettings(
        min_voxels=9, labels=tmp_path / "ids.zarr", sheet=tmp_path / "a.html", scan=tmp_path / "ink.zarr"
    )
    assert components(tmp_path / "ink.zarr", tmp_path / "a.parquet", settings).components == 1


def test_one_number_is_for_all_axes():
    assert PatchSettings(window=32, stride=16) == PatchSettings(Zyx(32, 32, 32), Zyx(16, 16, 16))
    assert SplitSettings(window=32).window == EvaluateSettings(window=(32, 32, 32)).window == Zyx.of(32)
    assert LabelSettings(shape=(1, 2, 3)).shape == Zyx(1, 2, 3)
    with pytest.raises(InputError, match="give one, or three"):
        PatchSettings(window=(1, 2))
    with pytest.raises(InputError, match="window of 1 or more"):
        SplitSettings(window=0)


def test_one_name_is_no_row_of_letters():
    assert LabelSettings(only="2023*", exclude=["a"]) == LabelSettings(only=("2023*",), exclude=("a",))
    for one in ("/none.zarr", Path("/none.zarr")):
        with pytest.raises(InputError, match=r"/none\.zarr"):
            view(one, browser=False)


def test_an_address_needs_a_port():
    for address in ("tcp://10.0.0.1:8786", "host:8786", "inproc://10.0.0.1/1/1"):
        assert RunOptions(scheduler=address).scheduler == address
    for address in ("foo", "tcp://foo"):
        with pytest.raises(InputError, match="is no address: give tcp://HOST:PORT"):
            RunOptions(scheduler=address)
