"""NRRD against pynrrd: encodings, byte orders, detached headers and voxel sizes."""

import gzip
import pickle
import tempfile
from pathlib import Path

import nrrd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.readers import open_source

VOXELS = np.random.default_rng(2).integers(0, 65536, (6, 20, 30), "uint16")
WHOLE = Box.whole(VOXELS.shape)


def header(extra="", *, type_="uint16", encoding="raw", sizes="30 20 6", dimension=3, endian="little"):
    return (
        f"NRRD0004\n# a comment\ntype: {type_}\ndimension: {dimension}\nsizes: {sizes}\n"
        f"endian: {endian}\nencoding: {encoding}\nscanner:=a: b\n{extra}\n"
    ).encode()


def attached(path, extra="", body=None, **kwargs):
    path.write_bytes(header(extra, **kwargs) + (VOXELS.astype("<u2").tobytes() if body is None else body))
    return str(path)


@given(
    dtype=st.sampled_from(["uint8", "<u2", ">u2"]),
    encoding=st.sampled_from(["raw", "gzip"]),
    detached=st.booleans(),
    axes=st.permutations("zyx").map("".join),
    data=st.data(),
)
def test_what_pynrrd_writes(dtype, encoding, detached, axes, data):
    voxels = VOXELS.astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("v.nhdr" if detached else "v.nrrd")
        nrrd.write(str(path), voxels, {"encoding": encoding}, detached_header=detached, index_order="C")
        source = open_source(str(path), axes=axes)
        seen = voxels.transpose([axes.index(axis) for axis in "zyx"])
        starts = [data.draw(st.integers(0, n - 1)) for n in seen.shape]
        stops = [data.draw(st.integers(a + 1, n)) for a, n in zip(starts, seen.shape, strict=True)]
        box = Box(Zyx(*starts), Zyx(*stops))
        read = source.read(box)
        assert read.dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(read, seen[box.slices])
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read(box), seen[box.slices])


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("", None),
        ("spacings: 0.00791 0.00791 0.00791", 7.91),
        ("spacings: 1 1 1", None),
        ("spacings: 1 1 1\nunits: \"mm\" \"mm\" \"mm\"", 1000.0),
        ("spacings: 7.91 7.91 7.91\nunits: \"um\" \"um\" \"um\"", 7.91),
        ("spacings: 7.91 7.91 50\nunits: \"um\" \"um\" \"um\"", None),
        ("spacings: nan nan nan", None),
        ("spacings: 2 2 2\nunits: \"s\" \"s\" \"s\"", None),
        ("space: left-posterior-superior\nspace directions: (0.01,0,0) (0,0.01,0) (0,0,0.01)", 10.0),
        ("space directions: (0,3,0) (3,0,0) (0,0,-3)\nspace units: \"µm\" \"µm\" \"µm\"", 3.0),
        ("space directions: (6,8,0) (8,-6,0) (0,0,10)\nspace units: \"nm\" \"nm\" \"nm\"", 0.01),
    ],
)  # fmt: skip
def test_voxel_sizes(tmp_path, extra, expected):
    found = open_source(attached(tmp_path / "v.nrrd", extra + "\n" * bool(extra))).voxel_size_um
    assert found == (expected if expected is None else pytest.approx(expected))


def test_skips(tmp_path):
    body = b"a line\nanother\n" + b"junk!" + VOXELS.tobytes()
    (tmp_path / "v.raw").write_bytes(body)
    (tmp_path / "v.nhdr").write_bytes(header("line skip: 2\nbyte skip: 5\ndata file: v.raw"))
    np.testing.assert_array_equal(open_source(str(tmp_path / "v.nhdr")).read(WHOLE), VOXELS)
    (tmp_path / "v.nhdr").write_bytes(header("byte skip: -1\ndata file: ./v.raw"))
    np.testing.assert_array_equal(open_source(str(tmp_path / "v.nhdr")).read(WHOLE), VOXELS)
    packed = gzip.compress(b"junk!" + VOXELS.tobytes())
    source = open_source(attached(tmp_path / "z.nrrd", "byte skip: 5\n", packed, encoding="gzip"))
    np.testing.assert_array_equal(source.read(WHOLE), VOXELS)


def test_narrow_boxes_of_wide_rows(tmp_path):
    voxels = np.arange(3 * 4 * 500, dtype="uint16").reshape(3, 4, 500)
    path = attached(tmp_path / "v.nrrd", body=voxels.tobytes(), sizes="500 4 3")
    box = Box(Zyx(1, 1, 100), Zyx(3, 4, 107))
    np.testing.assert_array_equal(open_source(path).read(box), voxels[box.slices])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"type_": "float"}, r"v.nrrd holds float32 voxels \(floating point.*rescale"),
        ({"type_": "short"}, r"v.nrrd holds int16 voxels \(signed"),
        ({"type_": "block"}, r"voxels of type 'block'"),
        ({"encoding": "bzip2"}, r"encoded as 'bzip2': raw and gzip are read"),
        ({"sizes": "30 20 7"}, r"v.nrrd is cut short: 8400 bytes of voxels needed, 7200 there"),
        (
            {"sizes": "3 30 20 6", "dimension": 4},
            r"dimension 4 and sizes \[3, 30, 20, 6\]: a volume has three",
        ),
        ({"sizes": "30 20 x"}, r"has 'sizes' 'x': a whole number"),
        ({"endian": "middle"}, r"endian 'middle'"),
        ({"extra": "kinds: vector domain domain\n"}, r"kinds vector domain domain"),
        ({"extra": "no colon here\n"}, r"header line 'no colon here'"),
        ({"extra": "data file: ../../etc/passwd\n"}, r"outside its own folder"),
        ({"extra": "data file: /etc/passwd\n"}, r"outside its own folder"),
        ({"extra": "data file: v%03d.raw 1 6 1\n"}, r"over many files"),
        ({"extra": "data file: gone.raw\n"}, r"'gone.raw', which is not there"),
    ],
)
def test_headers_that_are_refused(tmp_path, settings, match):
    with pytest.raises(InputError, match=match):
        open_source(attached(tmp_path / "v.nrrd", **settings))


def test_not_nrrd(tmp_path):
    (tmp_path / "v.nrrd").write_bytes(b"P6 nothing")
    with pytest.raises(InputError, match=r"v.nrrd is no NRRD file"):
        open_source(str(tmp_path / "v.nrrd"))
    (tmp_path / "v.nhdr").write_bytes(header())
    with pytest.raises(InputError, match=r"v.nhdr names no data file"):
        open_source(str(tmp_path / "v.nhdr"))


def flipped(packed):
    return packed[:2000] + bytes([packed[2000] ^ 0xFF]) + packed[2001:]


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda packed: packed[:-400], "does not unpack"),
        (flipped, "does not unpack"),
        (lambda _: gzip.compress(VOXELS.tobytes()[:-2]), "2 bytes are missing"),
        (lambda _: gzip.compress(VOXELS.tobytes() + b"x"), "more bytes than its sizes tell"),
        (lambda _: b"not gzip", "does not unpack"),
    ],
)
def test_damaged_gzip(tmp_path, damage, match):
    body = damage(gzip.compress(VOXELS.tobytes()))
    source = open_source(attached(tmp_path / "v.nrrd", body=body, encoding="gzip"))
    with pytest.raises(InputError, match=match):
        source.read(Box(Zyx(0, 0, 0), Zyx(1, 1, 1)))


def test_no_room_to_unpack(tmp_path, monkeypatch):
    source = open_source(attached(tmp_path / "v.nrrd", body=gzip.compress(VOXELS.tobytes()), encoding="gz"))
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(InputError, match=r"unpacks to 7.2 kB, .* has 100 B: set TMPDIR"):
        source.read(WHOLE)
