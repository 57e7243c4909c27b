"""The dataset: samples depend on their key alone, windows are complete, chunks are decoded about once."""

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from inkzarr.core.errors import StoreError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.labelled import open_label_arrays
from inkzarr.core.store import open_stored
from inkzarr.nn.chunks import ChunkCache, Labels, Voxels
from inkzarr.nn.config import Augment, Config
from inkzarr.nn.dataset import LANES, Crops, Order, Source, load
from inkzarr.testing.strategies import boxes

SHAPE, CHUNKS = (20, 50, 45), (8, 16, 16)


def write(folder, seed=0):
    """A scan of 16 bit, and labels in a part of it."""
    rng = np.random.default_rng(seed)
    scan = rng.integers(1, 60000, SHAPE).astype(np.uint16)
    count = np.zeros(SHAPE, np.uint16)
    count[4:12, 10:40, 5:30] = rng.integers(0, 3, (8, 30, 25))
    ink = np.where(count, rng.integers(0, 256, SHAPE), 0).astype(np.uint8)
    for name, array in (("scan.zarr", scan), ("labels.zarr/ink", ink), ("labels.zarr/count", count)):
        zarr.create_array(folder / name, data=array, chunks=CHUNKS, zarr_format=2)
    zarr.open_group(folder / "labels.zarr", mode="a", zarr_format=2)
    return scan, np.where(count > 0, ink.astype(np.int16), np.int16(-1))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    arrays = write(folder)
    ink, count = open_label_arrays(str(folder / "labels.zarr"))
    places = np.stack(
        np.meshgrid(*(range(0, n, w) for n, w in zip(SHAPE, (8, 8, 8), strict=True)), indexing="ij"), -1
    )
    source = Source(
        Voxels(open_stored(str(folder / "scan.zarr"))),
        Labels(ink, count, count.may_exceed(0)),
        places.reshape(-1, 3),
    )
    return folder, source, arrays


def crops(source, *, least=1, augment=None, jitter=4, limit=10**8, window=(8, 8, 8)):
    return Crops([source], window, 7, jitter, least, augment or Augment(), ChunkCache(limit))


def same(one, other):
    return (
        torch.equal(one.voxels, other.voxels)
        and torch.equal(one.labels, other.labels)
        and torch.equal(one.matrix, other.matrix)
        and one.drawn.noise == other.drawn.noise
        and one.touched == other.touched
    )


@given(box=boxes(Zyx(26, 60, 55)), limit=st.sampled_from([1, 20_000, 10**8]))
def test_a_box_is_padded_with_air_and_unlabelled_whatever_the_cache(made, box, limit):
    _, source, (scan, labels) = made
    moved = box.shift(Zyx(3, 5, 5), sign=-1)
    cache = ChunkCache(limit)
    for number, array, truth, fill in ((0, source.voxels, scan, 0), (1, source.labels, labels, -1)):
        for _ in range(2):
            found, touched = cache.read(number, array, moved)
            padded = np.full((26, 60, 55), fill, truth.dtype)
            padded[3:23, 5:55, 5:50] = truth
            np.testing.assert_array_equal(found, padded[box.slices])
            assert len(set(touched)) == len(touched)
    assert cache._bytes == sum(a.nbytes for a in cache._held.values() if a is not None)
    assert cache._bytes <= limit or len(cache._held) == 1


@given(epoch=st.integers(0, 3), index=st.integers(0, 500))
def test_a_sample_depends_on_its_key_alone(made, epoch, index):
    _, source, _ = made
    fresh, used = crops(source), crops(source, limit=1)
    used.sample(1, 17)
    assert same(fresh.sample(epoch, index), used.sample(epoch, index))
    assert same(fresh.sample(epoch, index), fresh[epoch, index])
    assert not same(fresh.sample(epoch, index), fresh.sample(epoch + 1, index))


@given(index=st.integers(0, 200), least=st.sampled_from([1, 100, 400]))
def test_crops_have_enough_labels_or_are_the_window_itself(made, index, least):
    _, source, (_, labels) = made
    plain = crops(source, least=least, augment=Augment.off())
    sample = plain.sample(0, index)
    corner = source.corners[index % len(plain)]
    assert sample.labels.shape == (8, 8, 8)
    enough = int((sample.labels >= 0).sum()) >= least
    padded = np.pad(labels, ((0, 8), (0, 8), (0, 8)), constant_values=-1)
    own = padded[tuple(slice(c, c + 8) for c in corner)]
    assert enough or np.array_equal(own, sample.labels)


def test_a_thin_volume_is_not_shifted_out_of_its_window(made):
    _, source, _ = made
    for index in range(40):
        sample = crops(source, augment=Augment.off(), window=(24, 16, 16), jitter=9).sample(0, index)
        if source.corners[index % len(source.corners)][0] == 0:
            planes = sample.voxels.numpy().any((1, 2))
            assert planes.tolist() == [True] * 20 + [False] * 4


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_whatever_the_workers(made, workers):
    _, source, _ = made
    config = Config(batch=3, cache_mb=1)
    readers = [
        iter(load(crops(source), Order(crops(source), config, first=2), workers=n)) for n in (0, workers)
    ]
    for _ in range(5):
        alone, shared = (next(reader) for reader in readers)
        assert all(same(a, b) for a, b in zip(alone, shared, strict=True))


@given(
    batch=st.integers(1, 9),
    windows=st.one_of(st.none(), st.integers(1, 300)),
    world=st.integers(1, 3),
    seed=st.integers(0, 3),
    cache=st.sampled_from([1, 10, 1000]),
)
def test_an_epoch_has_every_window_once_and_processes_share_it(made, batch, windows, world, seed, cache):
    _, source, _ = made
    config = Config(batch=batch, windows_per_epoch=windows, seed=seed, cache_mb=cache)
    order = Order(crops(source), config, processes=(0, world))
    epoch = order.epoch(1)
    count = windows or len(source.corners)
    assert epoch.shape == (-(-count // (batch * world)), batch * world)
    assert len(np.unique(epoch)) == epoch.size
    if epoch.size >= len(source.corners):
        assert set(range(len(source.corners))) <= set(epoch.ravel())
    ranks = [
        iter(Order(crops(source), config, processes=(rank, world), first=order.steps))
        for rank in range(world)
    ]
    for step in range(order.steps):
        keys = [key for rank in ranks for key in next(rank)]
        assert keys == [(1, int(index)) for index in epoch[step]]
    assert not np.array_equal(epoch, order.epoch(2)) or epoch.size < 3


def test_order_can_be_taken_up_at_any_step(made):
    _, source, _ = made
    whole = iter(Order(crops(source), Config(batch=7)))
    keys = [next(whole) for _ in range(90)]
    for first in (1, 29, 60):
        later = iter(Order(crops(source), Config(batch=7), first=first))
        assert [next(later) for _ in range(90 - first)] == keys[first:]


def test_a_chunk_is_decoded_about_once_where_a_part_of_the_scan_fits_the_cache(tmp_path):
    """512 chunks, of which the cache holds 75; windows read in plain random order need each many times."""
    zarr.create_array(
        tmp_path / "scan.zarr", data=np.ones((16, 512, 512), np.uint8), chunks=(16, 32, 32), zarr_format=2
    )
    starts = np.stack(np.meshgrid([0], range(0, 512, 16), range(0, 512, 16), indexing="ij"), -1).reshape(
        -1, 3
    )
    source = Source(Voxels(open_stored(str(tmp_path / "scan.zarr"))), None, starts)
    ratios = []
    for ordered in (True, False):
        some = Crops([source], (16, 32, 32), 0, 4, 1, Augment.off(), ChunkCache(75 * 16 * 32 * 32))
        order = Order(some, Config(batch=1, cache_mb=1))
        order.budget = some.cache.limit // LANES
        rows = order.epoch(0).ravel() if ordered else np.random.default_rng(0).permutation(len(starts))
        touched = set()
        for row in rows:
            touched |= set(some.sample(0, int(row)).touched)
        ratios.append(some.cache.decoded / len(touched))
    assert ratios[0] < 3 < 4 * ratios[0] < ratios[1] * 1.5


def test_several_scans_take_turns(made):
    _, source, (scan, _) = made
    both = Crops([source, source], (8, 8, 8), 0, 0, 1, Augment.off(), ChunkCache(10**8))
    count = len(source.corners)
    first, second = both.sample(0, 1), both.sample(0, count + 1)
    assert torch.equal(first.voxels, second.voxels)
    assert not set(first.touched) & set(second.touched)
    np.testing.assert_array_equal(first.voxels, scan[tuple(slice(c, c + 8) for c in source.corners[1])])


def test_a_chunk_that_cannot_be_read_is_an_error_never_air(tmp_path):
    write(tmp_path)
    stored = open_stored(str(tmp_path / "scan.zarr"))
    chunk = next(
        path for path in (tmp_path / "scan.zarr").rglob("*") if path.is_file() and path.name[0].isdigit()
    )
    chunk.write_bytes(b"\x02\x01" + chunk.read_bytes()[2:40])
    everywhere = Source(Voxels(stored), None, np.array([[0, 0, 0]]))
    some = Crops([everywhere], SHAPE, 0, 0, 1, Augment.off(), ChunkCache(10**8))
    with pytest.raises(StoreError, match=r"scan.zarr"):
        some.sample(0, 0)
    for workers in (0, 1):
        [found] = next(iter(load(some, [[(0, 0)]], workers=workers)))
        assert isinstance(found, StoreError)
        assert "\n" not in str(found)


def test_boxes_far_outside_are_empty(made):
    _, source, _ = made
    found, touched = ChunkCache(10).read(0, source.voxels, Box(Zyx(-30, -30, -30), Zyx(-10, -10, -10)))
    assert not found.any()
    assert touched == []
