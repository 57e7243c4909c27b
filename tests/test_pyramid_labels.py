"""Levels of labels: all votes are kept, each level is a label group, and others see the ink."""

import dataclasses
import warnings

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Zyx
from inkzarr.core.halving import halve_labels
from inkzarr.core.job import Computed, Job, RunOptions
from inkzarr.core.labelled import open_label_arrays, open_labels
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import COUNT, INK, VolumeSpec
from inkzarr.core.store import open_stored
from inkzarr.info import info
from inkzarr.pyramid import plan_pyramid, pyramid
from inkzarr.verify import verify

SHAPES = npst.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)


def write_labels(out, ink, count, *, zarr_format=2):
    spec = VolumeSpec(Zyx(*ink.shape), ink.dtype, voxel_size_um=8.0, zarr_format=zarr_format, path=INK.name)
    votes = dataclasses.replace(spec, dtype=count.dtype, path=COUNT.name)
    job = Job("labels", str(out), spec, Zyx.of(128), {"x": 1}, more=(votes,))
    write_blocks(job, lambda box: Computed((ink[box.slices], count[box.slices])), RunOptions())
    return out


def some_labels(shape, seed=0):
    rng = np.random.default_rng(seed)
    count = (rng.integers(0, 65536, shape) * (rng.random(shape) < 0.4)).astype("uint16")
    return (rng.integers(0, 256, shape) * (count > 0)).astype("uint8"), count


def brute_labels(ink, count, reduce):
    shape = [-(-n // 2) for n in ink.shape]
    values, votes = np.zeros(shape, "uint8"), np.zeros(shape, "uint16")
    for index in np.ndindex(*shape):
        near = tuple(slice(2 * i, 2 * i + 2) for i in index)
        pairs = [(int(v), int(n)) for v, n in zip(ink[near].ravel(), count[near].ravel(), strict=True) if n]
        total = sum(n for _, n in pairs)
        votes[index] = min(65535, total)
        if pairs and reduce == "max":
            values[index] = max(v for v, _ in pairs)
        elif pairs:
            values[index] = (2 * sum(v * n for v, n in pairs) + total) // (2 * total)
    return values, votes


@given(shape=SHAPES, seed=st.integers(0, 2**32 - 1), reduce=st.sampled_from(["mean", "max"]))
def test_halved_labels_have_all_votes(shape, seed, reduce):
    labels = some_labels(shape, seed)
    for found, expected in zip(halve_labels(*labels, reduce), brute_labels(*labels, reduce), strict=True):
        np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_levels_of_labels_are_labels(tmp_path, zarr_format):
    import ome_zarr_models.v04
    import ome_zarr_models.v05

    labels = some_labels((280, 31, 130))
    url = write_labels(tmp_path / "labels.zarr", *labels, zarr_format=zarr_format)
    assert len(plan_pyramid(url)) == 2
    assert [report.resumed for report in pyramid(url)] == [0, 0]
    assert [report.resumed for report in pyramid(url)] == [report.blocks for report in pyramid(url)]
    expected = labels
    for level in range(3):
        there = url / str(level) if level else url
        for stored, voxels in zip(open_label_arrays(str(there)), expected, strict=True):
            np.testing.assert_array_equal(stored.array[:], voxels, strict=True)
            assert stored.ledger.manifest.state == "done"
        assert open_labels(str(there)).attrs["voxel_size_um"] == 8.0 * 2**level
        shown = open_stored(str(url), level=level)
        np.testing.assert_array_equal(shown.array[:], expected[0])
        assert shown.level.spacing_um == (8.0 * 2**level,) * 3
        assert shown.ledger.manifest.state == "done"
        named = open_stored(f"{there}/ink")
        assert (named.voxel_size_um, named.ledger.manifest.state) == (8.0 * 2**level, "done")
        expected = halve_labels(*expected)
    models = ome_zarr_models.v04 if zarr_format == 2 else ome_zarr_models.v05
    image = models.Image.from_zarr(zarr.open_group(url, mode="r"))
    attributes = image.attributes if zarr_format == 2 else image.attributes.ome
    assert [dataset.path for dataset in attributes.multiscales[0].datasets] == ["ink", "1/ink", "2/ink"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ome-zarr's own
        from ome_zarr.io import parse_url
        from ome_zarr.reader import Reader

        levels = next(iter(Reader(parse_url(str(url), mode="r"))())).data
    assert [level.shape for level in levels] == [(280, 31, 130), (140, 16, 65), (70, 8, 33)]


def test_levels_of_labels_are_seen(tmp_path):
    """Also what is damaged in one, or lost; which keeps nobody from the labels, or from making it anew."""
    url = write_labels(tmp_path / "labels.zarr", *some_labels((280, 31, 130)))
    pyramid(url)
    paths = ["count", "ink", "1/count", "1/ink", "2/count", "2/ink"]
    told = info(url)
    assert [level.path for level in told.levels] == paths
    assert [level.spacing_um[0] for level in told.levels] == [8.0, 8.0, 16.0, 16.0, 32.0, 32.0]
    assert {level.state for level in told.levels} == {"done"}
    assert [check.path for check in verify(url).levels] == paths
    (url / "1" / "ink" / "1" / "0" / "0").write_bytes(b"broken")
    (url / "2" / "count" / "0" / "0" / "0").unlink()
    damaged = verify(url).damaged
    assert [line.split()[0] for line in damaged] == ["1/ink/1/0/0", "2/count/0/0/0"]
    (url / "2" / "count" / ".zarray").unlink()
    with pytest.raises(InputError, match="names a level that is no array"):
        verify(url)
    assert open_labels(url).shape == (280, 31, 130)
    pyramid(url, options=RunOptions(overwrite=True))
    assert verify(url).damaged == []


def test_levels_of_labels_are_replaced(tmp_path):
    labels = some_labels((30, 20, 10))
    url = write_labels(tmp_path / "labels.zarr", *labels)
    pyramid(url, levels=2)
    with pytest.raises(InputError, match=r"reduce was 'mean', is 'max'.*--overwrite"):
        pyramid(url, levels=2, reduce="max")
    pyramid(url, levels=1, reduce="max", options=RunOptions(overwrite=True))
    np.testing.assert_array_equal(open_stored(str(url), level=1).array[:], halve_labels(*labels, "max")[0])
    assert not (url / "2").exists()
    assert len(open_stored(str(url)).levels) == 2
    (url / "2").mkdir()
    (url / "2" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds what this run did not write"):
        pyramid(url, levels=2, reduce="max")
    assert (url / "2" / "thesis.txt").exists()
