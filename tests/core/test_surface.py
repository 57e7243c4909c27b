"""Surfaces: real files, brute-force references, and every malformed input as one clear error."""

import json
import pickle
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from inkzarr.core.errors import InputError
from inkzarr.core.ppm import write_ppm_bands
from inkzarr.core.surface import flat_surface, open_surface, write_ppm, write_tifxyz

ALL = slice(None)
HEADER = ("width: 3", "height: 2", "dim: 6", "ordered: true", "type: double", "version: 1")


def ppm(path, lines=HEADER, values=None, extra=b""):
    """A PPM of 2 x 3 pixels, or of whatever the lines say."""
    values = np.arange(1.0, 37) if values is None else values
    path.write_bytes(
        "".join(f"{line}\n" for line in lines).encode() + b"<>\n" + values.astype("<f8").tobytes() + extra
    )
    return path


def grid(folder, points, scale=(0.5, 0.5), **options):
    write_tifxyz(folder, points, scale=scale, **options)
    return folder


def plane(rows, cols, step=2.0):
    row, col = np.mgrid[:rows, :cols] * step
    return np.stack([np.full_like(row, 5.0), row, col], -1)


# PPM


def test_the_real_ppm_reads_and_is_written_back_byte_identical(real_data, tmp_path):
    source = real_data / "PPMGenerator_100x100.ppm"
    surface = open_surface(source)
    assert surface.shape == surface.stored_shape == (100, 100)
    assert surface.valid.all()
    np.testing.assert_array_equal(surface.normals[..., 1], 1)
    np.testing.assert_allclose(surface.points[0, 1], (0, 0, 0.04040404), atol=1e-8)
    write_ppm(tmp_path / "a.ppm", surface.points, surface.normals, valid=surface.valid)
    assert (tmp_path / "a.ppm").read_bytes() == source.read_bytes()


@given(order=st.permutations(HEADER), version=st.sampled_from(["1", "1.0"]), junk=st.booleans())
def test_ppm_header_in_any_order(tmp_path_factory, order, version, junk):
    lines = [line if line[0] != "v" else f"version: {version}" for line in order]
    if junk:
        lines[2:2] = ["# a <> comment", "", "colour:blue", "note: <> and: more"]
    surface = open_surface(ppm(tmp_path_factory.mktemp("p") / "a.ppm", lines))
    assert surface.points[1, 2].tolist() == [33, 32, 31]
    lengths = np.linalg.norm(surface.normals, axis=-1)
    np.testing.assert_allclose(lengths, 1)


@given(
    points=hnp.arrays(np.float64, (4, 5, 3), elements=st.sampled_from([0.0, 1.5, -3.0, np.nan, np.inf, 7e3])),
    normals=hnp.arrays(np.int64, (4, 5), elements=st.sampled_from([0, 1, 2])),
    valid=hnp.arrays(bool, (4, 5)),
    cut=st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 4), st.integers(0, 5)),
)
def test_ppm_round_trip_and_validity(tmp_path_factory, points, normals, valid, cut):
    normals = np.eye(3)[normals]
    path = tmp_path_factory.mktemp("p") / "a.ppm"
    write_ppm(path, points, normals, valid=valid)
    surface = open_surface(path)
    expected = valid & np.isfinite(points).all(-1)
    np.testing.assert_array_equal(surface.valid, expected)
    np.testing.assert_array_equal(surface.points, np.where(expected[..., None], points, 0))
    np.testing.assert_array_equal(surface.normals, np.where(expected[..., None], normals, 0))
    rows, cols = slice(cut[0], cut[2]), slice(cut[1], cut[3])
    np.testing.assert_array_equal(surface.tile(rows, cols).points, surface.points[rows, cols])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"width: 3": "width: 4"}, r"336 bytes|bytes where 2 x 4 pixels need .*cut short"),
        ({"height: 2": "height: 1"}, "longer than its header says"),
        ({"width: 3": "# no width"}, "no line 'width:'"),
        ({"width: 3": "width: 0"}, "whole number from 1"),
        ({"width: 3": "width: -3"}, "whole number from 1"),
        ({"width: 3": "width: 99999999999999999999"}, "whole number from 1"),
        ({"width: 3": "width: 2147483647", "height: 2": "height: 2147483647"}, "cut short"),
        ({"dim: 6": "dim: 3"}, "dim: 3; a surface needs 'dim: 6'"),
        ({"dim: 6": "#"}, "no line 'dim:'"),
        ({"type: double": "type: float"}, "type: float"),
        ({"ordered: true": "ordered: false"}, "ordered: false"),
        ({"version: 1": "version: 2"}, "version: 2"),
        ({"version: 1": "what is this"}, "key: value"),
    ],
)
def test_malformed_ppm(tmp_path, change, match):
    lines = [change.get(line, line) for line in HEADER]
    with pytest.raises(InputError, match=match):
        open_surface(ppm(tmp_path / "a.ppm", lines))


def test_ppm_that_is_none(tmp_path):
    path = tmp_path / "a.ppm"
    for content in (b"", b"P6 10 10 255\n\0\0\0", b"width: 3\n<", bytes(200_000)):
        path.write_bytes(content)
        with pytest.raises(InputError, match="no line '<>'"):
            open_surface(path)
    with pytest.raises(InputError, match="does not exist"):
        open_surface(tmp_path / "none.ppm")
    with pytest.raises(InputError, match="not resized"):
        open_surface(ppm(path), shape=(4, 6))


def test_ppm_cut_after_it_was_opened(tmp_path):
    surface = open_surface(ppm(tmp_path / "a.ppm"))
    (tmp_path / "a.ppm").write_bytes(b"")
    with pytest.raises(InputError, match="moved or cut"):
        surface.tile(ALL, ALL)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "LA", "I;16", "P"])
def test_ppm_mask_narrows(tmp_path, mode):
    keep = np.array([[1, 0, 1], [0, 1, 1]], bool)
    image = Image.fromarray(keep.astype(np.uint8) * 255)
    image = Image.fromarray(keep.astype(np.uint16) * 9) if mode == "I;16" else image.convert(mode)
    surface = open_surface(ppm(tmp_path / "a.ppm"))
    assert surface.valid.all()
    image.save(tmp_path / "a_mask.png")
    np.testing.assert_array_equal(surface.valid, keep)
    assert not surface.points[~keep].any()


def test_ppm_mask_that_does_not_fit(tmp_path):
    path, mask = ppm(tmp_path / "a.ppm"), tmp_path / "a_mask.png"
    Image.new("L", (2, 3)).save(mask)
    with pytest.raises(InputError, match=r"mask .* is 3 x 2 pixels but its surface is 2 x 3"):
        open_surface(path)
    Image.effect_noise((3, 2), 50).save(mask)
    for content in (b"no png", mask.read_bytes()[:45]):
        mask.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as PNG"):
            _ = open_surface(path).valid


def test_a_ppm_mask_is_decoded_when_it_is_needed_and_once_for_all_threads(tmp_path, monkeypatch):
    path, mask = ppm(tmp_path / "a.ppm"), tmp_path / "a_mask.png"
    Image.fromarray(np.uint8([[1, 0, 1], [0, 1, 1]])).save(mask)
    module, calls = sys.modules["inkzarr.core.ppm"], []
    decode = module.PngImageFile
    monkeypatch.setattr(
        module, "PngImageFile", lambda name: (calls.append(name), time.sleep(0.1), decode(name))[2]
    )
    surface = open_surface(path)
    assert not calls
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: surface.valid, range(8)))
    assert len(calls) == 1
    assert all((one == found[0]).all() for one in found)
    assert surface.unmasked().mask() is None
    np.testing.assert_array_equal(surface.mask(), [[True, False, True], [False, True, True]])


def test_a_ppm_larger_than_memory_opens_and_reads_its_last_tile(tmp_path):
    rows, cols = 20_000, 15_000
    head = f"width: {cols}\nheight: {rows}\ndim: 6\nordered: true\ntype: double\nversion: 1\n<>\n".encode()
    with (tmp_path / "a.ppm").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + rows * cols * 48)
        file.seek(-48, 2)
        file.write(np.array([1, 2, 3, 0, 0, 1], "<f8").tobytes())
    tile = open_surface(tmp_path / "a.ppm").tile(slice(rows - 2, None), slice(cols - 2, None))
    assert tile.valid.tolist() == [[False, False], [False, True]]
    assert tile.points[1, 1].tolist() == [3, 2, 1]
    assert tile.normals[1, 1].tolist() == [1, 0, 0]


def test_bands_that_do_not_add_up(tmp_path):
    tile = flat_surface((2, 3), z=1).tile(ALL, ALL)
    target = tmp_path / "a.ppm"
    with pytest.raises(InputError, match="must add up"):
        write_ppm_bands(target, (3, 3), [tile])
    with pytest.raises(InputError, match="does not fit 2 x 4"):
        write_ppm_bands(target, (2, 4), [tile])
    with pytest.raises(InputError, match="cannot be written"):
        write_ppm_bands(target, (0, 4), [])
    with pytest.raises(InputError, match="no surface"):
        write_ppm(target, tile.points, tile.normals[:1])
    assert not list(tmp_path.iterdir())
    write_ppm_bands(target, (4, 3), [tile, tile])
    assert open_surface(target).points[3].tolist() == tile.points[1].tolist()


# tifxyz


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


# the interface


@given(rows=st.integers(1, 9), cols=st.integers(1, 9), edge=st.integers(1, 5))
def test_tiles_cover_each_pixel_once(rows, cols, edge):
    surface = flat_surface((rows, cols), z=2)
    count = np.zeros(surface.shape, int)
    for tile in surface.tiles(edge):
        count[tile] += 1
        np.testing.assert_array_equal(surface.tile(*tile).points, surface.points[tile])
    assert (count == 1).all()


def test_tile_follows_the_rules_of_slices():
    surface = flat_surface((4, 5), z=2)
    assert surface.tile(slice(-2, None), slice(3, 99)).valid.shape == (2, 2)
    assert surface.tile(slice(3, 1), ALL).points.shape == (0, 5, 3)
    with pytest.raises(InputError, match="step 2"):
        surface.tile(slice(0, 4, 2), ALL)


def test_surfaces_travel_to_workers(tmp_path):
    paths = [ppm(tmp_path / "a.ppm"), grid(tmp_path / "a", plane(3, 3))]
    for surface in (flat_surface((2, 2), z=0), *map(open_surface, paths)):
        sent = pickle.loads(pickle.dumps(surface))
        assert len(pickle.dumps(surface)) < 2000
        np.testing.assert_array_equal(sent.points, surface.points)
