"""The ledger remembers what was written, and says so when it cannot be read."""

import json
from dataclasses import replace

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from inkzarr.core.errors import InkzarrError, InputError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.ledger import Ledger, Manifest
from inkzarr.core.records import BlockRecord, ChunkRecord
from inkzarr.core.remote import open_store

SHAPE, CHUNKS = (10, 8, 8), (4, 4, 4)
FIRST = Box(Zyx(0, 0, 0), Zyx(4, 8, 8))
LAST = Box(Zyx(8, 0, 0), Zyx(10, 8, 8))


def record(box, value=1):
    return BlockRecord.of(box, np.full(box.shape, value, "uint8"), Zyx(*CHUNKS))


@pytest.fixture
def ledger(tmp_path):
    begun = Ledger(open_store(str(tmp_path), read_only=False), "0")
    begun.begin(Manifest({"stage": "t"}, SHAPE, CHUNKS))
    return begun


def again(ledger):
    other = Ledger(ledger.store, "0")
    assert other.load()
    return other


@given(
    arrays.arrays(st.sampled_from(["uint8", "int16", "float32", ">u2"]), st.tuples(*[st.integers(1, 9)] * 3))
)
def test_a_block_is_measured_and_reads_back(voxels):
    box = Box.whole(voxels.shape)
    block = BlockRecord.of(box, voxels, Zyx(*CHUNKS))
    line = block.to_json()
    assert "\n" not in line
    back = BlockRecord.from_json(line)
    assert (back.box, back.nbytes, back.nonzero) == (box, voxels.nbytes, np.count_nonzero(voxels))
    assert back.to_json() == line
    if voxels.size and max(voxels.shape) <= 4:
        only = back.chunks[0]
        assert only.crc32c == google_crc32c.value(voxels.tobytes())
        np.testing.assert_equal((only.low, only.high), (voxels.min().item(), voxels.max().item()))
        half = {"uint8": 128, ">u2": 32768}.get(
            voxels.dtype.str if voxels.dtype.str == ">u2" else voxels.dtype.name
        )
        assert only.upper == (None if half is None else np.count_nonzero(voxels >= half))


def test_a_ledger_of_an_earlier_version_has_no_upper_half(ledger, tmp_path):
    """Its lines hold four numbers a chunk; what is added now holds five."""
    ledger.add(record(FIRST, 200))
    ledger.flush()
    (part,) = (tmp_path / ".inkzarr" / "0").glob("blocks-*")
    old = json.loads(part.read_text())
    assert [chunk[4] for chunk in old["chunks"]] == [64] * 4
    part.write_text(json.dumps(old | {"chunks": [chunk[:4] for chunk in old["chunks"]]}) + "\n")
    resumed = again(ledger)
    resumed.add(record(LAST, 200))
    resumed.finish()
    table = again(ledger).chunk_table()
    assert table.upper[:, 0, 0].tolist() == [-1, -1, 32]
    assert table.done[:, 0, 0].tolist() == [True, False, True]


def test_nan_is_neither_low_nor_high():
    voxels = np.zeros((4, 4, 4), "float32")
    voxels[1, 2, 3] = np.nan
    chunk = ChunkRecord.of(voxels)
    assert np.isnan(chunk.low)
    assert np.isnan(chunk.high)
    assert chunk.nonzero == 1


def test_what_was_flushed_is_there_and_what_was_not_is_not(ledger):
    ledger.add(record(FIRST))
    ledger.flush()
    ledger.add(record(LAST))
    assert set(again(ledger).records) == {FIRST}
    table = again(ledger).chunk_table()
    assert table.done[:, 0, 0].tolist() == [True, False, False]
    assert table.high[0].max() == 1
    assert np.isinf(table.high[1:]).all()


def test_finished_ledgers_are_the_same_whatever_the_order(ledger, tmp_path):
    for box in (LAST, FIRST):
        ledger.add(record(box))
        ledger.flush()
    ledger.finish()
    folder = tmp_path / ".inkzarr" / "0"
    assert sorted(path.name for path in folder.iterdir()) == ["blocks.jsonl", "manifest.json"]
    text = (folder / "blocks.jsonl").read_text()
    assert [json.loads(line)["start"][0] for line in text.splitlines()] == [0, 8]
    other = again(ledger)
    assert other.manifest.state == "done"
    other.finish()
    assert (folder / "blocks.jsonl").read_text() == text


def test_beginning_leaves_nothing_of_an_earlier_one(ledger):
    ledger.add(record(FIRST))
    ledger.flush()
    ledger.begin(Manifest({"stage": "other"}, SHAPE, CHUNKS))
    assert again(ledger).records == {}


def test_no_ledger(tmp_path):
    assert not Ledger(open_store(str(tmp_path)), "0").load()
    assert not Ledger(open_store(str(tmp_path / "nothing")), "").load()


def test_before_it_began():
    ledger = Ledger(open_store("/nowhere"), "0")
    for call in (ledger.finish, ledger.chunk_table):
        with pytest.raises(RuntimeError, match="begun or loaded"):
            call()


GOOD = json.loads(record(FIRST).to_json())


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "null",
        json.dumps(GOOD)[:-20],
        json.dumps({k: v for k, v in GOOD.items() if k != "chunks"}),
        json.dumps(GOOD | {"chunks": GOOD["chunks"][:-1]}),
        json.dumps(GOOD | {"chunks": [[1, 2]]}),
        json.dumps(GOOD | {"stop": [4, 8]}),
        json.dumps(GOOD | {"stop": [4, 8, 7]}),
        json.dumps(GOOD | {"start": [1, 0, 0]}),
        json.dumps(GOOD | {"start": [40, 0, 0], "stop": [44, 8, 8]}),
        json.dumps(GOOD | {"start": ["a", 0, 0]}),
    ],
)
def test_a_damaged_line_is_refused(ledger, tmp_path, line):
    (tmp_path / ".inkzarr" / "0" / "blocks-x.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=r"ledger \.inkzarr/0 of .* cannot be read.*--overwrite") as raised:
        again(ledger)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("state", ["running", "struck", "done"])
def test_a_line_that_a_crash_cut_is_not_written(ledger, tmp_path, state):
    """Wherever it is cut; of a run that goes on. No beginning of a line is a line."""
    for box in (FIRST, LAST):
        ledger.add(record(box))
    ledger.finish()
    folder = tmp_path / ".inkzarr" / "0"
    whole, manifest = (folder / "blocks.jsonl").read_text(), (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest.replace('"done"', f'"{state}"'))
    first = whole.index("\n") + 1
    for length in range(1, len(whole)):
        (folder / "blocks.jsonl").write_text(whole[:length])
        if state != "running" and length not in (first - 1, first, len(whole) - 1):
            with pytest.raises(InputError, match="cannot be read"):
                again(ledger)
        elif state == "running":
            assert set(again(ledger).records) == ({FIRST} if length >= first else set())
    if state == "running":
        resumed = again(ledger)
        resumed.gather()
        assert (folder / "blocks.jsonl").read_text() == whole[:first]
        resumed.add(record(LAST))
        resumed.finish()
        assert (folder / "blocks.jsonl").read_text() == whole


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\0" * 40, '{"fingerprint": {}, "shape": 3}', "\xff"])
def test_a_damaged_manifest_is_refused(ledger, tmp_path, text):
    (tmp_path / ".inkzarr" / "0" / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(InkzarrError, match=r"cannot be read|cannot read|holds no byte"):
        again(ledger)


def test_the_only_line_is_cut_and_the_run_that_goes_on_is_killed(ledger, tmp_path):
    ledger.add(record(FIRST))
    ledger.flush()
    (part,) = (tmp_path / ledger.folder).glob("blocks-*.jsonl")
    part.write_text(part.read_text()[:-5])
    other = again(ledger)
    assert not other.records
    other.gather()
    assert not again(ledger).records
    other.add(record(LAST))
    other.finish()
    assert set(again(ledger).records) == {LAST}


def test_lost_lines_of_a_sparse_run_are_no_empty_blocks(tmp_path):
    store = open_store(str(tmp_path), read_only=False)
    ledger = Ledger(store, "0")
    ledger.begin(Manifest({"stage": "t"}, SHAPE, CHUNKS, sparse=True))
    ledger.add(record(Box(Zyx(0, 0, 0), Zyx(4, 8, 8))))
    ledger.finish()
    assert Ledger(store, "0").load()
    (tmp_path / ".inkzarr" / "0" / "blocks.jsonl").unlink()
    with pytest.raises(InputError, match="0 blocks where 1 were written"):
        Ledger(store, "0").load()


def test_blocks_of_another_size_are_not_counted_twice(tmp_path):
    store = open_store(str(tmp_path), read_only=False)
    ledger = Ledger(store, "0")
    ledger.begin(Manifest({"stage": "t"}, SHAPE, CHUNKS))
    small, large = Box(Zyx(0, 0, 0), Zyx(4, 4, 8)), Box(Zyx(4, 0, 0), Zyx(8, 8, 8))
    for box in (small, large):
        ledger.add(replace(record(box), tally={"votes": 5}))
    ledger.flush()
    ledger.keep({large})
    again = Ledger(store, "0")
    again.load()
    assert list(again.records) == [large]
    assert again.tally() == {"votes": 5}
