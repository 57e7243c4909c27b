"""PPM files: the real one, the header in any order, masks, and every malformed input as one clear error."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from inkzarr.core.errors import InputError
from inkzarr.core.ppm import write_ppm_bands
from inkzarr.core.surface import flat_surface, open_surface, write_ppm
from tests.core.surfaces import HEADER, ppm

ALL = slice(None)


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
