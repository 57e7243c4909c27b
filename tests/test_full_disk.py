"""A disk that refuses a write midway: one clear line, and nothing is left."""

import contextlib
import resource

import numpy as np
import pytest

from inkzarr.components import ComponentSettings, components
from inkzarr.core.buckets import Buckets, Rule, Scan
from inkzarr.core.errors import DiskError, InputError
from inkzarr.core.geometry import Grid, Zyx
from inkzarr.export import export
from tests.predictions import write


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """Noise, which no codec makes small."""
    voxels = np.random.default_rng(0).integers(1, 255, (40, 300, 300), dtype=np.uint8)
    return write(tmp_path_factory.mktemp("in") / "scan.zarr", voxels)


@contextlib.contextmanager
def files_up_to(nbytes):
    """The kernel refuses to let a file of this process grow beyond, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def left(folder):
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("name", ["a.nrrd", "a.nii", "a.nii.gz", "a.tif", "a/*.png", "a/*.jpg", "a/*.tif"])
def test_an_export(tmp_path, scan, name):
    pytest.importorskip("nibabel")
    told = r"cannot be written .*File too large.*: make room or choose another"
    with pytest.raises(InputError, match=told), files_up_to(30_000 if "*" in name else 1_000_000):
        export(scan, tmp_path / name)
    assert not left(tmp_path)


@pytest.mark.parametrize("nbytes", [10**5, 2000])
def test_the_buckets_of_labels(nbytes):
    rule = Rule(1.0, False, Grid(Zyx(8, 8, 8), Zyx(8, 8, 8)))
    scan = Scan(0, np.zeros((1, 4), np.int64), (bytes(nbytes),), np.zeros((1, 2), np.int64), *[0] * 4)
    told = r"cannot be set aside in .*File too large\): make room there, or set TMPDIR"

    def fill():
        with contextlib.closing(Buckets(rule, [])) as buckets:
            buckets.add(scan)
            buckets.sort()

    with files_up_to(1000), pytest.raises(DiskError, match=told):
        fill()


def test_a_movie(tmp_path, scan):
    pytest.importorskip("imageio_ffmpeg")
    with pytest.raises(InputError, match=r"ffmpeg failed on|cannot be written"), files_up_to(100_000):
        export(scan, tmp_path / "a.mp4")
    assert not left(tmp_path)


def test_a_contact_sheet(tmp_path, scan):
    settings = ComponentSettings(threshold=0.9, min_voxels=20, sheet=tmp_path / "a.html")
    components(scan, tmp_path / "a.parquet", settings)  # which also compiles what is compiled
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix != ".parquet"}
    page = (tmp_path / "a.html").stat().st_size
    with pytest.raises(InputError, match=r"a\.html cannot be written .*too large"), files_up_to(page - 1):
        components(scan, tmp_path / "a.parquet", settings)
    assert sorted(left(tmp_path)) == ["a", "a.html", "a.parquet"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
