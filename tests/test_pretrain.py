"""Pretraining: hidden voxels are found again, and its checkpoint starts training."""

import json

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner

from inkzarr.cli import cli
from inkzarr.core.errors import InputError
from inkzarr.nn.checkpoint import load_checkpoint
from inkzarr.nn.config import Config
from inkzarr.nn.dataset import Source
from inkzarr.nn.sources import gap, hold_back, open_unlabelled, training
from inkzarr.nn.start import starting_network
from inkzarr.nn.tasks import masks
from inkzarr.pretrain import pretrain
from tests.learned import make, run, settings

SMALL = {
    "window": (8, 16, 16),
    "network": {"f_maps": 4, "levels": 3},
    "batch": 3,
    "rate": 3e-3,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make(tmp_path_factory.mktemp("data"))


def test_four_boxes_of_half_the_window_or_more_are_hidden():
    rng, share = np.random.default_rng(0), []
    for _ in range(200):
        hidden = masks(rng, (16, 32, 32))
        share.append(hidden.mean())
        least = (1 / 2) ** 3
        assert least <= share[-1] <= 1
    assert 0.45 < np.mean(share) < 0.75


def test_it_learns_and_its_checkpoint_starts_training(home, tmp_path):
    report = pretrain(
        [home / "scan.zarr", str(home / "scan.zarr")], tmp_path / "pre", Config(epochs=4, **SMALL)
    )
    entries = [json.loads(line) for line in (tmp_path / "pre" / "log.jsonl").read_text().splitlines()]
    assert report.valid_loss == entries[-1]["valid_loss"]
    assert report.loss == entries[-1]["loss"] < 0.8 * entries[0]["loss"]
    assert "windows kept back" in str(report)
    found = load_checkpoint(tmp_path / "pre" / "best.pt")
    assert found.lineage["stage"] == "pretrain"
    config = settings(home, epochs=1, network=None, init=str(tmp_path / "pre" / "best.pt"))
    model, _, start = starting_network(config)
    assert start.endswith("its last layer drawn anew")
    assert not torch.equal(model.final_conv.weight, found.model.final_conv.weight)
    assert torch.equal(
        model.encoders[0].basic_module.SingleConv1.conv.weight,
        found.model.encoders[0].basic_module.SingleConv1.conv.weight,
    )
    run(home, tmp_path / "run", config)
    assert "drawn anew" in load_checkpoint(tmp_path / "run" / "last.pt").lineage["start"]


def test_it_resumes_and_the_command_line_runs_it(home, tmp_path):
    (tmp_path / "run.toml").write_text(Config(epochs=1, **SMALL).to_toml())
    arguments = [
        "pretrain",
        str(home / "scan.zarr"),
        str(tmp_path / "out"),
        "--config",
        str(tmp_path / "run.toml"),
    ]
    for more in ([], ["--resume"]):
        done = CliRunner().invoke(cli, [*arguments, *more], catch_exceptions=False)
        assert done.exit_code == 0
        assert "1 epochs" in done.output
    again = CliRunner().invoke(cli, arguments)
    assert isinstance(again.exception, InputError)


def test_windows_that_are_scored_are_not_seen(home, tmp_path, capsys):
    config = Config(**SMALL, jitter=3, augment={"rotation": 0, "scale": (1, 1)})
    zarr.create_array(tmp_path / "large.zarr", data=np.ones((64, 64, 64), np.uint8), zarr_format=2)
    for url, distance in ((tmp_path / "large.zarr", 1), (home / "scan.zarr", 0)):
        source = open_unlabelled(str(url), config.window)
        learned, held = hold_back(source, config, config.window, 4)
        assert len(held.corners) == 4
        assert not {*map(tuple, learned.corners)} & {*map(tuple, held.corners)}
        assert (gap(training([learned], config, config.window, 0), held) > 0) == distance
    few = Source(source.voxels, None, source.corners[:1])
    assert all(len(part.corners) == 1 for part in hold_back(few, config, config.window, 1))
    pretrain([home / "scan.zarr"], tmp_path / "out", config.with_(epochs=1, windows_per_epoch=3, jitter=16))
    assert "WARNING: training sees windows that are scored: too small is scan.zarr" in capsys.readouterr().err


def test_air_is_refused_and_scans_are_needed(tmp_path):
    zarr.create_array(
        tmp_path / "air.zarr", shape=(8, 16, 16), dtype="uint8", chunks=(8, 8, 8), zarr_format=2
    )
    with pytest.raises(InputError, match="there is no scan to pretrain on"):
        pretrain([], tmp_path / "out", Config(**SMALL))
    with pytest.raises(InputError, match="no Zarr volume"):
        pretrain([tmp_path / "nowhere.zarr"], tmp_path / "out", Config(**SMALL))
    assert not (tmp_path / "out").exists()
