"""Every block written once, remembered and resumed: the same bytes however the run went."""

import json
import shutil
import threading
from dataclasses import replace

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from inkzarr.core.errors import BlocksFailedError, InputError, StoreError, UnfinishedWarning
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.job import RunOptions
from inkzarr.core.ledger import Ledger
from inkzarr.core.pool import Threads
from inkzarr.core.remote import open_store
from inkzarr.core.runner import plan_blocks, write_blocks
from inkzarr.core.store import open_volume
from inkzarr.testing.strategies import boxes, shapes
from tests.core.blocks import SHAPE, Fails, job, voxels

pytestmark = pytest.mark.usefixtures("small_chunks")

QUIET = RunOptions(workers=2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out.zarr"
    write_blocks(job(out), voxels, QUIET)
    return out


layouts = st.one_of(
    st.just({}),
    st.just({"zarr_format": 3}),
    st.sampled_from([8, 16]).map(lambda n: {"zarr_format": 3, "shard": n}),
)


@given(
    data=st.data(),
    shape=shapes(1, 26),
    block=st.tuples(*[st.integers(1, 30)] * 3),
    layout=layouts,
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
    workers=st.integers(1, 4),
)
def test_same_bytes_for_any_block_size_and_workers(
    tmp_path_factory, tree, data, shape, block, layout, dtype, workers
):
    region = data.draw(st.none() | boxes(shape))
    folders = []
    for cut in (30, block):
        out = tmp_path_factory.mktemp("any") / "out.zarr"
        todo = job(out, shape, Zyx.of(cut), dtype, region, **layout)
        report = write_blocks(todo, lambda box: voxels(box, dtype), RunOptions(workers=workers))
        folders.append(tree(out))
    inside = region or Box.whole(shape)
    expected = np.zeros(shape, dtype)
    expected[inside.slices] = voxels(inside, dtype)
    written = open_volume(out).to_numpy()
    assert written.dtype == dtype
    assert (written == expected).all()
    assert report.nonzero == np.count_nonzero(expected)
    whole, cut = ({k: v for k, v in folder.items() if k != ".inkzarr/0/blocks.jsonl"} for folder in folders)
    assert whole == cut
    recorded = stored_ledger(out)
    meets = [index in set(recorded.grid.indices(region)) for index in recorded.grid.indices()]
    assert recorded.done.ravel()[meets].all()


def stored_ledger(out):
    found = Ledger(open_store(str(out)), "0")
    assert found.load()
    return found.chunk_table()


def test_ledgers_agree_about_chunks_whatever_the_block_size(tmp_path):
    tables = []
    for block in (8, 16, (24, 8, 16)):
        write_blocks(job(tmp_path / str(block) / "out.zarr", block=block), voxels, QUIET)
        tables.append(stored_ledger(tmp_path / str(block) / "out.zarr"))
    for table in tables[1:]:
        for name in ("done", "crc32c", "nonzero", "high"):
            assert (getattr(table, name) == getattr(tables[0], name)).all()
    assert tables[0].done.all()


@pytest.mark.parametrize("workers", [1, 4])
def test_the_whole_folder_is_the_same_for_any_number_of_workers(tmp_path, tree, undisturbed, workers):
    out = tmp_path / "out.zarr"
    write_blocks(job(out), voxels, RunOptions(workers=workers))
    assert tree(out) == tree(undisturbed)


def test_a_block_that_fails_at_first_is_tried_again(tmp_path, tree, undisturbed):
    out = tmp_path / "out.zarr"
    flaky = Fails([Zyx(8, 0, 0), Zyx(16, 16, 16)], times=2)
    write_blocks(job(out), flaky, QUIET)
    assert flaky.calls[Zyx(8, 0, 0)] == 3
    assert flaky.calls[Zyx(0, 0, 0)] == 1
    assert tree(out) == tree(undisturbed)


def test_a_block_that_fails_for_good_is_reported_and_the_others_are_written(
    tmp_path, tree, undisturbed, capsys
):
    out = tmp_path / "out.zarr"
    bad = Fails([Zyx(8, 8, 8), Zyx(0, 0, 16)])
    with pytest.raises(BlocksFailedError, match=r"2 of 27 blocks failed.*run again") as raised:
        write_blocks(job(out), bad, QUIET)
    assert raised.value.exit_code == 5
    assert "8:16,8:16,8:16: told to fail" in str(raised.value)
    assert "0:8,0:8,16:24" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "block 8:16,8:16,8:16 failed" in capsys.readouterr().err
    with pytest.warns(UnfinishedWarning, match=r"out.zarr is unfinished: .* \(2 of 27 chunks are missing\)"):
        there = open_volume(out).to_numpy()
    expected = voxels(Box.whole(SHAPE))
    expected[8:16, 8:16, 8:16] = expected[:8, :8, 16:] = 0
    assert (there == expected).all()
    assert plan_blocks(job(out), QUIET).done == 25
    mended = Fails([])
    report = write_blocks(job(out), mended, QUIET)
    assert set(mended.calls) == {Zyx(8, 8, 8), Zyx(0, 0, 16)}
    assert report.resumed == 25
    assert "25 from before" in str(report)
    assert report.nonzero == np.count_nonzero(voxels(Box.whole(SHAPE)))
    assert tree(out) == tree(undisturbed)


def test_resumed_with_other_blocks(tmp_path, tree, undisturbed):
    """The ledger knows chunks: what was written in small blocks counts for large ones."""
    out = tmp_path / "out.zarr"
    with pytest.raises(BlocksFailedError):
        write_blocks(job(out), Fails([Zyx(8, 8, 8)]), QUIET)
    calls = Fails([])
    report = write_blocks(job(out, block=(8, 32, 32)), calls, QUIET)
    assert set(calls.calls) == {Zyx(8, 0, 0)}
    assert report.nonzero == np.count_nonzero(voxels(Box.whole(SHAPE)))
    chunks = {name: body for name, body in tree(out).items() if not name.endswith(".jsonl")}
    assert chunks == {name: body for name, body in tree(undisturbed).items() if not name.endswith(".jsonl")}


def test_store_errors_alone_end_as_one(tmp_path):
    with pytest.raises(StoreError, match="2 of 27 blocks failed") as raised:
        write_blocks(job(tmp_path / "a.zarr"), Fails([Zyx(0, 0, 0), Zyx(0, 0, 8)], error=StoreError), QUIET)
    assert raised.value.exit_code == 4
    many = [Zyx(0, 8, 8 * n) for n in range(3)] + [Zyx(8, 8, 8 * n) for n in range(3)]
    with pytest.raises(StoreError, match=r"6 of 27 blocks failed.*and 1 more"):
        write_blocks(job(tmp_path / "b.zarr"), Fails(many, error=StoreError), QUIET)


def test_a_run_that_was_interrupted_writes_nothing_more(tmp_path, monkeypatch):
    """In Jupyter the process goes on after Ctrl-C, and with it the threads of blocks."""
    inside, go, ended = threading.Event(), threading.Event(), threading.Event()

    def slow(box):
        inside.set()
        assert go.wait(30)
        try:
            return voxels(box)
        finally:
            ended.set()

    def interrupt(_self, _pending):
        assert inside.wait(30)
        raise KeyboardInterrupt

    monkeypatch.setattr(Threads, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_blocks(job(tmp_path / "out.zarr"), slow, RunOptions(workers=2))
    monkeypatch.undo()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    go.set()
    assert ended.wait(30)
    for thread in [thread for thread in threading.enumerate() if thread.name.startswith("block")]:
        thread.join(30)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    write_blocks(job(tmp_path / "out.zarr"), voxels, QUIET)
    np.testing.assert_array_equal(open_volume(tmp_path / "out.zarr").to_numpy(), voxels(Box.whole(SHAPE)))


def test_bad_input_stops_at_once(tmp_path):
    bad = Fails([Zyx(0, 0, 8)], error=InputError)
    with pytest.raises(InputError, match="told to fail"):
        write_blocks(job(tmp_path / "out.zarr"), bad, RunOptions(workers=1))
    assert bad.calls[Zyx(0, 0, 8)] == 1
    assert sum(bad.calls.values()) <= 4
    assert plan_blocks(job(tmp_path / "out.zarr"), QUIET).done >= 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"fingerprint": {"made_of": "letters"}}, "made_of was 'numbers', is 'letters'"),
        ({"fingerprint": {"made_of": "numbers", "depth": 4}}, "depth was None, is 4"),
        ({"fingerprint": {"made_of": {"window": [1, 2]}}}, "made_of was 'numbers'"),
        ({"shape": Zyx(20, 17, 25)}, r"shape was \[20, 17, 24\], is \[20, 17, 25\]"),
        ({"dtype": "uint16"}, "dtype was 'uint8', is 'uint16'"),
        ({"zarr_format": 3}, "zarr_format was 2, is 3"),
        ({"region": Box(Zyx(0, 0, 0), Zyx(8, 8, 8))}, "region was None, is '0:8,0:8,0:8'"),
    ],
)
def test_other_settings_are_refused(undisturbed, tree, change, told):
    before = tree(undisturbed)
    for call in (
        lambda: write_blocks(job(undisturbed, **change), voxels, QUIET),
        lambda: plan_blocks(job(undisturbed, **change), QUIET),
    ):
        with pytest.raises(InputError, match=f"begun with other settings.*{told}.*--overwrite") as raised:
            call()
        assert "\n" not in str(raised.value)
        assert "block" not in str(raised.value).partition("begun")[2]
    assert tree(undisturbed) == before


def test_only_what_differs_inside_is_told(tmp_path):
    def made_of(window, overlap):
        return {
            "input": {"name": "scan.zarr", "chunks": (8, 8, 8)},
            "window": {"edge": window, "overlap": overlap},
        }

    out = tmp_path / "out.zarr"
    write_blocks(job(out, fingerprint=made_of(64, 0.5)), voxels, QUIET)
    assert write_blocks(job(out, fingerprint=made_of(64, 0.5)), voxels, QUIET).resumed == 27
    with pytest.raises(InputError, match=r"\(window.edge was 64, is 128\)"):
        write_blocks(job(out, fingerprint=made_of(128, 0.5)), voxels, QUIET)


def test_overwriting(tmp_path, tree, undisturbed):
    out = tmp_path / "out.zarr"
    write_blocks(job(out, Zyx(9, 40, 8), dtype="uint16", zarr_format=3), lambda b: voxels(b, "uint16"), QUIET)
    write_blocks(job(out), voxels, replace(QUIET, overwrite=True))
    assert tree(out) == tree(undisturbed)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_volume_of_ours_stays(tmp_path, tree, overwrite):
    folder = tmp_path / "holiday"
    (folder / "photos").mkdir(parents=True)
    (folder / "photos" / "beach.jpg").write_bytes(b"sand")
    file = tmp_path / "thesis.txt"
    file.write_text("all of it")
    before = tree(tmp_path)
    for out in (folder, file):
        with pytest.raises(InputError, match=r"did not write|is no Zarr volume|is a file") as raised:
            write_blocks(job(out), voxels, RunOptions(overwrite=overwrite))
        assert str(out) in str(raised.value)
    assert tree(tmp_path) == before


def test_a_volume_of_others_stays_unless_overwritten(tmp_path, tree):
    out = tmp_path / "out.zarr"
    zarr.create_array(out, data=voxels(Box.whole(SHAPE)), zarr_format=2)
    before = tree(out)
    for call in (write_blocks, lambda j, _, o: plan_blocks(j, o)):
        with pytest.raises(InputError, match=r"holds what this run did not write.*--overwrite"):
            call(job(out), voxels, QUIET)
    assert tree(out) == before
    write_blocks(job(out), voxels, replace(QUIET, overwrite=True))
    assert (open_volume(out).to_numpy() == voxels(Box.whole(SHAPE))).all()


def test_the_input_is_never_overwritten(tmp_path, tree):
    out = tmp_path / "scan.zarr"
    write_blocks(job(out), voxels, QUIET)
    (tmp_path / "link").symlink_to(tmp_path)
    before = tree(tmp_path)
    for source in (out, f"{tmp_path}/link/scan.zarr/", f"{out}/0", f"file://{out}"):
        with pytest.raises(InputError, match="lie in each other"):
            write_blocks(replace(job(out), inputs=(str(source),)), voxels, RunOptions(overwrite=True))
    assert tree(tmp_path) == before
    write_blocks(replace(job(out), inputs=(f"{out}2",)), voxels, RunOptions(overwrite=True))


def test_a_plan_writes_nothing(tmp_path):
    plan = plan_blocks(replace(job(tmp_path / "out.zarr", block=16), block_bytes=10**6), QUIET, windows="77")
    assert (plan.blocks, plan.done, plan.peak_bytes) == (8, 0, 2 * 10**6)
    told = str(plan)
    assert "windows      77" in told
    assert "8 of 16,16,24, 0 done already" in told or "8 of 16,16,16" in told
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory(tmp_path):
    heavy = replace(job(tmp_path / "out.zarr"), block_bytes=10**9)
    with pytest.raises(InputError, match=r"needs 1 GB, more than the 500 MB given"):
        write_blocks(heavy, voxels, RunOptions(memory=5 * 10**8))
    assert list(tmp_path.iterdir()) == []
    assert heavy.in_flight(RunOptions(memory=3 * 10**9, workers=8)) == 3
    assert replace(heavy, block_bytes=10**15).in_flight(RunOptions()) == 1


@pytest.mark.parametrize("chunks", [8, (5, 17, 3)])
def test_a_lazy_array(tmp_path, tree, undisturbed, chunks):
    out = tmp_path / "out.zarr"
    write_blocks(job(out), da.from_array(voxels(Box.whole(SHAPE)), chunks=chunks), QUIET)
    assert tree(out) == tree(undisturbed)


@pytest.mark.parametrize(
    "wrong", [lambda box: voxels(box)[1:], lambda box: voxels(box, "int8"), lambda box: voxels(box)[0]]
)
def test_blocks_of_another_shape_or_dtype_fail(tmp_path, wrong):
    with pytest.raises(BlocksFailedError, match=r"came as .*not \(8, 8, 8\) uint8"):
        write_blocks(job(tmp_path / "out.zarr"), wrong, QUIET)


def test_a_damaged_ledger_is_refused_until_overwritten(tmp_path, tree, undisturbed):
    out = tmp_path / "out.zarr"
    shutil.copytree(undisturbed, out)
    lines = out / ".inkzarr" / "0" / "blocks.jsonl"
    lines.write_bytes(lines.read_bytes()[:-30])
    for call in (lambda: write_blocks(job(out), voxels, QUIET), lambda: plan_blocks(job(out), QUIET)):
        with pytest.raises(InputError, match=r"cannot be read.*--overwrite"):
            call()
    write_blocks(job(out), voxels, replace(QUIET, overwrite=True))
    assert tree(out) == tree(undisturbed)


def test_a_ledger_without_its_array_is_refused(tmp_path, undisturbed):
    out = tmp_path / "out.zarr"
    shutil.copytree(undisturbed, out)
    shutil.rmtree(out / "0")
    with pytest.raises(InputError, match=r"has a ledger but no array 0.*--overwrite"):
        write_blocks(job(out), voxels, QUIET)


def test_a_line_lost_is_a_block_done_again(tmp_path, tree, undisturbed):
    out = tmp_path / "out.zarr"
    shutil.copytree(undisturbed, out)
    lines = out / ".inkzarr" / "0" / "blocks.jsonl"
    kept = lines.read_text().splitlines(keepends=True)
    lines.write_text("".join(kept[:5] + kept[6:]))
    calls = Fails([])
    write_blocks(job(out), calls, QUIET)
    assert [tuple(start) for start in calls.calls] == [tuple(json.loads(kept[5])["start"])]
    assert tree(out) == tree(undisturbed)


def test_nothing_runs_twice(undisturbed, tree):
    before = tree(undisturbed)
    calls = Fails([])
    assert write_blocks(job(undisturbed), calls, QUIET).resumed == 27
    assert not calls.calls
    assert tree(undisturbed) == before
