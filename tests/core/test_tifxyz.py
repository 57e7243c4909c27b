"""tifxyz folders: the real one, brute-force references, and every malformed input as one clear error."""

import json

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from inkzarr.core.errors import InputError
from inkzarr.core.surface import flat_surface, open_surface, write_tifxyz
from tests.core.surfaces import grid, plane

ALL = slice(None)


def test_the_real_tifxyz_opens(real_data):
    path = real_data / "tifxyz_20241113070770"
    surface = open_surface(path)
    assert surface.stored_shape == (129, 129)
    assert surface.shape == (129 * 128, 129 * 128)
    stored = open_surface(path, shape=(129, 129)).tile(ALL, ALL)
    assert (~stored.valid).sum() == 2739
    planes = np.stack([tifffile.imread(path / f"{axis}.tif") for axis in "zyx"], -1)
    np.testing.assert_array_equal(stored.points[stored.valid], planes[stored.valid])
    lengths = np.linalg.norm(stored.normals[stored.valid], axis=-1)
    assert (lengths == 0).sum() == 2, "two points have no neighbour along an axis"
    np.testing.assert_allclose(lengths[lengths > 0], 1)
    row, col = (
        int(v)
        for v in np.argwhere(
            stored.valid[:-1, :-1] & stored.valid[1:, 1:] & stored.valid[:-1, 1:] & stored.valid[1:, :-1]
        )[50]
    )
    at = surface.tile(slice(row * 128, row * 128 + 129), slice(col * 128, col * 128 + 129))
    assert at.valid.all()
    np.testing.assert_allclose(at.points[64, 0], (planes[row, col] + planes[row + 1, col]) / 2, rtol=1e-6)
    assert ((at.normals * stored.normals[row, col]).sum(-1) > 0.5).all()


def reference(points, exists, shape):
    """Bilinear interpolation and normals, one pixel at a time."""
    stored = exists.shape
    normals = np.zeros_like(points)
    for r, c in np.argwhere(exists):
        ends = []
        for dr, dc in ((1, 0), (0, 1)):
            there = [
                0 <= r + s * dr < stored[0] and 0 <= c + s * dc < stored[1] and exists[r + s * dr, c + s * dc]
                for s in (-1, 1)
            ]
            a, b = (
                points[r + s * dr, c + s * dc] if ok else points[r, c]
                for s, ok in zip((-1, 1), there, strict=True)
            )
            ends.append((b - a)[::-1])
        normal = np.cross(ends[1], ends[0])[::-1]
        length = np.linalg.norm(normal)
        normals[r, c] = normal / length if length > 0 else 0
    out = np.zeros((*shape, 3)), np.zeros((*shape, 3)), np.zeros(shape, bool)
    for r, c in np.ndindex(shape):
        at = [i * s / n for i, s, n in zip((r, c), stored, shape, strict=True)]
        at = [round(v) if abs(v - round(v)) < 1e-9 else v for v in at]
        low = [int(np.floor(v)) for v in at]
        total, across, fine = np.zeros(3), np.zeros(3), True
        for dr, dc in ((0, 0), (0, 1), (1, 0), (1, 1)):
            weight = np.prod(
                [(v - a) if d else 1 - (v - a) for v, a, d in zip(at, low, (dr, dc), strict=True)]
            )
            if weight > 0:
                gr, gc = low[0] + dr, low[1] + dc
                if gr >= stored[0] or gc >= stored[1] or not exists[gr, gc]:
                    fine = False
                    break
                total, across = total + weight * points[gr, gc], across + weight * normals[gr, gc]
        if fine:
            length = np.linalg.norm(across)
            out[0][r, c], out[1][r, c], out[2][r, c] = total, across / length if length > 0 else 0, True
    return out


@given(
    seed=st.integers(0, 2**32),
    stored=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    shape=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    holes=st.sampled_from([0.0, 0.15, 0.5]),
    cut=st.tuples(st.integers(0, 13), st.integers(0, 13)),
)
def test_tifxyz_interpolates_as_the_reference_does(tmp_path_factory, seed, stored, shape, holes, cut):
    random = np.random.default_rng(seed)
    points = plane(*stored) + random.uniform(-0.8, 0.8, (*stored, 3))
    points = points.astype(np.float32).astype(np.float64)
    exists = random.uniform(size=stored) >= holes
    folder = grid(tmp_path_factory.mktemp("t") / "a.tifxyz", points, valid=exists)
    surface = open_surface(folder, shape=shape)
    expected = reference(points, exists, shape)
    whole = surface.tile(ALL, ALL)
    np.testing.assert_array_equal(whole.valid, expected[2])
    np.testing.assert_allclose(whole.points, expected[0], atol=1e-9)
    np.testing.assert_allclose(whole.normals, expected[1], atol=1e-7)
    rows, cols = slice(cut[0] // 2, cut[0]), slice(cut[1] // 2, cut[1])
    tile = surface.tile(rows, cols)
    for part, all_of_it in zip(tile, whole, strict=True):
        np.testing.assert_array_equal(part, all_of_it[rows, cols])


def test_tifxyz_full_resolution_and_scale_order(tmp_path):
    folder = grid(tmp_path / "a", plane(3, 5), scale=(0.25, 0.5))
    surface = open_surface(folder)
    assert surface.shape == (6, 20)
    tile = surface.tile(slice(0, 5), slice(0, 17))
    assert tile.valid.all()
    np.testing.assert_allclose(tile.points[4, 16], (5, 4, 8))
    assert not surface.valid[5:].any()
    assert not surface.valid[:, 17:].any()


def test_normals_have_the_sign_of_a_flat_surface(tmp_path):
    flat = flat_surface((4, 5), z=7)
    surface = open_surface(grid(tmp_path / "a", flat.points, scale=(1, 1)))
    np.testing.assert_array_equal(surface.points, flat.points)
    np.testing.assert_array_equal(surface.normals, flat.normals)
    assert surface.valid.all()


@pytest.mark.parametrize("bad", [-1, np.nan, np.inf])
def test_tifxyz_points_that_are_invalid(tmp_path, bad):
    folder = grid(tmp_path / "a", plane(3, 3), scale=(1, 1))
    z = tifffile.imread(folder / "z.tif")
    z[1, 1] = bad
    tifffile.imwrite(folder / "z.tif", z)
    valid = open_surface(folder).valid
    assert not valid[1, 1]
    assert valid.sum() == 8


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"byteorder": ">"}])
def test_tifxyz_however_its_planes_are_stored(tmp_path, options):
    points = plane(20, 30)
    folder = grid(tmp_path / "a", points, scale=(1, 1))
    for axis, values in zip("zyx", np.moveaxis(points, -1, 0), strict=True):
        tifffile.imwrite(folder / f"{axis}.tif", values.astype(np.float32), **options)
    np.testing.assert_array_equal(open_surface(folder).points, points)


@pytest.mark.parametrize("samples", [0, 3])
def test_tifxyz_mask_of_a_multiple_of_the_grid(tmp_path, samples):
    folder = grid(tmp_path / "a", plane(2, 3), scale=(1, 1))
    mask = np.full((4, 9), 255, np.uint8)
    mask[3, 8] = 254
    mask[0, 3] = 0
    if samples:
        mask = np.stack([mask, np.zeros_like(mask), np.zeros_like(mask)], -1)
    tifffile.imwrite(folder / "mask.tif", mask, photometric="rgb" if samples else "minisblack")
    assert open_surface(folder).valid.tolist() == [[True, False, True], [True, True, False]]


def meta(folder, **fields):
    path = folder / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("scale", "match"),
    [
        (None, "scale None"),
        ([0.5], "two positive numbers"),
        ([0.5, 0], "two positive numbers"),
        ([-0.5, 0.5], "two positive numbers"),
        ([0.5, float("nan")], "two positive numbers"),
        (["a", 1], "two positive numbers"),
        ([1e-12, 0.5], "grid cells per voxel"),
        ([0.5, 173], "grid cells per voxel"),
    ],
)
def test_tifxyz_scale_that_cannot_be(tmp_path, scale, match):
    folder = grid(tmp_path / "a", plane(3, 4))
    meta(folder, scale=scale)
    with pytest.raises(InputError, match=match):
        open_surface(folder)


def test_malformed_tifxyz(tmp_path):
    folder = grid(tmp_path / "a", plane(30, 40))

    def refused(match, **options):
        with pytest.raises(InputError, match=match):
            open_surface(folder, **options)

    refused("cannot be interpolated", shape=(0, 5))
    refused("cannot be interpolated", shape=(5, 2**31))
    tifffile.imwrite(folder / "mask.tif", np.zeros((31, 40), np.uint8))
    refused("whole multiple")
    (folder / "mask.tif").unlink()
    content = (folder / "y.tif").read_bytes()
    (folder / "y.tif").write_bytes(content[: len(content) // 2])
    refused("y.tif.*cut short|cut short.*")
    (folder / "y.tif").write_bytes(b"no tiff")
    refused("cannot be read as TIFF")
    tifffile.imwrite(folder / "y.tif", np.zeros((30, 40, 3), np.uint8), photometric="rgb")
    refused("one whole plane")
    tifffile.imwrite(folder / "y.tif", np.zeros((30, 41), np.float32))
    refused("different sizes .*y.tif 30 x 41")
    (folder / "y.tif").unlink()
    refused("y.tif does not exist")
    meta(folder, format="obj")
    refused("'format' is 'obj'")
    (folder / "meta.json").write_text("{")
    refused("no JSON")
    (folder / "meta.json").write_text("[]")
    refused("'format' is None")
    (folder / "meta.json").unlink()
    refused("no meta.json")
    with pytest.raises(InputError, match="no surface"):
        write_tifxyz(tmp_path / "b", np.zeros((3, 3)))
    with pytest.raises(InputError, match="scale"):
        write_tifxyz(tmp_path / "b", plane(2, 2), scale=(0, 1))


def test_tifxyz_plane_that_does_not_unpack(tmp_path):
    folder = grid(tmp_path / "a", plane(40, 40), scale=(1, 1))
    values = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    tifffile.imwrite(folder / "x.tif", values, compression="zlib")
    content = bytearray((folder / "x.tif").read_bytes())
    content[-3000:-2000] = bytes(1000)
    (folder / "x.tif").write_bytes(content)
    with pytest.raises(InputError, match="cannot be unpacked"):
        open_surface(folder).tile(ALL, ALL)


def test_tifxyz_meta_json(tmp_path):
    points = plane(2, 3)
    points[0, 0] = np.nan
    write_tifxyz(tmp_path / "7.tifxyz", points, scale=(0.5, 0.25))
    written = json.loads((tmp_path / "7.tifxyz" / "meta.json").read_text())
    assert written == {
        "bbox": [[0, 0, 5], [4, 2, 5]],
        "format": "tifxyz",
        "scale": [0.5, 0.25],
        "type": "seg",
        "uuid": "7",
    }
    assert tifffile.imread(tmp_path / "7.tifxyz" / "x.tif")[0, 0] == -1
