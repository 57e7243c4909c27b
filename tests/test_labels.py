"""Labels against a double loop in Python; the same bytes however they are made; every bad input told."""

import dataclasses
import itertools
import json
import math
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from inkzarr.core.errors import BlocksFailedError, InputError
from inkzarr.core.geometry import Zyx
from inkzarr.core.job import RunOptions
from inkzarr.core.labelled import open_labels
from inkzarr.core.sheet_file import write_png
from inkzarr.core.surface import open_surface, write_ppm, write_tifxyz
from inkzarr.core.voting import FULL, ONE, finish, vote
from inkzarr.labels import LabelSettings, labels, plan_labels
from inkzarr.testing.synthetic import SyntheticScroll
from inkzarr.verify import verify

SHAPE = Zyx(140, 150, 136)
RULES = {"skip_blank": 0}


def brute(parts, shape, *, depth=4.0, footprint="ray"):
    """Sums and votes by a double loop over pixels and voxels; dropped voxels."""
    total, votes, dropped = np.zeros(shape, np.int64), np.zeros(shape, np.int64), 0
    for points, normals, values, used in parts:
        for row, col in np.argwhere(used):
            p, n = points[row, col], normals[row, col]
            if footprint == "ray":
                steps = np.arange(-depth, depth + 0.25, 0.5)
                found = {tuple(np.floor(p + t * n + 0.5)) for t in steps}
            else:
                ends = np.stack([p - depth * n, p + depth * n])
                low, high = np.floor(ends.min(0)), np.ceil(ends.max(0))
                axes = (np.arange(a, max(b, a + 1)) for a, b in zip(low, high, strict=True))
                found = set(itertools.product(*axes))
            for voxel in found:
                if all(0 <= v < s for v, s in zip(voxel, shape, strict=True)):
                    at = tuple(int(v) for v in voxel)
                    total[at] += values[row, col]
                    votes[at] += 1
                else:
                    dropped += 1
    mean = np.where(votes > 0, (2 * total + votes) // np.maximum(2 * votes, 1), 0)
    return mean.astype(np.uint8), np.minimum(votes, 65535).astype(np.uint16), dropped


def curved(rng, rows, cols, shape=SHAPE, *, middle=None):
    """A bent sheet somewhere in a volume, with a hole and values that are no numbers."""
    row, col = np.mgrid[:rows, :cols].astype(float)
    centre = np.array(shape) / 2 if middle is None else np.asarray(middle, float)
    u, v = np.linalg.qr(rng.normal(size=(3, 3)))[0][:, :2].T
    w = np.cross(u, v)
    bend = rng.uniform(2, 12) * np.sin(row / rng.uniform(3, 9)) + rng.uniform(0, 9) * np.cos(col / 7)
    points = centre + (row - rows / 2)[..., None] * u + (col - cols / 2)[..., None] * v + bend[..., None] * w
    normals = rng.normal(size=points.shape) * 0.2 + w
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    valid = np.ones((rows, cols), bool)
    valid[rows // 3 : rows // 2, cols // 4 : cols // 2] = False
    points[0, 0], points[-1, -1, 1], normals[0, -1, 2] = np.nan, np.inf, np.nan
    return points, normals, valid


def along(points, axis=0):
    normals = np.zeros_like(points)
    normals[..., axis] = 1
    return normals


def segment(folder, name, points, normals, valid, values):
    home = folder / "paths" / name
    home.mkdir(parents=True)
    write_ppm(home / f"{name}.ppm", points, normals, valid=valid)
    png(folder / "ink" / f"{name}_inklabels.png", values)
    tile = open_surface(home / f"{name}.ppm")
    return tile.points, tile.normals, values, tile.valid


def png(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(values) if mode is None else Image.fromarray(values, mode)).save(path)
    return path


def arrays(out):
    group = zarr.open_group(str(out), mode="r")
    return group["ink"][:], group["count"][:]


def run(folder, out="out.zarr", options=None, **settings):
    chosen = LabelSettings(**{"shape": SHAPE, **RULES, **settings})
    return labels(
        folder / "paths", folder / "ink", folder / out, chosen, options or RunOptions(overwrite=True)
    )


def contents(folder):
    """Every file of a volume but the ledger, whose lines follow the blocks."""
    files = (p for p in Path(folder).rglob("*") if p.is_file() and ".inkzarr" not in p.parts)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two bent segments that overlap, one of which leaves the volume."""
    folder, rng = tmp_path_factory.mktemp("two"), np.random.default_rng(5)
    parts = []
    for name, middle in (("10", (70, 75, 68)), ("20", (100, 80, 120))):
        points, normals, valid = curved(rng, 75, 140, middle=middle)
        values = rng.integers(0, 256, valid.shape, "uint8") * (rng.random(valid.shape) < 0.7).astype("uint8")
        parts.append(segment(folder, name, points, normals, valid, values))
    return folder, parts


@pytest.mark.parametrize("footprint", ["ray", "box"])
def test_labels_are_those_of_a_double_loop(two, footprint):
    folder, parts = two
    report = run(folder, f"{footprint}.zarr", footprint=footprint)
    ink, count, dropped = brute(parts, SHAPE, footprint=footprint)
    found = arrays(folder / f"{footprint}.zarr")
    np.testing.assert_array_equal(found[0], ink, strict=True)
    np.testing.assert_array_equal(found[1], count, strict=True)
    assert report.pixels["dropped_voxels"] == dropped > 0
    assert report.labelled == np.count_nonzero(count)
    assert report.ink == np.count_nonzero(ink >= 128)
    assert report.votes == count.sum(dtype=np.int64)
    each = [brute([part], SHAPE, footprint=footprint) for part in parts]
    ink_by = [one[0] >= 128 for one in each]
    both = (each[0][1] > 0) & (each[1][1] > 0)
    assert report.conflicts == np.count_nonzero(both & (ink_by[0] != ink_by[1])) > 0
    assert not verify(folder / f"{footprint}.zarr").damaged
    assert "disagree" in str(report)


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 30),
    cols=st.integers(2, 90),
    depth=st.sampled_from([0.0, 0.5, 2.0, 4.0, 6.5]),
    footprint=st.sampled_from(["ray", "box"]),
    block=st.sampled_from([1, 128, 300]),
)
def test_any_surface(tmp_path_factory, seed, rows, cols, depth, footprint, block):
    folder, rng, shape = tmp_path_factory.mktemp("any"), np.random.default_rng(seed), Zyx(20, 145, 30)
    parts = []
    for number in range(rng.integers(1, 4)):
        points, normals, valid = curved(rng, rows, cols, shape)
        values = rng.integers(0, 256, (rows, cols), "uint8")
        parts.append(segment(folder, f"{number}0", points, normals, valid, values))
    ink, count, dropped = brute(parts, shape, depth=depth, footprint=footprint)
    settings = {"shape": shape, "depth": depth, "footprint": footprint, "block": block}
    if not any(part[3].any() for part in parts):
        with pytest.raises(InputError, match="no pixel"):
            run(folder, **settings)
        return
    if not count.any():
        with pytest.raises(InputError, match="outside the volume"):
            run(folder, **settings)
        return
    report = run(folder, **settings)
    np.testing.assert_array_equal(arrays(folder / "out.zarr"), (ink, count))
    assert report.pixels["dropped_voxels"] == dropped
    pixels = report.pixels
    assert pixels["used"] + pixels["invalid"] + pixels["outside"] == sum(part[3].size for part in parts)


def test_extreme_places_are_outside(tmp_path):
    points = np.array([[[1e300, 5, 5], [-1e300, 5, 5], [5, 2.0**40, 5], [5, 5, -1e18], [5, 5, 5]]])
    normals = along(points, 2)
    part = segment(tmp_path, "10", points, normals, None, np.full((1, 5), 200, np.uint8))
    for footprint in ("ray", "box"):
        report = run(tmp_path, footprint=footprint, shape=Zyx(16, 16, 16))
        assert report.pixels["outside"] == 4
        np.testing.assert_array_equal(
            arrays(tmp_path / "out.zarr"), brute([part], (16, 16, 16), footprint=footprint)[:2]
        )


def test_count_saturates(tmp_path):
    points = np.broadcast_to([3.0, 4, 5], (300, 300, 3))
    normals = along(points)
    values = np.full((300, 300), 255, np.uint8)
    values[:, ::2] = 0
    segment(tmp_path, "10", points, normals, None, values)
    report = run(tmp_path, depth=0, shape=Zyx(8, 8, 8))
    ink, count = arrays(tmp_path / "out.zarr")
    assert (count[3, 4, 5], ink[3, 4, 5], report.votes) == (65535, 128, 90000)
    assert np.count_nonzero(count) == 1


@pytest.mark.parametrize("who", [0, 1])
def test_votes_never_wrap(who):
    votes, total = np.full(8, FULL - ONE, np.int64), np.zeros(8, np.int64)
    turn = np.full(1, who, np.int32)
    points, normals = np.zeros((1, 3, 3)), np.zeros((1, 3, 3))
    ones = np.ones((1, 3), np.uint8)
    vote(
        points, normals, ones, ones.view(bool), (0.0, False), (0, 0, 0), (2, 2, 2), (votes, total, turn, who)
    )
    assert votes[0] == FULL + 1
    ink, count = np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 2), np.uint16)
    assert finish(votes.reshape(2, 2, 2), ink, count)[0] == 8
    assert (count == 65535).all()


def test_rounding_is_half_up(tmp_path):
    points = np.zeros((1, 2, 3)) + 2
    part = segment(tmp_path, "10", points, along(points), None, np.uint8([[0, 255]]))
    run(tmp_path, depth=0, shape=Zyx(4, 4, 4))
    assert arrays(tmp_path / "out.zarr")[0][2, 2, 2] == 128 == brute([part], (4, 4, 4), depth=0)[0].max()


def test_blank_blocks_and_masks_do_not_vote(tmp_path):
    rng = np.random.default_rng(1)
    points = np.stack(np.broadcast_arrays(8.0, *np.mgrid[:70, :100]), -1).astype(float)
    normals = along(points)
    values = np.zeros((70, 100), np.uint8)
    values[5, 5], values[40, 70], values[69, 99] = 255, 1, 9
    _, _, _, valid = segment(tmp_path, "10", points, normals, None, values)
    supervised = rng.random(values.shape) < 0.5
    png(tmp_path / "ink" / "10_supervision_mask.png", supervised.astype(np.uint8) * 255)
    masked = rng.random(values.shape) < 0.8
    png(tmp_path / "paths" / "10" / "10_mask.png", masked.astype(np.uint8) * 255)
    report = run(tmp_path, skip_blank=32, depth=1, shape=Zyx(16, 80, 110))
    painted = np.zeros(values.shape, bool)
    painted[:32, :32] = painted[32:64, 64:96] = painted[64:, 96:] = True
    used = valid & painted & supervised & masked
    expected = brute([(points, normals, values, used)], (16, 80, 110), depth=1)
    np.testing.assert_array_equal(arrays(tmp_path / "out.zarr"), expected[:2])
    pixels = report.pixels
    assert pixels["used"] == used.sum()
    assert pixels["blank"] == (~painted).sum()
    assert pixels["unsupervised"] == (painted & ~supervised).sum()
    assert pixels["invalid"] == (painted & supervised & ~masked).sum()
    told = json.loads((tmp_path / "out.zarr" / "ink" / ".zattrs").read_text())["inkzarr"]
    assert told["segments"]["10"]["pixels"] == pixels
    assert len(told["segments"]["10"]["files"]["10.ppm"]["crc32c"]) == 8


@pytest.mark.parametrize("kind", ["ppm", "tifxyz"])
def test_ink_of_the_synthetic_scroll_comes_back(tmp_path, kind):
    scroll = SyntheticScroll(shape=(96, 160, 160))
    scroll.write_segments(tmp_path, kind=kind)
    settings = LabelSettings(shape=Zyx.of(scroll.shape), skip_blank=0)
    labels(tmp_path / "paths", tmp_path / "inklabels", tmp_path / "labels.zarr", settings)
    found = open_labels(tmp_path / "labels.zarr").values
    assert found.dtype == np.float32
    assert set(np.unique(found < 0)) == {False, True}
    for one in scroll.segments():
        surface, label = one.surface, one.label > 0
        points, valid = surface.points, surface.valid
        if kind == "tifxyz":  # past the last grid point no pixel has a place
            stored = open_surface(tmp_path / "paths" / one.id / f"{one.id}.tifxyz").valid
            valid = stored[: label.shape[0], : label.shape[1]]
            label &= valid
        place = tuple(
            np.moveaxis(np.clip(np.floor(points + 0.5).astype(int), 0, np.array(found.shape) - 1), -1, 0)
        )
        ink = (found[place] >= 0.5) & valid
        union = np.count_nonzero(ink | label)
        assert not union or np.count_nonzero(ink & label) / union > 0.95


def test_open_labels_of_something_else(tmp_path):
    zarr.save_array(tmp_path / "a.zarr", np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(InputError, match="no label group"):
        open_labels(tmp_path / "a.zarr")


# the same bytes however


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

    def failing(tiles, box, rule):
        if box.start == (128, 0, 0):
            msg = "disk full"
            raise OSError(msg)
        return count_votes(tiles, box, rule)

    monkeypatch.setattr(sys.modules["inkzarr.core.votes"], "count_votes", failing)
    with pytest.raises(BlocksFailedError, match="disk full"):
        run(folder, "broken.zarr", RunOptions(), block=128)
    monkeypatch.undo()
    report = run(folder, "broken.zarr", RunOptions(), block=then)
    assert report.run.resumed == (report.run.blocks - 1 if then == 128 else 0)
    np.testing.assert_array_equal(arrays(folder / "broken.zarr"), arrays(folder / "whole.zarr"))
    assert then != 128 or contents(folder / "broken.zarr") == contents(folder / "whole.zarr")
    assert (report.votes, report.conflicts, report.ink) == (whole.votes, whole.conflicts, whole.ink)


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


# label PNGs


def test_every_kind_of_png_is_told_by_its_rule(tmp_path):
    from inkzarr.readers.label_png import open_label

    grey = np.random.default_rng(0).integers(0, 256, (20, 31), "uint8")
    deep = grey.astype(np.uint16) * 257 + 100
    rgba = np.dstack([grey, grey // 2, grey * 0, np.where(grey > 99, 255, 51).astype(np.uint8)])
    opaque = np.where(grey > 99, 255, 51)
    kinds = {
        "grey": (Image.fromarray(grey), grey),
        "bit": (Image.fromarray(grey > 128), np.where(grey > 128, 255, 0)),
        "deep": (Image.fromarray(deep), (deep.astype(int) + 128) // 257),
        "rgb": (Image.fromarray(rgba[..., :3]), grey),
        "rgba": (Image.fromarray(rgba), (2 * grey.astype(int) * opaque + 255) // 510),
        "palette": (Image.fromarray(grey).convert("P"), grey),
    }
    for name, (image, expected) in kinds.items():
        image.save(tmp_path / f"{name}.png")
        label = open_label(tmp_path / f"{name}.png")
        assert label.shape == (20, 31), name
        np.testing.assert_array_equal(label.read((20, 31)), expected, err_msg=name)
        np.testing.assert_array_equal(label.read((9, 8)), expected[:9, :8], err_msg=name)
    deep = struct.pack(">8sI4sIIBBBBB", b"\x89PNG\r\n\x1a\n", 13, b"IHDR", 31, 20, 16, 2, 0, 0, 0)
    (tmp_path / "deep_colour.png").write_bytes(deep)
    with pytest.raises(InputError, match="has 16 bits a colour"):
        open_label(tmp_path / "deep_colour.png")
    Image.fromarray(grey.astype(np.uint16)).save(tmp_path / "shallow.png")
    with pytest.raises(InputError, match="no value above 255"):
        open_label(tmp_path / "shallow.png").read((20, 31))


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    part = small(tmp_path)
    assert part
    write_png(tmp_path / "ink/10_inklabels.png", (32767, 32767), [])
    refused(tmp_path, "is 32767 x 32767 pixels but its surface is 6 x 9")


def test_a_label_beyond_every_decompression_limit_is_read(tmp_path):
    from inkzarr.readers.label_png import open_label

    shape = (14000, 13500)
    bands = (np.full((1000, shape[1]), n, np.uint8) for n in range(14))
    write_png(tmp_path / "a.png", shape, bands)
    values = open_label(tmp_path / "a.png").read((13999, 13000))
    assert (values[::1000, 5] == np.arange(14)).all()


# versions and choices


def test_versions_only_and_exclude(tmp_path):
    from inkzarr.readers.segments import find_segments

    for name in ("101", "102", "103", "205", "301"):
        small(tmp_path, name)
    (tmp_path / "ink" / "103_inklabels.png").unlink()
    place = tmp_path / "paths", tmp_path / "ink"

    def ids(**options):
        return [segment.id for segment in find_segments(*place, **options)]

    assert ids() == ["102", "205", "301"]
    assert ids(only=["10?"], exclude=["103"], all_versions=True) == ["101", "102"]
    assert ids(exclude=["1*", "301"]) == ["205"]
    with pytest.raises(InputError, match="no label for 103"):
        ids(all_versions=True)
    with pytest.raises(InputError, match="is one label"):
        find_segments(tmp_path / "paths", tmp_path / "ink" / "101_inklabels.png")
    one = find_segments(tmp_path / "paths" / "101" / "101.ppm", tmp_path / "ink" / "101_inklabels.png")
    assert [segment.id for segment in one] == ["101"]


def test_versions_left_out_are_told(tmp_path):
    for name in ("101", "102", "103", "205"):
        small(tmp_path, name)
    (tmp_path / "ink" / "103_inklabels.png").unlink()
    report = run(tmp_path, shape=Zyx(16, 16, 16))
    assert "left out   101, 103 in favour of 102\n" in str(report)
    told = json.loads((tmp_path / "out.zarr" / "ink" / ".zattrs").read_text())["inkzarr"]["segments"]
    assert told["102"]["instead_of"] == ["101", "103"]
    assert "instead_of" not in told["205"]
    settings = LabelSettings(shape=Zyx(16, 16, 16), **RULES)
    plan = str(plan_labels(tmp_path / "paths", tmp_path / "ink", tmp_path / "other.zarr", settings))
    assert "101, 103 in favour of 102" in plan


# checksums of files


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


# flattened volumes


def test_flat_labels(tmp_path):
    values = np.random.default_rng(2).integers(0, 256, (30, 40), "uint8")
    zarr.save_array(tmp_path / "flat.zarr", np.zeros((13, 30, 40), np.uint8))
    label = png(tmp_path / "word.png", np.pad(values, ((0, 2), (0, 24))))
    settings = LabelSettings(flat=6, skip_blank=0)
    report = labels(tmp_path / "flat.zarr", label, tmp_path / "out.zarr", settings)
    ink, count = arrays(tmp_path / "out.zarr")
    np.testing.assert_array_equal(ink[2:11], np.broadcast_to(values, (9, 30, 40)))
    assert (count[2:11] == 1).all()
    assert not count[:2].any()
    assert not count[11:].any()
    assert list(report.segments) == ["word"]


# bad input


def small(folder, name="10", rows=6, cols=9):
    points = np.stack(np.broadcast_arrays(5.0, *np.mgrid[:rows, :cols]), -1).astype(float)
    normals = along(points)
    return segment(folder, name, points, normals, None, np.full((rows, cols), 255, np.uint8))


def refused(folder, match, **settings):
    with pytest.raises(InputError, match=match):
        run(folder, "bad.zarr", RunOptions(), **{"shape": Zyx(16, 16, 16), **settings})
    chosen = {"shape": Zyx(16, 16, 16), **RULES, **settings}
    with pytest.raises(InputError, match=match):
        plan_labels(folder / "paths", folder / "ink", folder / "bad.zarr", LabelSettings(**chosen))
    assert not list(folder.glob("*bad.zarr*"))


def test_bad_inputs_are_told_and_nothing_is_written(tmp_path):
    refused(tmp_path, "does not exist: give the segments' folder")
    (tmp_path / "paths").mkdir()
    (tmp_path / "ink").mkdir()
    refused(tmp_path, "holds no segment")
    small(tmp_path)
    ppm, label = tmp_path / "paths/10/10.ppm", tmp_path / "ink/10_inklabels.png"
    whole = ppm.read_bytes()
    refused(tmp_path, "segment 99 is not in", only=("99",))
    refused(tmp_path, "leave no segment", exclude=("1*",))
    refused(tmp_path, "shape is not known", shape=None)
    refused(tmp_path, "both a volume", like="a.zarr")
    ppm.write_bytes(whole[:-8])
    refused(tmp_path, "cut short")
    ppm.write_bytes(whole.replace(b"width: 9", b"width: 8"))
    refused(tmp_path, "longer than its header says")
    ppm.write_bytes(whole)
    for shape in ((5, 9), (6, 8), (6 + 256, 9), (6, 9 + 256)):
        png(label, np.full(shape, 255, np.uint8))
        refused(tmp_path, rf"is {shape[0]} x {shape[1]} pixels but its surface is 6 x 9")
    png(label, np.zeros((6, 9), np.uint8))
    refused(tmp_path, "54 blank", skip_blank=128)
    png(label, np.full((6, 9), 9, np.uint8))
    png(tmp_path / "ink/10_supervision_mask.png", np.zeros((6, 9), np.uint8))
    refused(tmp_path, "54 unsupervised")
    png(tmp_path / "ink/10_supervision_mask.png", np.ones((6, 8), np.uint8))
    refused(tmp_path, "supervision_mask.png is 6 x 8")
    (tmp_path / "ink/10_supervision_mask.png").unlink()
    png(tmp_path / "paths/10/10_mask.png", np.zeros((6, 9), np.uint8))
    refused(tmp_path, "54 without a place")
    (tmp_path / "paths/10/10_mask.png").unlink()
    refused(tmp_path, "54 outside", shape=Zyx(1, 16, 16), depth=2)
    label.write_bytes(label.read_bytes()[:-30])
    refused(tmp_path, "cannot be read as PNG")
    label.write_bytes(b"GIF89a" * 20)
    refused(tmp_path, "is no PNG")
    label.unlink()
    refused(tmp_path, "no label for 10")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"depth": -1}, "depth -1"),
        ({"depth": 0.3}, "whole or half"),
        ({"depth": math.nan}, "depth nan"),
        ({"footprint": "sphere"}, "ray or box"),
        ({"depth": 200, "footprint": "box"}, "too much for boxes"),
        ({"skip_blank": -1}, "skip_blank -1"),
        ({"flat": math.nan}, "flat nan"),
        ({"flat": -math.inf}, "flat -inf"),
        ({"flat": 3, "only": ("10",)}, "leave out --only"),
        ({"flat": 3, "exclude": ("10",)}, "leave out --only"),
        ({"flat": 3, "all_versions": True}, "leave out --only"),
    ],
)
def test_bad_settings(settings, match):
    with pytest.raises(InputError, match=match):
        LabelSettings(**settings)


def test_another_setting_is_refused(two):
    folder, _ = two
    run(folder, "fingerprint.zarr")
    before = contents(folder / "fingerprint.zarr")
    with pytest.raises(InputError, match=r"settings\.depth was 4, is 3"):
        run(folder, "fingerprint.zarr", RunOptions(), depth=3)
    with pytest.raises(InputError, match=r"segments\.20"):
        run(folder, "fingerprint.zarr", RunOptions(), only=("10",))
    assert contents(folder / "fingerprint.zarr") == before


def test_plan_writes_nothing(two):
    folder, _ = two
    plan = plan_labels(folder / "paths", folder / "ink", folder / "no.zarr", LabelSettings(shape=SHAPE))
    assert not (folder / "no.zarr").exists()
    text = str(plan)
    for word in ("segments", "10, 20", "pixels", "chunks", "bytes in", "estimated time", "uint8 + uint16"):
        assert word in text
    report = run(folder, "planned.zarr", skip_blank=128)
    assert 0 < plan.blocks <= report.run.blocks


def test_real_tifxyz_and_a_coarse_label(real_data, tmp_path):
    home = tmp_path / "paths" / "20241113070770"
    home.mkdir(parents=True)
    (home / "20241113070770.tifxyz").symlink_to(real_data / "tifxyz_20241113070770")
    values = np.zeros((16384, 16384), np.uint8)
    values[8000:8064, 8000:8064] = 255
    png(tmp_path / "ink" / "20241113070770_inklabels.png", values)
    report = run(tmp_path, shape=Zyx(14376, 7888, 8096), skip_blank=64)
    surface = open_surface(real_data / "tifxyz_20241113070770")
    tile = surface.tile(slice(8000, 8064), slice(8000, 8064))
    assert report.pixels["used"] == tile.valid.sum() > 0
    low = np.floor(tile.points.reshape(-1, 3).min(0) - 6).astype(int)
    shifted = (tile.points - low, tile.normals, values[8000:8064, 8000:8064], tile.valid)
    size = tuple(np.ceil(tile.points.reshape(-1, 3).max(0) + 6).astype(int) - low)
    ink, count, _ = brute([shifted], size)
    group = zarr.open_group(str(tmp_path / "out.zarr"), mode="r")
    place = tuple(slice(int(a), int(a) + n) for a, n in zip(low, size, strict=True))
    np.testing.assert_array_equal(group["count"][place], count)
    np.testing.assert_array_equal(group["ink"][place], ink)


def test_tifxyz_by_the_double_loop(tmp_path):
    rng = np.random.default_rng(3)
    row, col = np.mgrid[:9, :12] * 8.0
    points = np.stack([20 + 5 * np.sin(row / 20), row + 3, col + 5], -1)
    valid = np.ones(row.shape, bool)
    valid[4, 5] = False
    write_tifxyz(tmp_path / "paths/10/10.tifxyz", points, scale=(1 / 8, 1 / 8), valid=valid)
    values = rng.integers(0, 256, (72, 96), "uint8")
    png(tmp_path / "ink/10_inklabels.png", values)
    run(tmp_path, shape=Zyx(40, 90, 110))
    surface = open_surface(tmp_path / "paths/10/10.tifxyz")
    part = (surface.points, surface.normals, values, surface.valid)
    np.testing.assert_array_equal(arrays(tmp_path / "out.zarr"), brute([part], (40, 90, 110))[:2])


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
