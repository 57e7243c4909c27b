"""Blocks known to lie in air are neither computed nor recorded: what is absent reads as zeros."""

import json
import pickle
import shutil

import numpy as np
import pytest
import zarr

from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.ledger import Ledger
from inkzarr.core.runner import _Task
from inkzarr.core.store import open_stored, open_volume
from inkzarr.nn.aside import Column
from inkzarr.nn.blocks import Run
from inkzarr.nn.columns import Columns
from inkzarr.predict import PredictSettings, plan_predict, predict, predict_volume
from inkzarr.verify import verify

SHAPE = (700, 160, 40)
SETTINGS = PredictSettings(window=(32, 16, 16), block=128)
SOLID = ((Box(Zyx(30, 10, 5), Zyx(90, 30, 38))), Box(Zyx(500, 130, 0), Zyx(560, 150, 30)))
HELD = {(0, 0, 0), (384, 0, 0), (384, 128, 0), (512, 0, 0), (512, 128, 0)}
"""Where blocks begin that a window touches of which a chunk is stored."""


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "scan.zarr"
    voxels = np.zeros(SHAPE, np.uint8)
    for box in SOLID:
        voxels[box.slices] = np.random.default_rng(3).integers(1, 255, box.shape, np.uint8)
    zarr.create_array(path, data=voxels, chunks=(32, 32, 32), zarr_format=2)
    return str(path)


@pytest.fixture(scope="module")
def whole(scan, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "ink.zarr"
    predict_volume(scan, checkpoint, str(out), SETTINGS)
    return out


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def records(out):
    ledger = Ledger(zarr.storage.LocalStore(out), "0")
    assert ledger.load()
    return {tuple(box.start) for box in ledger.records}


def test_they_are_left_out_and_read_as_zeros(scan, checkpoint, whole):
    expected = predict(open_volume(scan), checkpoint, window=(32, 16, 16), block=1024).values
    np.testing.assert_array_equal(open_volume(whole).values, expected)
    assert records(whole) == HELD
    manifest = json.loads((whole / ".inkzarr" / "0" / "manifest.json").read_text())
    assert (manifest["sparse"], manifest["blocks"], manifest["state"]) == (True, len(HELD), "done")
    occupied = open_stored(str(whole)).may_exceed(0)
    np.testing.assert_array_equal(occupied[1:3], False)
    assert occupied[0, 0, 0]


def test_what_is_absent_is_verified(whole, tmp_path):
    assert verify(whole).damaged == []
    damaged = tmp_path / "ink.zarr"
    shutil.copytree(whole, damaged)
    stray = damaged / "0" / "2" / "0" / "0"
    stray.parent.mkdir(parents=True)
    shutil.copy(damaged / "0" / "0" / "0" / "0", stray)
    assert verify(damaged).damaged == ["0/2/0/0 holds voxels where only zeros were written"]


@pytest.mark.parametrize("after", range(len(HELD)))
def test_a_run_that_was_stopped_is_taken_up(scan, checkpoint, whole, tmp_path, monkeypatch, after):
    out, original, written = tmp_path / "ink.zarr", _Task._write, []

    def stopping(*given):
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(given[1])
        return original(*given)

    monkeypatch.setattr(_Task, "_write", stopping)
    with pytest.raises(KeyboardInterrupt):
        predict_volume(scan, checkpoint, str(out), SETTINGS)
    monkeypatch.undo()
    assert not open_stored(str(out)).finished
    report = predict_volume(scan, checkpoint, str(out), SETTINGS)
    assert report.blocks == len(HELD)
    assert contents(out) == contents(whole)
    assert predict_volume(scan, checkpoint, str(out), SETTINGS).resumed == len(HELD)


def test_a_ledger_that_does_not_say_what_is_left_out_is_taken_up(
    scan, checkpoint, whole, tmp_path, monkeypatch
):
    out = tmp_path / "ink.zarr"
    manifest = out / ".inkzarr" / "0" / "manifest.json"
    monkeypatch.setattr(_Task, "_write", lambda *_: 1 / 0)
    with pytest.raises(Exception, match="none is written"):
        predict_volume(scan, checkpoint, str(out), SETTINGS)
    monkeypatch.undo()
    told = json.loads(manifest.read_text())
    del told["sparse"], told["blocks"]
    manifest.write_text(json.dumps(told))
    predict_volume(scan, checkpoint, str(out), SETTINGS)
    assert verify(out).damaged == []
    assert contents(out) == contents(whole)


def test_nothing_is_left_to_a_block_that_is_not_computed(scan, checkpoint, tmp_path, monkeypatch):
    left, leave = [], Column.leave
    monkeypatch.setattr(
        Column, "leave", lambda self, start, part: (left.append(start), leave(self, start, part))
    )
    predict_volume(scan, checkpoint, str(tmp_path / "ink.zarr"), SETTINGS)
    assert left
    assert set(left) <= HELD


def test_a_task_travels_without_the_air(scan, checkpoint):
    windows = SETTINGS.windows(Zyx(*SHAPE))
    network = (checkpoint, None, 1, "cpu", "float32")
    blocks = Columns(Run(open_stored(scan), network, windows, "gaussian", 0), Box.whole(Zyx(*SHAPE)))
    assert blocks.holds(Box(Zyx(0, 0, 0), Zyx(128, 128, 40)))
    assert "air_windows" in vars(blocks)
    task = blocks.narrowed(Box(Zyx(0, 0, 0), Zyx(128, 128, 40)))
    assert len(pickle.dumps(task)) < 20_000


def test_a_plan_tells_what_is_run(scan, checkpoint, tmp_path):
    plan = plan_predict(scan, checkpoint, str(tmp_path / "ink.zarr"), SETTINGS)
    windows = SETTINGS.windows(Zyx(*SHAPE))
    box = PredictSettings(window=(32, 16, 16), block=128, box="64:,:100,:")
    part = plan_predict(scan, checkpoint, str(tmp_path / "ink.zarr"), box)
    assert plan.blocks == len(HELD)
    assert plan.extra["windows"].endswith(f"of {windows.counts.volume} lie in air")
    run, air = (int(plan.extra["windows"].split()[n]) for n in (0, 3))
    assert run >= windows.counts.volume - air > 0
    assert float(part.extra["redundancy"].split(",")[0]) >= 1
    assert "bytes out" in str(part)


def test_keys_that_are_no_chunks_are_not_taken_for_any(scan, tmp_path):
    copy = tmp_path / "scan.zarr"
    shutil.copytree(scan, copy)
    before = open_stored(str(copy)).stored_chunks()
    for name in ("5.0.00", "05.0.0", "5.0", "99.0.0", "5.0.0.0", f"5.0.{10**12}", "5.0.0.partial"):
        (copy / name).write_bytes(b"x")
    np.testing.assert_array_equal(open_stored(str(copy)).stored_chunks(), before)
    (copy / "5.0.0").write_bytes(b"x")
    assert open_stored(str(copy)).stored_chunks().sum() == before.sum() + 1


def test_a_line_lost_from_a_ledger_of_before_is_never_air(scan, checkpoint, whole, tmp_path):
    out = tmp_path / "ink.zarr"
    shutil.copytree(whole, out)
    folder = out / ".inkzarr" / "0"
    told = json.loads((folder / "manifest.json").read_text())
    del told["sparse"], told["blocks"]
    (folder / "manifest.json").write_text(json.dumps(told))
    lines = (folder / "blocks.jsonl").read_text().splitlines(keepends=True)
    (folder / "blocks.jsonl").write_text("".join(lines[1:]))
    assert any(line.startswith("0/0/0/0 is not in the ledger") for line in verify(out).damaged)
    predict_volume(scan, checkpoint, str(out), SETTINGS)
    assert open_stored(str(out)).may_exceed(0)[:4, 0, 0].all()
