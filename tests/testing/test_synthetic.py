"""The synthetic scroll: same bytes however it is cut, ink where it is said to be, and no short cut to it."""

import itertools
import re
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.surface import open_surface
from inkzarr.testing.letters import page
from inkzarr.testing.spiral import Spiral
from inkzarr.testing.strategies import boxes, shapes, windows
from inkzarr.testing.synthetic import SyntheticScroll
from inkzarr.testing.texture import HALO, smooth, white

ALL = slice(None)
SMALL = SyntheticScroll(shape=(40, 150, 170), letter=24)
KINDS = ("block", "truth_block", "labelled_block")
SCROLL_1 = (14376, 7888, 8096)


@pytest.fixture(scope="module")
def whole():
    return {kind: getattr(SMALL, kind)(Box.whole(SMALL.shape)) for kind in KINDS}


@pytest.fixture(scope="module")
def scan():
    """Scan, ink and written layer of a scroll large enough for statistics."""
    scroll = SyntheticScroll(shape=(96, 192, 192))
    return scroll, scroll.volume().values, scroll.truth().values > 0, scroll.labelled().values > 0


def auc(positive, negative):
    """Chance that a positive outranks a negative."""
    ranks = rankdata(np.concatenate([positive, negative]))
    n = len(positive)
    return (ranks[:n].sum() - n * (n + 1) / 2) / n / len(negative)


@given(box=boxes(Zyx(*SMALL.shape)))
def test_any_box_is_the_crop_of_the_whole(whole, box):
    for kind in KINDS:
        np.testing.assert_array_equal(getattr(SMALL, kind)(box), whole[kind][box.slices])


@given(cell=st.tuples(*(st.integers(15, 90),) * 3))
@settings(max_examples=5)
def test_blocks_put_together_are_the_whole(whole, cell):
    grid = Grid(Zyx(*SMALL.shape), Zyx(*cell))
    out = np.zeros(SMALL.shape, np.uint8)
    for index in grid.indices():
        out[grid.box(index).slices] = SMALL.block(grid.box(index))
    np.testing.assert_array_equal(out, whole["block"])


def test_volumes_are_lazy_and_say_what_they_are(whole):
    for array, kind in (
        (SMALL.volume(), "block"),
        (SMALL.truth(), "truth_block"),
        (SMALL.labelled(), "labelled_block"),
    ):
        assert array.dims == ("z", "y", "x")
        assert array.dtype == np.uint8
        assert array.chunks is not None
        assert array.attrs["voxel_size_um"] == 7.91
        assert "synthetic" in array.attrs["source"]
        np.testing.assert_array_equal(array.values, whole[kind])
    part = SMALL.volume(chunk=32)[::-3, 5, 20:90:7]
    np.testing.assert_array_equal(part.values, whole["block"][::-3, 5, 20:90:7])


def test_a_seed_makes_a_scroll(whole):
    again = SyntheticScroll(shape=SMALL.shape, letter=24)
    other = SyntheticScroll(shape=SMALL.shape, letter=24, seed=1)
    box = Box.parse("0:4,:,:", Zyx(*SMALL.shape))
    np.testing.assert_array_equal(again.block(box), whole["block"][:4])
    assert (other.block(box) != whole["block"][:4]).mean() > 0.3
    assert again.volume().data.name == SMALL.volume().data.name != other.volume().data.name


def test_ink_lies_on_the_written_layer_and_air_around_is_zero(scan):
    _, volume, ink, written = scan
    assert not (ink & ~written).any()
    assert 0.15 < ink.sum() / written.sum() < 0.45
    assert not volume[:, :3].any()
    assert not volume[:, :, -3:].any()
    assert volume[written].min() > 0
    assert volume[written].mean() > 1.5 * volume[(volume > 0) & ~written].min()


def test_ink_cannot_be_had_by_thresholding(scan):
    _, volume, ink, written = scan
    bare = written & ~ink
    assert 0.45 < auc(volume[ink], volume[bare]) < 0.55
    assert abs(volume[ink].mean() - volume[bare].mean()) < 2
    assert 0.9 < volume[ink].std() / volume[bare].std() < 1.1


def test_ink_can_be_had_from_texture(scan):
    _, volume, ink, written = scan
    grey = volume.astype(np.float32)
    rough = gaussian_filter((grey - gaussian_filter(grey, 2)) ** 2, 2)
    assert auc(-rough[ink], -rough[written & ~ink]) > 0.85


def test_surfaces_meet_the_ink_that_their_labels_show(scan):
    scroll, _, ink, written = scan
    segments = scroll.segments()
    assert len(segments) >= 2
    for segment in segments:
        tile, label = segment.surface.tile(ALL, ALL), segment.label
        assert tile.valid.all()
        assert label.shape == segment.shape == segment.surface.shape
        assert set(np.unique(label)) == {0, 255}
        np.testing.assert_allclose(np.linalg.norm(tile.normals, axis=-1), 1)
        for depth in (-3, 0, 3):
            place = np.floor(tile.points + depth * tile.normals + 0.5).astype(int)
            place = tuple(np.moveaxis(place, -1, 0))
            assert written[place].mean() > 0.97
            least = 0.97 if depth == 0 else 0.93
            assert (ink[place] == (label > 0))[written[place]].mean() > least


def test_segments_are_one_voxel_a_pixel_and_follow_each_other(scan):
    segments = scan[0].segments()
    for segment in segments:
        points, normals, _ = segment.surface.tile(ALL, ALL)
        steps = np.linalg.norm(np.diff(points, axis=1), axis=-1)
        assert 0.85 < steps.min() < steps.max() < 1.15
        across = np.cross(np.diff(points, axis=0)[:, 1:], np.diff(points, axis=1)[1:])
        assert ((across * normals[1:, 1:]).sum(-1) > 0.8).all(), (
            "columns x rows, in x, y, z, points along normals"
        )
    for one, following in itertools.pairwise(segments):
        assert one.columns.stop == following.columns.start
    assert segments[-1].columns.stop == scan[0].spiral.length
    ids = [segment.id for segment in segments]
    assert all(re.fullmatch(r"\d{14}", name) for name in ids)
    assert len({name[:-1] for name in ids}) == len(ids), "ids that differ in the last character are versions"


def test_segments_of_some_rows_are_parts_of_the_whole_windings():
    wholes, parts = SMALL.segments(), SMALL.segments(slice(10, 30))
    assert len({one.id for one in wholes + parts}) == 2 * len(wholes)
    for whole, part in zip(wholes, parts, strict=True):
        assert part.shape == (20, whole.shape[1])
        np.testing.assert_array_equal(part.label, whole.label[10:30])
        ours, theirs = part.surface.tile(ALL, ALL), whole.surface.tile(slice(10, 30), ALL)
        np.testing.assert_array_equal(ours.points, theirs.points)
        np.testing.assert_array_equal(ours.normals, theirs.normals)


@given(
    seed=st.integers(0, 99),
    size=st.integers(120, 9000),
    row=st.floats(0, 14000),
    part=st.floats(0, 1),
    depth=st.floats(-4, 9),
)
def test_sheet_and_points_are_inverse(seed, size, row, part, depth):
    spiral = Spiral(Zyx(14376, size, size), 22.0, seed)
    column = part * (spiral.length - 1)
    points, normals = spiral.points(np.array([row]), np.array([column]))
    assert (points >= 0).all()
    assert (points[..., 1:] <= size - 1).all()
    on_sheet, found = spiral.sheet(*points.T)
    assert abs(on_sheet.item()) < 1e-6
    assert abs(found.item() - column) < 1e-4
    off, _ = spiral.sheet(*(points + depth * normals).T)
    if 40 < column < spiral.length - 40:
        assert abs(off.item() - depth) < 0.15 * abs(depth) + 1e-6


@pytest.mark.parametrize("kind", ["ppm", "tifxyz"])
def test_written_segments_read_back(tmp_path, kind):
    SMALL.write_segments(tmp_path, kind=kind)
    segments = SMALL.segments()
    assert sorted(p.name for p in (tmp_path / "paths").iterdir()) == [segment.id for segment in segments]
    for segment in segments:
        surface = open_surface(tmp_path / "paths" / segment.id / f"{segment.id}.{kind}")
        with Image.open(tmp_path / "inklabels" / f"{segment.id}_inklabels.png") as image:
            label = np.asarray(image)
        rows, cols = segment.shape
        assert surface.shape == label.shape
        np.testing.assert_array_equal(label[:rows, :cols], segment.label)
        found, true = surface.tile(slice(rows), slice(cols)), segment.surface.tile(ALL, ALL)
        assert found.valid.mean() > 0.7
        np.testing.assert_allclose(
            found.points[found.valid], true.points[found.valid], atol=0 if kind == "ppm" else 0.9
        )
        assert ((found.normals * true.normals).sum(-1)[found.valid] > 0.9).all()
        if kind == "ppm":
            assert (tmp_path / "paths" / segment.id / f"{segment.id}_mask.png").exists()
            assert found.valid.all()


def test_a_scroll_of_real_size_is_made_at_once_and_read_anywhere():
    tracemalloc.start()
    scroll = SyntheticScroll(shape=SCROLL_1)
    volume, segments = scroll.volume(), scroll.segments()
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    assert volume.shape == SCROLL_1
    assert sum(segment.shape[1] for segment in segments) == scroll.spiral.length
    box = Box(Zyx(7100, 1000, 4000), Zyx(7132, 1040, 4040))
    np.testing.assert_array_equal(volume[box.slices].values, scroll.block(box))
    rows, cols = slice(9000, 9040), slice(5000, 5040)
    tile, label = segments[-1].surface.tile(rows, cols), segments[-1].label_tile(rows, cols)
    place = np.floor(tile.points + 0.5).astype(int).reshape(-1, 3)
    box = Box(Zyx(*place.min(0).tolist()), Zyx(*(place.max(0) + 1).tolist()))
    truth = scroll.truth_block(box)[tuple((place - box.start).T)]
    assert (truth == label.ravel() // 255).mean() > 0.95


@given(reach=st.sampled_from([(1,), (1, 2), (1, 2, 3)]))
@settings(max_examples=3)
def test_noise_keeps_unit_variance(reach):
    noise = white(3, Box(Zyx(-HALO, -HALO, -HALO), Zyx(70, 70, 70)))
    assert abs(noise.std() - 1) < 0.02
    assert abs(smooth(noise, reach).std() - 1) < 0.1


def test_letters_are_letters():
    ink = page(("ΗΟ", "I"), 40)  # noqa: RUF001
    assert ink.shape[0] == 120
    rows = np.flatnonzero(ink[:60].any(1))
    assert 38 <= rows[-1] - rows[0] <= 46
    np.testing.assert_array_equal(ink, page(("HO", "I"), 40))
    with pytest.raises(InputError, match="'ΓΩ' are not in Pillow's font"):
        page(("ΓΑΩ",), 40)
    with pytest.raises(InputError, match="no letters"):
        page(("  ",), 40)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"shape": (10, 60, 200)}, r"too narrow for one winding .* use at least \d+ voxels"),
        ({"shape": (0, 200, 200)}, "no volume"),
        ({"thickness": 20.0}, "do not fit"),
        ({"written": 30.0}, "do not fit"),
        ({"letter": 2}, "too small"),
        ({"seed": -1}, "too small"),
    ],
)
def test_settings_that_do_not_fit(options, match):
    with pytest.raises(InputError, match=match):
        SyntheticScroll(**options)


def test_the_least_shape_is_enough():
    with pytest.raises(InputError) as refused:
        SyntheticScroll(shape=(8, 20, 20))
    least = int(re.search(r"at least (\d+)", str(refused.value)).group(1))
    assert SyntheticScroll(shape=(8, least, least)).segments()
    with pytest.raises(InputError, match="too narrow"):
        SyntheticScroll(shape=(8, least - 4, least - 4))


def test_misuse_is_told():
    with pytest.raises(InputError, match="reaches outside"):
        SMALL.block(Box(Zyx(0, 0, 0), Zyx(1, 1, 9999)))
    with pytest.raises(InputError, match="'obj' are not known"):
        SMALL.write_segments(Path("nowhere"), kind="obj")
    assert not Path("nowhere").exists()


@given(shape=shapes(), data=st.data())
def test_strategies_keep_their_word(shape, data):
    box, layout = data.draw(boxes(shape)), data.draw(windows(shape))
    assert not box.empty
    assert box.clip(Box.whole(shape)) == box
    assert all(1 <= s <= w for s, w in zip(layout.stride, layout.window, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert layout.counts.volume >= 1
