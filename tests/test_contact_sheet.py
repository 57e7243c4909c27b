"""The contact sheet: its pictures, its words, its files; and what a browser makes of it."""

import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from inkzarr.cli import cli
from inkzarr.components import ComponentSettings, components
from inkzarr.core.errors import InputError
from tests.predictions import rows, write


@pytest.fixture(scope="module")
def lettered(tmp_path_factory):
    """An F on a plane of constant y beyond the volume's middle, so that it is read along x; and three patches."""
    folder = tmp_path_factory.mktemp("<img src=x onerror=alert(1)> & co")
    voxels = np.zeros((150, 160, 200), np.uint8)
    voxels[30:110, 120:126, 40:50] = 250
    voxels[30:40, 120:126, 40:90] = voxels[62:72, 120:126, 40:75] = 250
    for at in (10, 60, 110):
        voxels[120:140, 20 + at // 5 : 26 + at // 5, at : at + 20 + at // 5] = 200
    url = write(folder / "ink.zarr", voxels)
    scan = write(
        folder / "scan.zarr", np.random.default_rng(0).integers(1, 255, voxels.shape, dtype=np.uint8)
    )
    command = [
        "components",
        url,
        str(folder / "a.parquet"),
        "--sheet",
        str(folder / "a.html"),
        "--scan",
        scan,
    ]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert "4 components" in done.output
    return folder, voxels


def pictures(page):
    import base64
    import io

    from PIL import Image

    found = re.findall(r'data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def test_the_contact_sheet_needs_nothing_else_and_escapes_everything(lettered):
    folder, voxels = lettered
    page = (folder / "a.html").read_text(encoding="utf-8")
    assert "http" not in page.replace("http-equiv", "")
    assert "&lt;img src=x onerror=alert(1)&gt; &amp; co" in page
    assert "<img src=x" not in page
    drawn = pictures(page)
    assert len(drawn) == 4 * 5
    face = drawn[0]
    inked = np.argwhere(face < 128)
    letter = face[tuple(slice(a, b + 1) for a, b in zip(inked.min(0), inked.max(0), strict=True))] < 128
    shown = voxels[30:110, 122, 40:90][:, ::-1] > 0
    # y grows away from the viewer, z downwards: then x grows to the left, in a right-handed space
    assert np.mean(letter[: len(shown), : shown.shape[1]] == shown[: len(letter), : letter.shape[1]]) > 0.95
    np.testing.assert_array_equal(drawn[2] < 128, voxels.max(1)[22:118, 32:98] > 128)
    command = re.search(r"<code>(inkzarr export .*?)</code>", page)[1]
    assert "--box 30:110,120:126,40:90" in command


def test_the_pictures_lie_beside_the_page(lettered, tmp_path):
    from PIL import Image

    folder, _ = lettered
    ids = rows(folder / "a.parquet")["id"]
    files = sorted((folder / "a").iterdir())
    assert [file.name for file in files] == [f"{n:03}_{number}.png" for n, number in enumerate(ids, 1)]
    face = pictures((folder / "a.html").read_text(encoding="utf-8"))[0]
    times = 240 // max(face.shape)
    with Image.open(files[0]) as image:
        shown = np.asarray(image.convert("L"))[8:, 8:][: times * face.shape[0], : times * face.shape[1]]
    np.testing.assert_array_equal(shown, face.repeat(times, 0).repeat(times, 1))
    settings = ComponentSettings(min_voxels=8000, sheet=tmp_path / "a.html")
    shutil.copytree(folder / "a", tmp_path / "a")
    components(folder / "ink.zarr", tmp_path / "a.parquet", settings)
    assert len(list((tmp_path / "a").iterdir())) == 1  # those of before are gone
    (tmp_path / "a" / "thesis.odt").write_text("mine")
    with pytest.raises(InputError, match=r"a is no folder of a contact sheet's pictures.*another name"):
        components(folder / "ink.zarr", tmp_path / "a.parquet", settings)
    assert (tmp_path / "a" / "thesis.odt").exists()
    both = ComponentSettings(sheet=tmp_path / "b.html", labels=tmp_path / "b")
    with pytest.raises(InputError, match="lie in each other"):
        components(folder / "ink.zarr", tmp_path / "a.parquet", both)


@pytest.mark.browser
def test_the_contact_sheet_in_a_browser(lettered, chromium):
    from playwright.sync_api import sync_playwright

    folder, _ = lettered
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        faults = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.goto((folder / "a.html").as_uri())
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")

        def voxels():
            at = [head.strip() for head in page.locator("th").all_inner_texts()].index("voxels")
            return [float(v) for v in page.locator(f"tbody td:nth-child({at + 1})").all_inner_texts()]

        page.get_by_text("voxels", exact=True).click()
        assert voxels() == sorted(voxels(), reverse=True)
        page.locator("th", has_text="voxels").click()
        assert voxels() == sorted(voxels())
        browser.close()
    assert not faults


def test_a_component_larger_than_a_picture_is_cut(tmp_path):
    voxels = np.zeros((40, 40, 900), np.uint8)
    voxels[10:20, 10:30] = 200
    url = write(tmp_path / "ink.zarr", voxels)
    components(url, tmp_path / "a.parquet", ComponentSettings(sheet=tmp_path / "a.html"))
    drawn = pictures((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert max(max(picture.shape) for picture in drawn) <= 384 + 2 * 8 + 1
    assert (drawn[1] < 128).any()
