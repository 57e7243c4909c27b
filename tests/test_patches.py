"""Windows against a plain loop over windows, whatever is known of the chunks; only stored chunks are read."""

import dataclasses

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from inkzarr.core.errors import InputError, StoreError
from inkzarr.core.geometry import Zyx
from inkzarr.core.job import Computed, Job, RunOptions
from inkzarr.core.labelled import open_label_arrays, open_labels
from inkzarr.core.patches import Patches, read_patches, write_patches
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import VolumeSpec
from inkzarr.patches import PatchSettings, find_windows, patches

SHAPE = Zyx(150, 270, 140)


def group(url, ink, count, **options):
    spec = VolumeSpec(Zyx(*ink.shape), ink.dtype, path="ink", **options)
    more = (dataclasses.replace(spec, dtype=count.dtype, path="count"),)
    job = Job("test", str(url), spec, Zyx.of(128), {"x": 1}, more=more)
    write_blocks(job, lambda box: Computed((ink[box.slices], count[box.slices])), RunOptions(overwrite=True))
    return url


def some(seed=0, shape=SHAPE):
    rng = np.random.default_rng(seed)
    count = (rng.random(shape) < 0.002).astype(np.uint16) * rng.integers(1, 9, shape).astype(np.uint16)
    count[:128, :128] = 0
    count[20, 30, 40] = 3
    ink = np.where(count > 0, rng.integers(0, 256, shape), 0).astype(np.uint8)
    ink[128:, :, :] = np.minimum(ink[128:], 90)
    return ink, count


def brute(ink, count, window, stride, least):
    rows = []
    for start in np.ndindex(*(-(-n // s) for n, s in zip(count.shape, stride, strict=True))):
        corner = [i * s for i, s in zip(start, stride, strict=True)]
        place = tuple(slice(a, a + w) for a, w in zip(corner, window, strict=True))
        labelled = np.count_nonzero(count[place])
        if labelled >= least:
            rows.append([*corner, labelled, np.count_nonzero((ink[place] >= 128) & (count[place] > 0))])
    return np.array(rows, np.int64).reshape(-1, 5)


def forget_upper(ledger):
    """As a version before the upper half was counted left it."""
    for box, record in ledger.records.items():
        chunks = tuple(dataclasses.replace(chunk, upper=None) for chunk in record.chunks)
        ledger.records[box] = dataclasses.replace(record, chunks=chunks)


def rows(table):
    return np.column_stack([table.corners, table.labelled, table.ink])


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    ink, count = some()
    return group(folder / "labels.zarr", ink, count), ink, count


@given(
    window=st.sampled_from([(128, 128, 128), (64, 64, 64), (40, 130, 7), (200, 200, 200), (300, 33, 128)]),
    stride=st.sampled_from([None, (128, 128, 128), (64, 96, 128), (37, 50, 61), (150, 140, 200)]),
    least=st.sampled_from([1, 60, 700]),
    ledger=st.sampled_from(["none", "old", "new"]),
)
def test_windows_are_those_of_a_plain_loop(labelled, window, stride, least, ledger):
    url, ink, count = labelled
    arrays = open_label_arrays(str(url))
    for stored in arrays:
        if ledger == "none":
            stored.__dict__["ledger"] = None
        elif ledger == "old":
            forget_upper(stored.ledger)
    settings = PatchSettings(Zyx(*window), stride and Zyx(*stride), least)
    found, _, _ = find_windows(*arrays, settings)
    kept = found.take(found.labelled >= least)
    np.testing.assert_array_equal(rows(kept), brute(ink, count, window, settings.step, least))


@pytest.mark.parametrize("name", ["patches.parquet", "patches.npy"])
def test_tables_are_written_and_read(labelled, tmp_path, name):
    url, ink, count = labelled
    report = patches(url, tmp_path / name, PatchSettings(Zyx.of(64), Zyx.of(32), 5))
    expected = brute(ink, count, (64,) * 3, (32,) * 3, 5)
    table = read_patches(tmp_path / name)
    np.testing.assert_array_equal(table.corners, expected[:, :3], strict=True)
    assert (report.windows, report.labelled, report.ink) == (len(expected), *expected[:, 3:].sum(0))
    assert str(len(expected)) in str(report)
    if name.endswith("npy"):
        assert np.load(tmp_path / name).dtype == np.int64
        return
    import pyarrow.parquet

    stored = pyarrow.parquet.read_table(tmp_path / name)
    assert stored.column_names == ["z", "y", "x", "labelled", "ink"]
    assert {str(t) for t in stored.schema.types} == {"int64"}
    assert table.window == (64, 64, 64)
    assert table.lineage["shape"] == list(SHAPE)
    assert list(tmp_path.iterdir()) == [tmp_path / name]


@pytest.mark.parametrize(
    ("ledger", "window", "expected"),
    [
        ("new", 128, []),
        ("new", 256, []),
        ("new", 96, [("count", (0, 0, 0)), ("count", (128, 0, 256)), ("ink", (128, 0, 256))]),
        ("old", 128, [("count", (128, 0, 256)), ("ink", (128, 0, 256))]),
    ],
)
def test_only_what_no_ledger_tells_is_read(tmp_path, ledger, window, expected):
    ink, count = (np.zeros((256, 256, 384), kind) for kind in (np.uint8, np.uint16))
    count[130:140, :9, 300:310], ink[135, 3, 305] = 1, 200
    count[5, 5, 5] = 1
    url = group(tmp_path / "labels.zarr", ink, count)
    arrays = open_label_arrays(str(url))
    asked = []
    for stored in arrays:
        if ledger == "old":
            forget_upper(stored.ledger)
        read = stored.array.__class__.__getitem__
        stored.__dict__["read"] = lambda box, s=stored, read=read: (
            asked.append((s.level.path, tuple(box.start))) or read(s.array, box.slices)
        )
    found, holding, read = find_windows(*arrays, PatchSettings(Zyx.of(window)), workers=1)
    assert (holding, read) == (2, len({place for _, place in expected}))
    assert sorted(asked) == sorted(expected)
    np.testing.assert_array_equal(rows(found), brute(ink, count, (window,) * 3, (window,) * 3, 1))


def test_open_labels_says_unlabelled(labelled):
    url, ink, count = labelled
    values = open_labels(url)
    assert values.dims == ("z", "y", "x")
    np.testing.assert_array_equal(
        values.values, np.where(count > 0, ink / np.float32(255), np.float32(-1)), strict=True
    )


def test_bad_inputs(labelled, tmp_path):
    url, _, _ = labelled
    with pytest.raises(InputError, match=r"no window of .* has 1000000 labelled"):
        patches(url, tmp_path / "a.npy", PatchSettings(min_labelled=10**6))
    with pytest.raises(InputError, match="all are 1 or more"):
        PatchSettings(stride=Zyx(0, 1, 1))
    with pytest.raises(InputError, match="no Zarr volume at"):
        patches(tmp_path / "none.zarr", tmp_path / "a.npy")
    with pytest.raises(InputError, match="cannot be written"):
        patches(url, tmp_path / "no" / "a.npy")
    zarr.save_array(tmp_path / "scan.zarr", np.ones((4, 4, 4), np.uint8))
    with pytest.raises(InputError, match="is no label group"):
        patches(tmp_path / "scan.zarr", tmp_path / "a.npy")
    assert not (tmp_path / "a.npy").exists()


@pytest.mark.parametrize("name", ["ink", "count"])
def test_unfinished_labels_are_refused(tmp_path, name):
    ink, count = some()
    url = group(tmp_path / "labels.zarr", ink, count)
    manifest = tmp_path / "labels.zarr" / ".inkzarr" / name / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"done"', '"running"'))
    with pytest.raises(InputError, match="are unfinished"):
        patches(url, tmp_path / "a.npy")


def test_a_damaged_chunk_is_an_error(tmp_path):
    ink, count = some()
    url = group(tmp_path / "labels.zarr", ink, count)
    (url / "ink" / "0" / "1" / "0").write_bytes(b"torn")
    with pytest.raises(StoreError, match=r"0/1/0 of"):
        patches(url, tmp_path / "a.npy", PatchSettings(Zyx.of(64)))
    assert not (tmp_path / "a.npy").exists()


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.npy", b"x"), ("a.parquet", b"PAR1"), ("b.npy", None), ("c.npy", None)],
)
def test_tables_that_cannot_be_read(tmp_path, name, data):
    path = tmp_path / name
    if data is None:
        np.save(path, np.zeros((3, 2), int) if name == "b.npy" else np.zeros((3, 3)))
    else:
        path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be read"):
        read_patches(path)
    with pytest.raises(InputError, match="do not exist"):
        read_patches(tmp_path / "none.parquet")


def test_parquet_of_others(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"x": [3], "z": [1], "y": [2]}), tmp_path / "a.parquet")
    table = read_patches(tmp_path / "a.parquet")
    assert table.corners.tolist() == [[1, 2, 3]]
    assert table.labelled is None
    pyarrow.parquet.write_table(pa.table({"x": [3], "y": [2]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="no column z"):
        read_patches(tmp_path / "b.parquet")
    write_patches(tmp_path / "c.parquet", table)
    assert read_patches(tmp_path / "c.parquet").labelled.tolist() == [0]
    assert len(Patches(np.zeros((0, 3), np.int64))) == 0


def test_a_name_that_says_no_format_is_refused(labelled, tmp_path):
    with pytest.raises(InputError, match=r"p\.csv: its name ends in \.parquet or \.npy"):
        patches(labelled[0], tmp_path / "p.csv")
    assert not list(tmp_path.iterdir())
