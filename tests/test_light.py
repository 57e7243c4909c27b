"""What must work in an installation without torch; `make test` runs this in an environment that has none."""

import numpy as np
import tifffile

import inkzarr
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
