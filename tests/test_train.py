"""Training: it learns, resumes exactly, shares its steps, and says what is wrong."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner
from PIL import Image

from inkzarr.cli import cli
from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Zyx
from inkzarr.core.patches import Patches, write_patches
from inkzarr.nn.checkpoint import load_checkpoint, save_checkpoint
from inkzarr.nn.config import Augment, Config, read_config
from inkzarr.nn.gradients import Gradients
from inkzarr.nn.loop import schedule
from inkzarr.nn.sources import gap, open_labelled, training
from inkzarr.nn.unet import UNet3D
from inkzarr.train import train
from tests.learned import SHAPE, WINDOW, make, run, settings

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(home):
    """In a process of its own: libraries that other tests load may round otherwise."""
    done = script(home, home / "run")
    assert done.returncode == 0, done.stderr
    return home / "run"


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights(path):
    return load_checkpoint(path).model.state_dict()


def assert_same_run(one, other):
    for name in ("last.pt", "best.pt"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    timeless = [
        [
            {k: v for k, v in e.items() if k not in ("seconds", "waited", "decoded", "decoded_by_needed")}
            for e in log(out)
        ]
        for out in (one, other)
    ]
    assert timeless[0] == timeless[1]


def script(home, out, *before, **more):
    command = [sys.executable, *before, str(HERE / "learned.py"), str(home), str(out), json.dumps(more)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE.parent),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=500)


def test_it_learns_and_leaves_what_it_promises(home, tmp_path):
    seen = []
    report = run(home, tmp_path / "run", settings(home, epochs=6), on_epoch=seen.append)
    entries = log(tmp_path / "run")
    assert seen == entries
    assert [entry["epoch"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert entries[-1]["loss"] < 0.7 * entries[0]["loss"]
    assert report.f05 == entries[-1]["f05"] > 0.8
    assert report.auc > 0.9
    assert "6 epochs" in str(report)
    last = load_checkpoint(tmp_path / "run" / "last.pt")
    assert last.lineage["stage"] == "train"
    assert last.lineage["source"] == "scan.zarr"
    assert not list((tmp_path / "run").rglob("*.partial"))
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 6
    with Image.open(tmp_path / "run" / "samples" / "epoch_001.png") as sheet:
        assert sheet.width > 500
    assert read_config(tmp_path / "run" / "config.toml") == settings(home, epochs=6)


@pytest.mark.slow
@pytest.mark.parametrize("die_at", [5, 9])
def test_killed_and_resumed_it_ends_with_the_same_weights(home, undisturbed, tmp_path, die_at):
    killed = script(home, tmp_path / "run", die_at=die_at)
    assert killed.returncode == -9, killed.stderr
    resumed = script(home, tmp_path / "run")
    assert f"resumed at step {die_at - 1} of 12" in resumed.stderr
    assert_same_run(tmp_path / "run", undisturbed)


def test_resuming_a_finished_run_changes_nothing(home, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "run" / ".best.pt.1f.partial").touch()
    report = run(home, tmp_path / "run", settings(home, workers=1), resume=True)
    assert not list((tmp_path / "run").rglob("*.partial")), "what the killed run left"
    assert report.step == log(undisturbed)[-1]["step"]
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_folder_of_others_is_left_as_it_is(home, tmp_path):
    strays = [tmp_path / "run" / ".film.mp4.partial", tmp_path / "run" / "deep" / ".last.pt.partial"]
    strays[1].parent.mkdir(parents=True)
    for stray in strays:
        stray.touch()
    with pytest.raises(InputError, match="exists: add --resume"):
        run(home, tmp_path / "run", settings(home, workers=1))
    assert all(stray.exists() for stray in strays)


@pytest.mark.slow
def test_readers_change_nothing(home, undisturbed, tmp_path):
    done = script(home, tmp_path / "run", workers=2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "last.pt").read_bytes() == (undisturbed / "last.pt").read_bytes()


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(home, tmp_path):
    more = {"loss": {"dice": 0.5}}
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    both = script(home, tmp_path / "two", *launcher, **more)
    assert both.returncode == 0, both.stderr
    run(home, tmp_path / "one", settings(home, batch=6, **more))
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    for mine, theirs in zip(one, two, strict=True):
        for name in ("loss", "valid_loss", "f05", "auc"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5), name
    pairs = zip(
        weights(tmp_path / "one/last.pt").values(), weights(tmp_path / "two/last.pt").values(), strict=True
    )
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)


def test_a_run_is_not_taken_up_by_more_processes(home, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29518"]
    done = script(home, tmp_path / "run", *launcher)
    assert done.returncode != 0
    assert "was begun with other settings (processes)" in done.stderr
    assert_same_run(undisturbed, tmp_path / "run")


def test_validation_without_labels_is_refused(home, tmp_path):
    config = settings(home, valid_labels=str(tmp_path / "labels.zarr"))
    for name, dtype in (("ink", np.uint8), ("count", np.uint16)):
        array = zarr.create_array(
            tmp_path / "labels.zarr" / name, shape=SHAPE, dtype=dtype, chunks=(16, 16, 16), zarr_format=2
        )
    zarr.open_group(tmp_path / "labels.zarr", mode="a", zarr_format=2)
    array[0, 0, 0] = 1
    with pytest.raises(
        InputError, match=r"nothing is labelled by .*labels.zarr in .*valid.parquet: give valid_l"
    ):
        run(home, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()
    array[0, 0, 32] = 1
    write_patches(tmp_path / "beside.parquet", Patches(np.array([[8, 0, 32]]), window=Zyx.of(WINDOW)))
    config = config.with_(valid_patches=str(tmp_path / "beside.parquet"))
    with pytest.raises(InputError, match="no voxel of the validation windows is labelled"):
        run(home, tmp_path / "run", config)


def test_all_windows_of_a_scan_keep_their_distance(home, tmp_path):
    first = str(home / "scan.zarr"), str(home / "labels.zarr")
    write_patches(tmp_path / "far.parquet", Patches(np.array([[0, 0, 0]]), window=Zyx.of(WINDOW)))
    near = open_labelled(*first, str(home / "train.parquet"))[0]
    far = open_labelled(*first, str(tmp_path / "far.parquet"))[0]
    valid = open_labelled(*first, str(home / "valid.parquet"))[0]
    config = Config(jitter=0, augment={"rotation": 0, "scale": (1, 1)})
    assert gap(training([far], config, WINDOW, 0), valid) == 16
    assert gap(training([far, near], config, WINDOW, 0), valid) == 0


def test_steps_without_labels_are_skipped_and_counted(home, tmp_path):
    corners = np.array([[0, 0, 0]] * 3 + [[8, 16, 16]] * 3)
    write_patches(tmp_path / "some.parquet", Patches(corners, window=Zyx(4, 4, 4)))
    config = settings(
        home, jitter=0, batch=1, epochs=1, network={"f_maps": 4, "levels": 2}, augment=Augment.off()
    )
    report = train(
        home / "scan.zarr", home / "labels.zarr", tmp_path / "some.parquet", tmp_path / "run", config
    )
    assert report.skipped == 3
    assert np.isfinite(report.loss)


def test_an_epoch_without_any_label_is_not_the_best(home, tmp_path):
    write_patches(tmp_path / "none.parquet", Patches(np.array([[0, 0, 0]] * 4), window=Zyx(4, 4, 4)))
    small = {"jitter": 0, "network": {"f_maps": 4, "levels": 2}, "augment": Augment.off()}
    config = settings(home, epochs=1, valid_patches=None, **small)
    place = home / "scan.zarr", home / "labels.zarr", tmp_path / "none.parquet"
    assert train(*place, tmp_path / "run", config).skipped == 2
    assert (tmp_path / "run" / "last.pt").exists()
    assert not (tmp_path / "run" / "best.pt").exists()


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_last_checkpoint(
    home, tmp_path, monkeypatch, what
):
    honest, calls = Gradients.__call__, []

    def call(self, *given):
        calls.append(1)
        sums = honest(self, *given)
        if len(calls) == 12:
            (sums if what == "loss" else self.weights[0].grad).mul_(float("nan"))
        return sums

    monkeypatch.setattr(Gradients, "__call__", call)
    told = r"not a number at step 12 \(epoch 2\).*last.pt holds the last good epoch"
    with pytest.raises(InputError, match=told):
        run(home, tmp_path / "run", settings(home))
    assert load_checkpoint(tmp_path / "run" / "last.pt").lineage["epoch"] == "1"


def test_a_limit_of_time_ends_cleanly_and_a_checkpoint_is_there(home, tmp_path, capsys):
    report = run(home, tmp_path / "run", settings(home, epochs=1000, max_minutes=0.02))
    assert report.step < 6000
    assert f"train: 100 %, {report.step} of {report.step} steps" in capsys.readouterr().err
    assert log(tmp_path / "run")[-1]["done"]
    assert load_checkpoint(tmp_path / "run" / "last.pt")
    assert run(home, tmp_path / "run", settings(home, epochs=1000, max_minutes=0.02), resume=True) == report


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_smaller_floats_learn_too(home, tmp_path, dtype):
    report = run(home, tmp_path / "run", settings(home, epochs=1, dtype=dtype))
    assert np.isfinite(report.loss)


def test_tensorboard_is_written_where_asked_for(home, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(home, tmp_path / "run", settings(home, epochs=2, tensorboard=True))
    board = events.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in ("loss", "f05", "rate"):
        told = [(entry["step"], pytest.approx(entry[name], rel=1e-6)) for entry in log(tmp_path / "run")]
        assert [(scalar.step, scalar.value) for scalar in board.Scalars(name)] == told


def test_tensorboard_that_is_missing_is_told_before_anything_is_written(home, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match=r"pip install .inkzarr\[tensorboard\]"):
        run(home, tmp_path / "run", settings(home, tensorboard=True))
    assert not (tmp_path / "run").exists()


def test_it_goes_on_from_a_checkpoint_in_any_order_of_axes(home, undisturbed, tmp_path):
    found = load_checkpoint(undisturbed / "last.pt")
    config = settings(home, epochs=1, rate=1e-12, ema=0, network=None, init=str(undisturbed / "last.pt"))
    run(home, tmp_path / "run", config)
    same = weights(tmp_path / "run" / "last.pt")
    assert all(torch.allclose(a, same[k], atol=1e-6) for k, a in found.model.state_dict().items())
    turned = UNet3D(f_maps=4, levels=3)
    save_checkpoint(tmp_path / "yxz.pt", turned, axes="yxz")
    run(home, tmp_path / "turned", config.with_(init=str(tmp_path / "yxz.pt")))
    window = torch.rand(1, 1, 8, 16, 12)
    ours = load_checkpoint(tmp_path / "turned" / "last.pt").model(window)
    theirs = turned(window.permute(0, 1, 3, 4, 2)).permute(0, 1, 4, 2, 3)
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_flat_networks_learn_from_single_planes(home, tmp_path):
    flat = {"f_maps": 4, "levels": 3, "flat": True}
    config = settings(home, epochs=1, window=(1, 16, 16), network=flat)
    run(home, tmp_path / "run", config)
    found = load_checkpoint(tmp_path / "run" / "last.pt")
    assert found.model.flat
    assert found.model(torch.rand(1, 1, 1, 8, 12)).shape == (1, 1, 1, 8, 12)
    save_checkpoint(tmp_path / "across.pt", found.model, axes="yxz")
    again = config.with_(init=str(tmp_path / "across.pt"))
    with pytest.raises(InputError, match="sees flat planes across y, training across z"):
        run(home, tmp_path / "again", again)
    save_checkpoint(tmp_path / "zxy.pt", found.model, axes="zxy")
    run(home, tmp_path / "again", config.with_(init=str(tmp_path / "zxy.pt"), rate=1e-12, ema=0))
    window = torch.rand(1, 1, 1, 8, 12)
    turned = found.model(window.transpose(3, 4)).transpose(3, 4)
    assert torch.allclose(load_checkpoint(tmp_path / "again" / "last.pt").model(window), turned, atol=1e-4)


def test_what_is_wrong_is_told_before_anything_is_written(home, undisturbed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    write_patches("empty.parquet", Patches(np.empty((0, 3), np.int64)))
    write_patches("outside.parquet", Patches(np.array([[0, 48, 0]])))
    Path("typo.toml").write_text("epoch = 3\n")
    Path("seed.toml").write_text(settings(home, seed=1).to_toml())
    Path("net.toml").write_text("[network]\nf_maps = 16\n")
    Path("flat.toml").write_text("[network]\nf_maps = 4\nlevels = 3\nflat = true\n")
    Path("window.toml").write_text("window = [8, 16, 10]\n[network]\nlevels = 3\n")
    Path("scan.toml").write_text("[[scans]]\nvolume = 'x'\n")
    import zarr

    for name in ("ink", "count"):
        zarr.create_array(
            f"small.zarr/{name}", shape=(9, 9, 9), dtype="uint8", chunks=(9, 9, 9), zarr_format=2
        )
    zarr.open_group("small.zarr", mode="a", zarr_format=2)
    scan, labels, table = str(home / "scan.zarr"), str(home / "labels.zarr"), str(home / "train.parquet")
    wrong = {
        "do not belong to the scan .* of shape 24,48,48: make them": (scan, "small.zarr", table, "out"),
        "empty.parquet have no window": (scan, labels, "empty.parquet", "out"),
        "outside.parquet have a window at 0,48,0, outside": (scan, labels, "outside.parquet", "out"),
        "key epoch does not exist: did you mean epochs": (scan, labels, table, "out", "--config", "typo.toml"),
        "is of another architecture, f_maps .*than .network.": (
            scan, labels, table, "out", "--config", "net.toml", "--init", str(undisturbed / "last.pt"),
        ),
        "than .network., flat, f_maps": (
            scan, labels, table, "out", "--config", "flat.toml", "--init", str(undisturbed / "last.pt"),
        ),
        "window 8,16,10 does not fit the network": (scan, labels, table, "out", "--config", "window.toml"),
        "has no labels or no patches": (scan, labels, table, "out", "--config", "scan.toml"),
        "exists: add --resume": (scan, labels, table, str(undisturbed), "--config", "seed.toml"),
        r"other settings \(seed\)": (
            scan, labels, table, str(undisturbed), "--resume", "--config", "seed.toml",
        ),
        "no Zarr volume at nowhere": ("nowhere", labels, table, "out"),
        "typo.toml is a file: a run needs a folder": (
            scan, labels, table, "typo.toml", "--config", "seed.toml",
        ),
        "typo.toml/out cannot be written": (scan, labels, table, "typo.toml/out", "--config", "seed.toml"),
    }  # fmt: skip
    for told, arguments in wrong.items():
        result = CliRunner().invoke(cli, ["train", *arguments])
        assert isinstance(result.exception, InputError), (told, result.output, result.exception)
        assert result.exception.exit_code == 3
        assert re.search(told, str(result.exception)), str(result.exception)
        assert "\n" not in str(result.exception)
        assert not Path("out").exists()


def test_networks_of_other_channels_are_refused(home, tmp_path):
    save_checkpoint(tmp_path / "two.pt", UNet3D(1, 2, f_maps=4, levels=3))
    with pytest.raises(InputError, match=r"two.pt takes 1 channels and gives 2: one of each is needed"):
        run(home, tmp_path / "run", settings(home, network=None, init=str(tmp_path / "two.pt")))


def test_the_rate_rises_and_falls():
    assert max(schedule(part, 1e-4) for part in (0, 1e-5, 1e-4)) == 1
    rates = [schedule(part / 100, 0.1) for part in range(101)]
    assert rates[10] == 1
    assert all(a <= b for a, b in itertools.pairwise(rates[:11]))
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[0] > 0
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_unlabelled_voxels_count_only_where_asked_for(home, tmp_path):
    from inkzarr.nn.config import Loss

    scores = []
    for unlabelled in ("ignore", "no ink"):
        config = settings(home, epochs=1, batch=1, loss=Loss(unlabelled=unlabelled))
        scores.append(run(home, tmp_path / unlabelled, config))
    assert scores[0].loss != scores[1].loss
