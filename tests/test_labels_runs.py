"""Runs of labels: the same bytes however they are made, inputs read once, plans that write nothing."""

import dataclasses
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from inkzarr.core.errors import BlocksFailedError, InputError
from inkzarr.core.geometry import Zyx
from inkzarr.core.job import RunOptions
from inkzarr.core.ledger import Ledger
from inkzarr.labels import LabelSettings, labels, plan_labels
from inkzarr.testing.synthetic import SyntheticScroll
from inkzarr.verify import verify
from tests.labelling import RULES, SHAPE, along, arrays, contents, png, run, segment, small


@pytest.mark.parametrize("footprint", ["ray", "box"])
def test_any_block_and_workers_give_the_same_bytes(two, footprint):
    folder, _ = two
    first = None
    for block, workers in ((256, 2), (1, 1), (130, 3)):
        run(
            folder, "same.zarr", RunOptions(overwrite=True, workers=workers), block=block, footprint=footprint
        )
        found = contents(folder / "same.zarr")
        assert first is None or found == first
        first = found


def test_order_of_segments_changes_nothing(two, monkeypatch):
    """They are numbered, scanned, bucketed and counted in another order, and the chunks are the same."""
    folder, _ = two
    stage = sys.modules["inkzarr.labels"]
    found, scanned = stage.find_segments, []
    chunks = []
    for name, turned in (("ordered", False), ("turned", True)):
        monkeypatch.setattr(
            stage, "find_segments", lambda *a, t=turned, **k: found(*a, **k)[:: -1 if t else 1]
        )
        for footprint in ("ray", "box"):
            report = run(folder, f"{name}.zarr", block=128, footprint=footprint)
            scanned.append(list(report.segments))
            told = contents(folder / f"{name}.zarr")
            chunks.append((footprint, {k: v for k, v in told.items() if k[-1].isdigit()}, report.conflicts))
    assert scanned == [["10", "20"]] * 2 + [["20", "10"]] * 2
    assert chunks[:2] == chunks[2:]


def test_only_touched_chunks_exist(tmp_path):
    points = np.stack(np.broadcast_arrays(200.0, *np.mgrid[10:30, 300:340]), -1).astype(float)
    normals = along(points)
    segment(tmp_path, "10", points, normals, None, np.full((20, 40), 255, np.uint8))
    report = run(tmp_path, shape=Zyx(14376, 7888, 8096))
    assert report.run.blocks == 1
    chunks = {p for p in contents(tmp_path / "out.zarr") if p[-1].isdigit()}
    assert chunks == {"ink/1/0/2", "count/1/0/2"}


def test_a_finished_run_is_not_done_again(two, monkeypatch):
    folder, _ = two
    first = run(folder, "again.zarr")
    monkeypatch.setattr(sys.modules["inkzarr.labels"], "scan_strip", None)
    second = run(folder, "again.zarr", RunOptions())
    assert dataclasses.replace(second.run, seconds=0) == dataclasses.replace(
        first.run, seconds=0, resumed=first.run.blocks
    )
    assert f"done already, all {first.run.blocks} blocks are from before" in str(second)
    assert str(second).splitlines()[1:5] == str(first).splitlines()[1:5]
    assert (second.segments, second.votes, second.conflicts) == (first.segments, first.votes, first.conflicts)


@pytest.mark.parametrize("then", [128, 256])
def test_failed_blocks_are_taken_up(two, monkeypatch, then):
    """With the same blocks, and with others: nothing is computed or counted twice."""
    folder, _ = two
    shutil.rmtree(folder / "broken.zarr", ignore_errors=True)
    whole = run(folder, "whole.zarr", RunOptions(overwrite=True), block=128)
    count_votes = sys.modules["inkzarr.core.votes"].count_votes

    def failing(tiles, box, rule, layout):
        if box.start == (128, 0, 0):
            msg = "disk full"
            raise OSError(msg)
        return count_votes(tiles, box, rule, layout)

    monkeypatch.setattr(sys.modules["inkzarr.core.votes"], "count_votes", failing)
    with pytest.raises(BlocksFailedError, match="disk full"):
        run(folder, "broken.zarr", RunOptions(), block=128)
    monkeypatch.undo()
    report = run(folder, "broken.zarr", RunOptions(), block=then)
    assert report.run.resumed == (report.run.blocks - 1 if then == 128 else 0)
    np.testing.assert_array_equal(arrays(folder / "broken.zarr"), arrays(folder / "whole.zarr"))
    assert then != 128 or contents(folder / "broken.zarr") == contents(folder / "whole.zarr")
    assert (report.votes, report.conflicts, report.ink) == (whole.votes, whole.conflicts, whole.ink)


@pytest.mark.parametrize("name", ["ink", "count"])
def test_one_array_is_struck_and_taken_up_with_other_blocks(two, name):
    """Nothing is counted twice: the other array's blocks are told anew too."""
    folder, _ = two
    whole = run(folder, "struck.zarr", RunOptions(overwrite=True), block=128)
    before = arrays(folder / "struck.zarr")
    ledger = Ledger(zarr.open_group(str(folder / "struck.zarr")).store, name)
    assert ledger.load()
    ledger.strike({next(iter(ledger.records))})
    report = run(folder, "struck.zarr", RunOptions(), block=256)
    assert (report.votes, report.conflicts, report.ink) == (whole.votes, whole.conflicts, whole.ink)
    np.testing.assert_array_equal(arrays(folder / "struck.zarr"), before)
    assert not verify(folder / "struck.zarr").damaged


def test_killed_and_started_again(two, tmp_path):
    folder, _ = two
    run(folder, "whole.zarr", block=128)
    script = (
        "import time, sys, inkzarr.core.ledger as ledger, inkzarr.core.runner as runner\n"
        "from inkzarr.labels import labels, LabelSettings\n"
        "from inkzarr.core.geometry import Zyx\n"
        "from inkzarr.core.job import RunOptions\n"
        "runner.FLUSH_EVERY_S = 0\n"
        "flush = ledger.Ledger.flush\n"
        "def slow(self):\n"
        "    flush(self)\n"
        "    if self.records:\n"
        "        print('written', flush=True); time.sleep(60)\n"
        "ledger.Ledger.flush = slow\n"
        f"settings = LabelSettings(shape=Zyx{tuple(SHAPE)}, skip_blank=0, block=128)\n"
        f"labels({str(folder / 'paths')!r}, {str(folder / 'ink')!r}, {str(tmp_path / 'k.zarr')!r}, settings,\n"
        "       RunOptions(workers=1))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert child.stdout.readline() == b"written\n"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    settings = LabelSettings(shape=SHAPE, skip_blank=0, block=128)
    labels(folder / "paths", folder / "ink", tmp_path / "k.zarr", settings)
    assert contents(tmp_path / "k.zarr") == contents(folder / "whole.zarr")
    assert not verify(tmp_path / "k.zarr").damaged


def test_another_setting_is_refused(two):
    folder, _ = two
    run(folder, "fingerprint.zarr")
    before = contents(folder / "fingerprint.zarr")
    with pytest.raises(InputError, match=r"settings\.depth was 4, is 3"):
        run(folder, "fingerprint.zarr", RunOptions(), depth=3)
    with pytest.raises(InputError, match=r"segments\.20"):
        run(folder, "fingerprint.zarr", RunOptions(), only=("10",))
    assert contents(folder / "fingerprint.zarr") == before


@pytest.fixture
def reads(monkeypatch):
    """Names of the files of which a checksum is made."""
    module, found = sys.modules["inkzarr.readers.checksums"], []
    make = module._crc32c
    monkeypatch.setattr(
        module, "_crc32c", lambda path, progress: (found.append(Path(path).name), make(path, progress))[1]
    )
    return found


def test_files_are_read_for_their_checksum_once(tmp_path, reads, capsys):
    small(tmp_path)
    run(tmp_path, options=RunOptions(), shape=Zyx(16, 16, 16))
    assert sorted(reads) == ["10.ppm", "10_inklabels.png"]
    assert "labels, checksums: 100 %" in capsys.readouterr().err
    reads.clear()
    assert "done already" in str(run(tmp_path, options=RunOptions(), shape=Zyx(16, 16, 16)))
    run(tmp_path, shape=Zyx(16, 16, 16))
    assert not reads
    label = tmp_path / "ink/10_inklabels.png"
    whole = label.read_bytes()
    png(label, np.full((6, 9), 254, np.uint8))
    with pytest.raises(InputError, match=r"10_inklabels\.png\.crc32c was"):
        run(tmp_path, options=RunOptions(), shape=Zyx(16, 16, 16))
    assert reads == ["10_inklabels.png"]
    label.write_bytes(whole)  # the same content at another time is the same
    assert "done already" in str(run(tmp_path, options=RunOptions(), shape=Zyx(16, 16, 16)))
    (tmp_path / ".out.zarr.sources.json").write_text("[1, 2")
    reads.clear()
    assert "done already" in str(run(tmp_path, options=RunOptions(), shape=Zyx(16, 16, 16)))
    assert sorted(reads) == ["10.ppm", "10_inklabels.png"]


def test_a_plan_and_a_refusal_read_no_file_for_its_checksum(tmp_path, reads):
    small(tmp_path)
    place, settings = (tmp_path / "paths", tmp_path / "ink"), LabelSettings(shape=Zyx(16, 16, 16), **RULES)
    plan_labels(*place, tmp_path / "out.zarr", settings)
    assert not reads
    run(tmp_path, shape=Zyx(16, 16, 16))
    reads.clear()
    (tmp_path / ".out.zarr.sources.json").unlink()
    plan = plan_labels(*place, tmp_path / "out.zarr", settings)
    assert plan.done == plan.blocks == 1
    for call in (plan_labels, labels):
        with pytest.raises(InputError, match=r"settings\.depth was 4, is 3"):
            call(*place, tmp_path / "out.zarr", dataclasses.replace(settings, depth=3))
    assert not reads


def test_plan_writes_nothing(two):
    folder, _ = two
    plan = plan_labels(folder / "paths", folder / "ink", folder / "no.zarr", LabelSettings(shape=SHAPE))
    assert not (folder / "no.zarr").exists()
    text = str(plan)
    for word in ("segments", "10, 20", "pixels", "chunks", "bytes in", "estimated time", "uint8 + uint16"):
        assert word in text
    report = run(folder, "planned.zarr", skip_blank=128)
    assert 0 < plan.blocks <= report.run.blocks


def test_the_memory_of_labels_and_masks_is_planned(tmp_path):
    small(tmp_path, rows=200, cols=300)
    settings = LabelSettings(shape=Zyx(16, 200, 300), **RULES)

    def planned():
        plan = plan_labels(tmp_path / "paths", tmp_path / "ink", tmp_path / "no.zarr", settings)
        return plan.job.shared_bytes

    assert planned() == 2 * 200 * 300
    png(tmp_path / "paths/10/10_mask.png", np.ones((200, 300), np.uint8))
    png(tmp_path / "ink/10_supervision_mask.png", np.ones((200, 300), np.uint8))
    assert planned() == (2 + 2 + 3) * 200 * 300


def test_a_folder_that_is_no_volume_is_kept_and_told_before_anything_is_read(tmp_path, monkeypatch):
    SyntheticScroll(shape=(16, 160, 160)).write_segments(tmp_path)
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "thesis.txt").write_text("mine")
    settings, places = LabelSettings(shape=Zyx(16, 160, 160)), (tmp_path / "paths", tmp_path / "inklabels")
    monkeypatch.setattr(
        sys.modules["inkzarr.labels"], "checksums", lambda *_, **__: pytest.fail("files are read")
    )
    for call in (labels, plan_labels):
        with pytest.raises(InputError, match="is no Zarr volume, so it is not overwritten"):
            call(*places, tmp_path / "keep", settings, RunOptions(overwrite=True))
    assert not list(tmp_path.glob(".keep*"))
