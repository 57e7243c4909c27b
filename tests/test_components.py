"""The stage against scipy, whatever the blocks, the workers and the interruptions; what it refuses."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet
import pytest
import tifffile
import zarr
from scipy import ndimage

from inkzarr.components import ComponentSettings, components, plan_components
from inkzarr.core.errors import InputError, StoreError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.job import RunOptions
from inkzarr.core.progress import size
from inkzarr.core.schema import CANDIDATE_COLUMNS
from inkzarr.core.store import open_stored
from inkzarr.core.volume import StoredVolume
from tests.predictions import rows, write
from tests.stored import tree

SHAPE = Zyx(136, 264, 264)
EVERYWHERE = np.ones((3, 3, 3))


def percolating():
    """Blobs of which some reach through the whole volume; one octant is empty, two chunks are faint."""
    noise = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    noise = ndimage.gaussian_filter(noise, 1.5)
    voxels = np.clip(noise / noise.std() * 60 + 100, 0, 255).astype(np.uint8)
    voxels[:128, :128, :128] = 0
    voxels[:128, 128:256, :128] = np.minimum(voxels[:128, 128:256, :128], 99)
    return voxels


@pytest.fixture(scope="module")
def ink(tmp_path_factory):
    return write(tmp_path_factory.mktemp("ink") / "ink.zarr", voxels := percolating()), voxels


def against_scipy(path, voxels, least, min_voxels):
    """The table's rows are scipy's components; the labels that go with them."""
    table = rows(path)
    labels, count = ndimage.label(voxels >= least, EVERYWHERE)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    kept = np.flatnonzero(sizes >= min_voxels)
    kept = kept[kept > 0]
    firsts = np.zeros(count + 1, np.int64)
    firsts[labels.ravel()[::-1]] = np.arange(voxels.size)[::-1]  # of equal indices the last assignment counts
    kept = kept[np.argsort(firsts[kept])]
    assert len(table["id"]) == len(kept)
    order = np.argsort(table["id"])
    found = {name: np.array(column)[order] for name, column in table.items()}
    np.testing.assert_array_equal(found["id"], np.arange(1, len(kept) + 1))
    np.testing.assert_array_equal(found["voxels"], sizes[kept])
    every = ndimage.find_objects(labels)
    boxes = [every[number - 1] for number in kept]
    for axis, name in enumerate("zyx"):
        np.testing.assert_array_equal(found[f"{name}0"], [box[axis].start for box in boxes])
        np.testing.assert_array_equal(found[f"{name}1"], [box[axis].stop for box in boxes])
    centres = np.array(ndimage.center_of_mass(np.ones(voxels.shape), labels, kept))
    np.testing.assert_allclose(np.stack([found[name] for name in "zyx"], -1), centres, atol=1e-6)
    np.testing.assert_allclose(found["mean"], ndimage.mean(voxels, labels, kept) / 255)
    np.testing.assert_allclose(found["max"], ndimage.maximum(voxels, labels, kept) / 255)
    numbers = np.zeros(count + 1, np.uint32)
    numbers[kept] = np.arange(1, len(kept) + 1)
    return numbers[labels]


@pytest.mark.parametrize(
    ("block", "workers", "threshold"), [(128, 3, 0.5), (256, 1, 0.5), (1000, 2, 0.4), (128, 2, 0.2)]
)
def test_the_table_and_the_labels_are_scipys(ink, tmp_path, block, workers, threshold):
    url, voxels = ink
    settings = ComponentSettings(threshold, 9, labels=str(tmp_path / "ids.zarr"), block=block)
    report = components(url, tmp_path / "a.parquet", settings, RunOptions(workers=workers))
    expected = against_scipy(tmp_path / "a.parquet", voxels, settings.least, 9)
    np.testing.assert_array_equal(open_stored(settings.labels).read(Box.whole(SHAPE)), expected)
    assert report.components == expected.max()
    assert report.small + report.components == ndimage.label(voxels >= settings.least, EVERYWHERE)[1]
    assert str(report.components) in str(report)
    assert report.labels.nonzero == np.count_nonzero(expected)


def test_the_same_table_from_any_blocks(ink, tmp_path):
    tables = []
    for block, workers in ((128, 3), (256, 1), (1000, 2)):
        components(
            ink[0], tmp_path / "a.parquet", ComponentSettings(block=block), RunOptions(workers=workers)
        )
        tables.append((tmp_path / "a.parquet").read_bytes())
    assert tables[0] == tables[1] == tables[2]


def test_the_columns_are_those_of_the_schema(ink, tmp_path):
    components(ink[0], tmp_path / "a.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert table.column_names == list(CANDIDATE_COLUMNS)
    whole = {"id", "voxels", *(f"{axis}{end}" for axis in "zyx" for end in (0, 1))}
    assert {name: str(table.schema.field(name).type) for name in CANDIDATE_COLUMNS} == {
        name: "int64" if name in whole else "double" for name in CANDIDATE_COLUMNS
    }
    scores = table["score"].to_pylist()
    assert scores == sorted(scores, reverse=True)
    told = json.loads(table.schema.metadata[b"inkzarr"])
    assert (told["least"], told["min_voxels"], told["source"]) == (128, 1000, "ink.zarr")
    assert list(tmp_path.iterdir()) == [tmp_path / "a.parquet"]


@pytest.mark.parametrize(("threshold", "least"), [(0.5, 128), (0.2, 51), (0.6, 153), (1.0, 255), (1e-9, 1)])
def test_a_threshold_as_a_stored_value(threshold, least):
    assert ComponentSettings(threshold).least == least
    assert (least - 1) / 255 < threshold <= least / 255


def test_chunks_that_hold_nothing_are_not_read(ink, tmp_path, monkeypatch):
    asked, read = [], StoredVolume.read
    monkeypatch.setattr(StoredVolume, "read", lambda self, box: asked.append(box) or read(self, box))
    report = components(ink[0], tmp_path / "a.parquet")
    assert (report.blocks, report.read) == (4, 4)
    chunks = [Box(Zyx(0, at, 0), Zyx(128, at + 128, 128)) for at in (0, 128)]
    assert all(box.clip(chunk).empty for box in asked for chunk in chunks)
    bare = tmp_path / "bare.zarr"
    shutil.copytree(ink[0], bare)
    shutil.rmtree(bare / ".inkzarr")
    asked.clear()
    other = components(bare, tmp_path / "b.parquet")
    assert other.components == report.components
    empty = [box for box in asked if not box.clip(chunks[0]).empty and box.shape.volume > 128**3]
    assert not empty


def test_educelabs_synthetic_volume(real_data, tmp_path):
    folder = next((real_data / "inkid_DummyTest" / "DummyTest.volpkg" / "volumes").glob("*/"))
    slices = [tifffile.imread(path) for path in sorted(folder.glob("*.tif"))]
    voxels = (np.stack(slices) >> 8).astype(np.uint8)
    least = int(np.quantile(voxels, 0.9)) or 1
    settings = ComponentSettings(least / 255 - 1e-9, 50, labels=str(tmp_path / "ids.zarr"), block=128)
    assert settings.least == least
    components(write(tmp_path / "ink.zarr", voxels), tmp_path / "a.parquet", settings)
    expected = against_scipy(tmp_path / "a.parquet", voxels, least, 50)
    np.testing.assert_array_equal(open_stored(settings.labels).read(Box.whole(voxels.shape)), expected)


SLOW = """
import sys, time
from inkzarr.cli import main
from inkzarr.core import runner
from inkzarr.core.foreground import LabelBlocks
once = LabelBlocks.__call__
LabelBlocks.__call__ = lambda self, box: (time.sleep(0.4), once(self, box))[1]
runner.FLUSH_EVERY_S = 0
main(sys.argv[1:])
"""


def test_killed_while_it_writes_labels_it_goes_on_and_ends_the_same(ink, tmp_path):
    paths = {name: tmp_path / name for name in ("a.parquet", "ids.zarr", "b.parquet", "whole.zarr")}
    settings = ComponentSettings(min_voxels=20, labels=str(paths["whole.zarr"]), block=128)
    components(ink[0], paths["b.parquet"], settings)
    settings = dataclasses.replace(settings, labels=str(paths["ids.zarr"]))
    command = [
        "components",
        ink[0],
        str(paths["a.parquet"]),
        "--min-voxels",
        "20",
        "--labels",
        settings.labels,
    ]
    child = subprocess.Popen([sys.executable, "-c", SLOW, *command, "--workers", "1"], stderr=subprocess.PIPE)
    ledger = paths["ids.zarr"] / ".inkzarr" / "0"
    for _ in range(600):
        if list(ledger.glob("blocks-*.jsonl")):
            break
        time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert json.loads((ledger / "manifest.json").read_text())["state"] == "running"
    report = components(ink[0], paths["a.parquet"], dataclasses.replace(settings, block=256))
    assert report.labels.resumed > 0
    assert paths["a.parquet"].read_bytes() == paths["b.parquet"].read_bytes()
    ours, whole = tree(paths["ids.zarr"]), tree(paths["whole.zarr"])
    chunks = [name for name in whole if re.fullmatch(r"0/\d+/\d+/\d+", name)]
    assert chunks
    assert {name: ours[name] for name in chunks} == {name: whole[name] for name in chunks}
    again = components(ink[0], paths["a.parquet"], settings)
    assert again.labels.resumed == again.labels.blocks


def test_bad_inputs(ink, tmp_path):
    url, out = ink[0], tmp_path / "a.parquet"
    for threshold in (0, -1, 1.5, float("nan")):
        with pytest.raises(InputError, match=r"threshold .* is no probability to ask for: it is above 0"):
            ComponentSettings(threshold)
    with pytest.raises(InputError, match="both are 1 or more"):
        ComponentSettings(min_voxels=0)
    with pytest.raises(InputError, match="is for the contact sheet: add --sheet"):
        ComponentSettings(scan=url)
    for name in ("a.csv", "none/a.parquet"):
        with pytest.raises(InputError, match=r"ends in \.parquet, in a folder that exists"):
            components(url, tmp_path / name)
    with pytest.raises(InputError, match="the contact sheet cannot be written"):
        components(url, out, ComponentSettings(sheet=tmp_path / "a.parquet"))
    with pytest.raises(InputError, match="no Zarr volume at"):
        components(tmp_path / "none.zarr", out)
    with pytest.raises(InputError, match="lie in each other"):
        components(url, out, ComponentSettings(labels=url))
    zarr.save_array(tmp_path / "scan.zarr", np.ones((4, 4, 4), np.uint16))
    with pytest.raises(InputError, match="holds uint16: a prediction is uint8"):
        components(tmp_path / "scan.zarr", out)
    with pytest.raises(InputError, match=r"the scan .* is \(4, 4, 4\), the prediction"):
        components(url, out, ComponentSettings(sheet=tmp_path / "a.html", scan=str(tmp_path / "scan.zarr")))
    with pytest.raises(InputError, match="holds what this run did not write"):
        components(url, out, ComponentSettings(labels=str(tmp_path / "scan.zarr")))
    assert [path.name for path in tmp_path.iterdir()] == ["scan.zarr"]


@pytest.mark.parametrize("value", [0, 200])
def test_no_letters_are_a_result(tmp_path, value):
    """Nothing at all, or nothing that is large enough."""
    url = write(tmp_path / "ink.zarr", np.full((20, 20, 20), value, np.uint8))
    settings = ComponentSettings(
        min_voxels=9000, sheet=tmp_path / "a.html", labels=tmp_path / "ids.zarr", scan=url
    )
    report = components(url, tmp_path / "a.parquet", settings)
    assert (report.components, report.small, report.voxels) == (0, value // 200, 0)
    assert "no letters found" in str(report)
    assert "no letters found" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert not open_stored(settings.labels).read(Box.whole((20, 20, 20))).any()
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert (len(table), table.column_names) == (0, list(CANDIDATE_COLUMNS))
    components(write(tmp_path / "full.zarr", np.full((20, 20, 20), 200, np.uint8)), tmp_path / "b.parquet")
    assert table.schema.types == pyarrow.parquet.read_schema(tmp_path / "b.parquet").types


def test_an_unfinished_prediction_is_refused(tmp_path):
    url = write(tmp_path / "ink.zarr", np.full((20, 20, 20), 200, np.uint8))
    manifest = tmp_path / "ink.zarr" / ".inkzarr" / "0" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"done"', '"running"'))
    with pytest.raises(InputError, match="is unfinished"):
        components(url, tmp_path / "a.parquet")
    whole = write(tmp_path / "whole.zarr", np.full((20, 20, 20), 200, np.uint8))
    with pytest.raises(InputError, match=r"ink\.zarr.* is unfinished"):
        components(whole, tmp_path / "a.parquet", ComponentSettings(sheet=tmp_path / "a.html", scan=url))


def test_a_damaged_chunk_is_an_error(ink, tmp_path):
    shutil.copytree(ink[0], tmp_path / "ink.zarr")
    (tmp_path / "ink.zarr" / "0" / "0" / "0" / "1").write_bytes(b"torn")
    with pytest.raises(StoreError, match=r"0/0/1 of"):
        components(tmp_path / "ink.zarr", tmp_path / "a.parquet")
    assert not (tmp_path / "a.parquet").exists()


def test_a_plan_writes_nothing(ink, tmp_path):
    settings = ComponentSettings(labels=str(tmp_path / "ids.zarr"))
    told = str(plan_components(ink[0], tmp_path / "a.parquet", settings))
    assert "4 of 4 may hold something, 256,256,256 each" in told
    assert "values from 128 up, 1000 voxels or more" in told
    assert "136,264,264 uint32" in told
    assert not list(tmp_path.iterdir())


def test_a_plan_counts_the_drawing_of_large_candidates(ink, tmp_path):
    def memory(**settings):
        given = ComponentSettings(block=128, **settings)
        plan = plan_components(ink[0], tmp_path / "a.parquet", given, RunOptions(workers=1))
        return plan.lines["peak memory"]

    assert memory() == size(8 * 128**3)
    assert memory(sheet=tmp_path / "a.html") == size(9 * 136 * 264 * 264)
