"""A volume with nan: every stage refuses it in one line or writes it as it is; none makes ink of it."""

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner

from inkzarr.cli import cli
from inkzarr.core.errors import InputError
from inkzarr.nn.checkpoint import save_checkpoint
from inkzarr.nn.unet import UNet3D

SHAPE = (16, 40, 40)
CONFIG = """
epochs = 1
batch = 1
window = [8, 16, 16]
device = "cpu"
workers = 0
[network]
f_maps = 4
levels = 2
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("nan")
    voxels = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    voxels[3:5, 10:12] = np.nan
    zarr.create_array(home / "scan.zarr", data=voxels, chunks=SHAPE, zarr_format=2)
    labels = zarr.create_group(home / "labels.zarr", zarr_format=2)
    labels.create_array("ink", data=(voxels > 0.5) * np.uint8(255), chunks=SHAPE)
    labels.create_array("count", data=np.ones(SHAPE, np.uint16), chunks=SHAPE)
    np.save(home / "places.npy", np.array([[0, 0, 0], [0, 0, 16], [0, 16, 0]]))
    (home / "run.toml").write_text(CONFIG)
    torch.manual_seed(0)
    save_checkpoint(home / "unet.pt", UNet3D(f_maps=4, levels=2))
    return home


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("ingest scan.zarr OUT.zarr --dtype keep", "a scan is stored as uint8 or uint16"),
        ("predict scan.zarr unet.pt OUT.zarr --window 16 --device cpu", "gave nan in window 0:16,0:16,0:16"),
        ("flatten scan.zarr flat:4 OUT.png --depth 1", "holds nan: a volume of floats is flattened where"),
        ("components scan.zarr OUT.parquet", "holds float32: a prediction is uint8"),
        ("evaluate scan.zarr labels.zarr --out OUT.html", "probability nan cannot be scored"),
        ("export scan.zarr OUT/*.png", "float32 holds no grey levels"),
        ("pretrain scan.zarr OUT --config run.toml", "is not a number at step .* check the scan for nan"),
        ("train scan.zarr labels.zarr places.npy OUT --config run.toml", "is not a number at step "),
    ],
)
def test_it_is_refused(home, tmp_path, monkeypatch, command, told):
    monkeypatch.chdir(home)
    words = [word.replace("OUT", f"{tmp_path}/out") for word in command.split()]
    with pytest.raises(InputError, match=told):
        raise CliRunner().invoke(cli, words).exception
    assert not list(tmp_path.glob("out.[!z]*")), "no sheet, table or page"
    assert not list(tmp_path.rglob("*.pt")), "no checkpoint"


def test_it_is_written_as_it_is(home, tmp_path):
    import nrrd

    out = tmp_path / "scan.nrrd"
    assert CliRunner().invoke(cli, ["export", f"{home}/scan.zarr", str(out)]).exit_code == 0
    np.testing.assert_array_equal(
        nrrd.read(str(out), index_order="C")[0], zarr.open_array(home / "scan.zarr", mode="r")[:]
    )
