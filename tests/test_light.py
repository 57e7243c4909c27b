"""What must work in an installation without torch; `make test` runs this in an environment that has none."""

import numpy as np
import tifffile

import inkzarr
from inkzarr.labels import LabelSettings
from inkzarr.patches import PatchSettings
from inkzarr.split import SplitSettings, split_by_region
from inkzarr.testing import SyntheticScroll


def test_slices_become_a_verified_pyramid(tmp_path):
    scan = SyntheticScroll(shape=(40, 140, 150)).volume().values
    (tmp_path / "slices").mkdir()
    for z, plane in enumerate(scan):
        tifffile.imwrite(tmp_path / "slices" / f"{z}.tif", plane, compression="lzw")
    out = str(tmp_path / "scan.zarr")
    inkzarr.ingest(str(tmp_path / "slices"), out)
    np.testing.assert_array_equal(inkzarr.open_volume(out).values, scan)
    inkzarr.pyramid(out, levels=1)
    assert inkzarr.open_volume(out, level=1).shape == (20, 70, 75)
    inkzarr.verify(out).raise_for_damage()
    assert "40" in str(inkzarr.info(out))


def test_labels_patches_and_split(tmp_path):
    scroll = SyntheticScroll(shape=(64, 160, 160))
    scroll.write_segments(tmp_path)
    out = str(tmp_path / "labels.zarr")
    settings = LabelSettings(shape=inkzarr.Zyx.of(scroll.shape), skip_blank=0)
    report = inkzarr.labels(tmp_path / "paths", tmp_path / "inklabels", out, settings)
    assert report.labelled > report.ink > 0
    found = inkzarr.open_labels(out).values
    truth = scroll.truth().values > 0
    both = (found >= 0) & (scroll.labelled().values > 0)
    assert np.mean((found[both] >= 0.5) == truth[both]) > 0.95
    window = inkzarr.Zyx.of(32)
    inkzarr.patches(out, tmp_path / "all.parquet", PatchSettings(window))
    names = tmp_path / "valid.parquet", tmp_path / "train.parquet"
    left = split_by_region(
        tmp_path / "all.parquet", "0:32,0:64,:", *names, SplitSettings(margin=16, jitter=8)
    )
    assert left.kept > 0
    assert left.gap >= 16
