"""No kept crop, however it is shifted, comes nearer than the margin; the same answer as all pairs give."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Zyx
from inkzarr.core.patches import Patches, read_patches, write_patches
from inkzarr.split import SplitSettings, choose, split, split_by_region

CORNERS = npst.arrays(np.int64, st.tuples(st.integers(1, 60), st.just(3)), elements=st.integers(0, 300))
SIZES = st.builds(Zyx, *[st.integers(1, 60)] * 3)


def gap(train, mine, valid, other):
    """Box to box, all pairs."""
    a, b = train[:, None], valid[None]
    apart = np.maximum(0, np.maximum(b - (a + np.array(mine)), a - (b + np.array(other))))
    return np.sqrt((apart.astype(float) ** 2).sum(-1)).min(1)


@given(CORNERS, CORNERS, SIZES, SIZES, st.integers(0, 200), st.integers(0, 20), st.randoms())
def test_no_kept_crop_comes_nearer_than_the_margin(train, valid, mine, other, margin, jitter, random):
    tables = Patches(train, window=mine), Patches(valid, window=other)
    near, least = choose(*tables, SplitSettings(margin=margin, jitter=jitter))
    wide = Zyx(*(n + 2 * jitter for n in mine))
    gaps = gap(train - jitter, wide, valid, other)
    np.testing.assert_array_equal(near, gaps < margin)
    kept = train[~near]
    assert least == pytest.approx(gaps[~near].min(initial=np.inf))
    for _ in range(5):
        shift = np.array([[random.randint(-jitter, jitter) for _ in range(3)] for _ in kept]).reshape(-1, 3)
        if len(kept):
            assert gap(kept + shift, mine, valid, other).min() >= margin


@given(CORNERS, CORNERS, st.floats(0, 300))
def test_the_rule_corner_is_the_original_one(train, valid, margin):
    near, least = choose(Patches(train), Patches(valid), SplitSettings(margin=margin, rule="corner"))
    distance = np.sqrt(((train[:, None] - valid[None]).astype(float) ** 2).sum(-1)).min(1)
    np.testing.assert_array_equal(near, distance < margin)
    assert least == pytest.approx(distance[~near].min(initial=np.inf))


def test_many_windows_need_little_memory():
    import tracemalloc

    rng = np.random.default_rng(0)
    train, valid = (Patches(rng.integers(0, 9000, (n, 3))) for n in (40_000, 9_000))
    choose(train.take(np.arange(9)), valid)
    tracemalloc.start()
    near, _ = choose(train, valid, SplitSettings(margin=100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0 < near.sum() < len(train)
    assert peak < 20e6 < 40_000 * 9_000 * 8


def tables(folder, window=None):
    row = np.arange(0, 4000, 100)
    train = Patches(np.stack([row, row * 0, row * 0], -1), window=window and Zyx.of(window))
    valid = Patches(np.array([[2000, 0, 0]]), window=window and Zyx.of(window))
    write_patches(folder / "train.parquet", train)
    write_patches(folder / "valid.parquet", valid)
    return folder / "train.parquet", folder / "valid.parquet"


@pytest.mark.parametrize("out", ["kept.parquet", "kept.npy"])
def test_split_writes_a_table_and_a_picture(tmp_path, out):
    report = split(*tables(tmp_path), tmp_path / out)
    kept = read_patches(tmp_path / out)
    assert kept.corners[:, 0].tolist() == [*range(0, 1400, 100), *range(2700, 4000, 100)]
    assert (report.kept, report.dropped, report.valid, report.gap) == (27, 13, 1, 572)
    assert "smallest gap left: 572 voxels, 512 asked for" in str(report)
    with Image.open(tmp_path / f"{out}.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert {(40, 90, 200), (220, 60, 40), (205, 205, 205)} <= colours
    if out.endswith("parquet"):
        assert kept.lineage["split"]["gap"] == 572


def test_the_window_is_the_tables_own(tmp_path):
    told = tables(tmp_path, window=300)
    assert split(*told, tmp_path / "a.npy").gap == 600
    assert split(*told, tmp_path / "b.npy", SplitSettings(window=Zyx.of(128))).gap == 572


def test_split_by_region(tmp_path):
    grid = np.stack(np.meshgrid(*[np.arange(0, 1280, 128)] * 3, indexing="ij"), -1).reshape(-1, 3)
    table = Patches(grid, window=Zyx.of(128), lineage={"shape": [1300, 1280, 1280]})
    write_patches(tmp_path / "all.parquet", table)
    names = tmp_path / "valid.parquet", tmp_path / "train.parquet"
    report = split_by_region(
        tmp_path / "all.parquet", "0:300,:,:", *names, SplitSettings(margin=100, jitter=16)
    )
    valid, train = (read_patches(name) for name in names)
    assert set(valid.corners[:, 0]) == {0, 128}
    assert set(train.corners[:, 0]) == set(range(384 + 128 - 128, 1280, 128))
    assert report.gap == 384 - 256 - 16 == 112
    assert valid.lineage["region"] == "0:300,0:1280,0:1280"
    for region in ("0:100,:,:", ":,:,:"):
        with pytest.raises(InputError, match=r"region .* holds (no|all) windows"):
            split_by_region(tmp_path / "all.parquet", region, *names)
    with pytest.raises(InputError, match="cannot be used"):
        split_by_region(tmp_path / "all.parquet", "0:100", *names)


def test_bad_inputs(tmp_path):
    train, valid = tables(tmp_path)
    with pytest.raises(InputError, match="both read and written"):
        split(train, valid, train)
    with pytest.raises(InputError, match="do not exist"):
        split(train, tmp_path / "none.parquet", tmp_path / "a.npy")
    with pytest.raises(InputError, match="no training window is 9999 voxels"):
        split(train, valid, tmp_path / "a.npy", SplitSettings(margin=9999))
    np.save(tmp_path / "empty.npy", np.zeros((0, 3), int))
    with pytest.raises(InputError, match="validation windows is empty"):
        split(train, tmp_path / "empty.npy", tmp_path / "a.npy")
    assert not (tmp_path / "a.npy").exists()
    for settings, match in (
        ({"margin": -1}, "margin -1"),
        ({"jitter": -1}, "jitter -1"),
        ({"rule": "face"}, "box or corner"),
        ({"rule": "corner", "jitter": 3}, "does not go with"),
        ({"margin": float("nan")}, "margin nan"),
    ):
        with pytest.raises(InputError, match=match):
            SplitSettings(**settings)


def test_a_name_that_says_no_format_is_refused(tmp_path):
    for call in (
        lambda: split("a.parquet", "b.parquet", tmp_path / "t.csv"),
        lambda: split_by_region("a.parquet", ":,:,:", tmp_path / "v.csv", tmp_path / "t.npy"),
    ):
        with pytest.raises(InputError, match=r"\.csv: its name ends in \.parquet or \.npy"):
            call()
