"""Layouts in which scrolls are published: a level at the end of the URL, or levels 0, 1, 2 ... that nobody lists."""

import numpy as np
import pytest
import zarr

from inkzarr.core.errors import InputError
from inkzarr.core.store import open_stored, open_volume
from inkzarr.info import info
from tests.core.web import Web

NAME = "54keV_7.91um_Scroll1A.zarr"
MASKED = "20230205180739-7.910um-54keV-masked.zarr"
SHAPES = [(41, 70, 64), (20, 35, 32), (10, 17, 16)]
UM = [7.91, 15.82, 31.64]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    layout = {"chunks": (16, 16, 16), "compressors": None}
    plain = zarr.create_group(folder / "volumes_zarr_standardized" / NAME, zarr_format=2)
    for level, shape in enumerate(SHAPES):
        voxels = np.full(shape, level + 1, np.uint8)
        plain.create_array(
            str(level), data=voxels, chunk_key_encoding={"name": "v2", "separator": "/"}, **layout
        )
        zarr.create_array(
            folder / "SAMPLE" / "volumes" / MASKED / str(level), data=voxels, zarr_format=2, **layout
        )
    mixed = zarr.create_group(folder / "times_2um.zarr", zarr_format=2)
    for time in range(2):
        mixed.create_array(str(time), data=np.ones((8, 8, 8), np.uint8), **layout)
    return folder


@pytest.fixture(params=["local", "http"])
def place(request, published):
    if request.param == "local":
        yield str(published)
        return
    pytest.importorskip("aiohttp")
    web = Web(published)
    yield web.url
    web.close()


def test_a_plain_group_of_levels(place):
    url = f"{place}/volumes_zarr_standardized/{NAME}"
    found = info(url)
    assert [(level.path, level.shape) for level in found.levels] == [
        (str(n), shape) for n, shape in enumerate(SHAPES)
    ]
    assert [level.spacing_um[0] for level in found.levels] == pytest.approx(UM)
    for what in ("41,70,64", "16,16,16", "raw", "15.82", "184 kB"):
        assert what in str(found)
    scan = open_volume(url, level=1)
    assert scan.attrs["voxel_size_um"] == pytest.approx(15.82)
    assert (scan == 2).all()
    with pytest.raises(InputError, match="level 3 does not exist"):
        open_volume(url, level=3)


@pytest.mark.parametrize("folder", [f"volumes_zarr_standardized/{NAME}", f"SAMPLE/volumes/{MASKED}"])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_level_at_the_end_of_the_url(place, folder, level):
    """The second folder holds nothing but arrays: it is no group."""
    scan = open_volume(f"{place}/{folder}/{level}")
    assert scan.shape == SHAPES[level]
    assert scan.attrs["voxel_size_um"] == pytest.approx(UM[level])
    assert (scan == level + 1).all()


def test_arrays_that_are_no_levels(place):
    with pytest.raises(InputError, match="without multiscales: name one of its arrays"):
        open_volume(f"{place}/times_2um.zarr")
    assert open_stored(f"{place}/times_2um.zarr/1").voxel_size_um == 2


def test_a_terabyte_on_the_web_is_opened_and_shown_by_a_few_requests(tmp_path):
    """Metadata to open it; for its card at most 16 chunks, which are missing here."""
    pytest.importorskip("aiohttp")
    name = "scroll_7.91um.zarr"
    zarr.create_array(
        tmp_path / name, shape=(14376, 7888, 8096), chunks=(128,) * 3, dtype="u1", zarr_format=2
    )
    web = Web(tmp_path)
    try:
        scan = open_volume(f"{web.url}/{name}")
        assert "14376" in scan._repr_html_()
        opened = sum(web.asked.values())
        assert opened <= 12
        assert not any(key[-1].isdigit() for key in web.asked), "no chunk is asked for"
        shown = info(f"{web.url}/{name}")._repr_html_()
        assert "14376,7888,8096" in shown
        assert "7.91" in shown
        assert sum(n for key, n in web.asked.items() if key[-1].isdigit()) <= 16
        assert sum(web.asked.values()) <= 3 * 12 + 16
    finally:
        web.close()
