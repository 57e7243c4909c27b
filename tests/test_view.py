"""What the server hands out and what it does not; and a real browser that shows papyrus and ink."""

import functools
import http.server
import io
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import zarr
from PIL import Image

import inkzarr
from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Zyx
from inkzarr.core.job import Job, RunOptions
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import VolumeSpec
from inkzarr.testing import SyntheticScroll
from inkzarr.view import OVERLAY, open_layers, parse_range, view

FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
ORANGE = (255, 90, 0)
SHAPE = (160, 200, 220)


def write(url, voxels, **layout):
    spec = VolumeSpec(Zyx(*voxels.shape), voxels.dtype, **layout)
    job = Job("test", str(url), spec, Zyx.of(128), {})
    write_blocks(job, lambda box: voxels[box.slices], RunOptions())
    return url


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    home = tmp_path_factory.mktemp("view")
    scroll = SyntheticScroll(shape=SHAPE)
    scan = write(home / "scan.zarr", scroll.volume().values)
    inkzarr.pyramid(scan, levels=1)
    ink = write(
        home / "ink.zarr", (scroll.truth().values > 0).astype("uint8") * 255, zarr_format=3, shard=128
    )
    (home / "secret.txt").write_text("not yours")
    return scan, ink


@pytest.fixture(scope="module")
def viewing(volumes):
    return view(volumes, browser=False)


def fetch(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
        return answer.status, answer.read(), dict(answer.headers)


def root(viewing):
    return f"{viewing.url.split('/v/')[0]}/volumes/{viewing.viewer.token}"


def test_the_server_is_on_this_machine_alone(viewing):
    assert viewing.url.startswith("http://127.0.0.1:")
    assert "Access-Control-Allow-Origin" not in fetch(f"{root(viewing)}/0/.zattrs")[2]


def test_chunks_come_as_they_are_stored(viewing, volumes):
    _, body, _ = fetch(f"{root(viewing)}/0/0/1/0/1")
    assert body == (volumes[0] / "0/1/0/1").read_bytes()
    _, body, _ = fetch(f"{root(viewing)}/0/1/.zarray")
    assert json.loads(body)["shape"] == [80, 100, 110]
    shard = (volumes[1] / "0/c/0/0/0").read_bytes()
    for header, part in (
        ("bytes=10-19", shard[10:20]),
        ("bytes=-16", shard[-16:]),
        (f"bytes={len(shard) - 5}-", shard[-5:]),
    ):
        status, body, headers = fetch(f"{root(viewing)}/1/0/c/0/0/0", Range=header)
        assert (status, body) == (206, part)
        assert headers["Content-Range"].endswith(f"/{len(shard)}")
        first, last = map(int, headers["Content-Range"][6:].split("/")[0].split("-"))
        assert shard[first : last + 1] == part


def test_the_groups_say_where_the_levels_lie(viewing):
    import ome_zarr_models.v04
    import ome_zarr_models.v05

    metadata = json.loads(fetch(f"{root(viewing)}/0/.zattrs")[1])
    image = ome_zarr_models.v04.multiscales.Multiscale(**metadata["multiscales"][0])
    scales = [dataset.coordinateTransformations[0].scale for dataset in image.datasets]
    assert scales == [[7.91] * 3, [15.82] * 3]
    assert image.datasets[1].coordinateTransformations[1].translation == pytest.approx([7.91 / 2] * 3)
    metadata = json.loads(fetch(f"{root(viewing)}/1/zarr.json")[1])
    ome_zarr_models.v05.multiscales.Multiscale(**metadata["attributes"]["ome"]["multiscales"][0])


@pytest.mark.parametrize(
    "path",
    [
        "/0/../secret.txt",
        "/0/0/../../../secret.txt",
        "/0/0/..%2f..%2f..%2fsecret.txt",
        "/0/0/%2e%2e/%2e%2e/secret.txt",
        "/0/0//etc/passwd",
        "/0/0/.inkzarr/0/manifest.json",
        "/0/0/9/9/9",
        "/0/7/0/0/0",
        "/9/0/0/0/0",
        "/0/.zmetadata",
        "/x/0/0/0/0",
    ],
)
def test_nothing_else_is_served(viewing, path):
    before = len(viewing.served)
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(root(viewing) + path)
    refused.value.close()
    assert refused.value.code == 404
    assert len(viewing.served) == before


def test_nothing_is_served_without_the_secret(viewing):
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(root(viewing)[:-1] + "x/0/.zattrs")
    refused.value.close()
    assert refused.value.code == 404


def test_a_store_that_fails_is_no_missing_chunk(volumes, monkeypatch):
    viewing = view(volumes[:1], browser=False)
    chunk = volumes[0] / "0/0/0/0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:40])
    try:
        with pytest.raises(urllib.error.HTTPError) as failed:
            fetch(f"{root(viewing)}/0/0/0/0/0")
    finally:
        chunk.write_bytes(whole)
    failed.value.close()
    assert failed.value.code == 502


def test_bare_arrays_and_labels_are_layers_too(tmp_path, volumes):
    bare = tmp_path / "bare.zarr"
    array = zarr.create_array(bare, shape=SHAPE, chunks=(50, 60, 70), dtype="uint8", zarr_format=2)
    array[:] = 1
    group = zarr.create_group(tmp_path / "labels.zarr", zarr_format=2)
    for name, dtype in (("count", "uint16"), ("ink", "uint8")):
        group.create_array(name, shape=SHAPE, chunks=(64,) * 3, dtype=dtype)
    layers = open_layers([str(volumes[0]), str(bare), str(tmp_path / "labels.zarr")])
    assert [layer.spacing for layer in layers] == [(7.91,) * 3] * 3
    assert [one.level.path for one in layers[2].levels] == ["ink"]
    inkzarr.pyramid(tmp_path / "labels.zarr", levels=1)
    (labels,) = open_layers([str(tmp_path / "labels.zarr")])
    assert [one.level.path for one in labels.levels] == ["ink", "1/ink"]
    assert all(layer.known for layer in open_layers([str(bare), str(volumes[0])]))
    viewing = view([bare], browser=False)
    metadata = json.loads(fetch(f"{root(viewing)}/0/.zattrs")[1])
    assert metadata["multiscales"][0]["axes"] == [{"name": dim, "type": "space"} for dim in "zyx"]
    assert json.loads(fetch(f"{root(viewing)}/0/0/.zarray")[1])["dimension_separator"] == "."
    assert fetch(f"{root(viewing)}/0/0/0.0.0")[0] == 200


def test_remote_volumes_go_through_the_same_server(volumes):
    handler = functools.partial(Quiet, directory=volumes[0].parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/scan.zarr"
        viewing = view([url], browser=False)
        assert fetch(f"{root(viewing)}/0/0/1/0/1")[1] == (volumes[0] / "0/1/0/1").read_bytes()
        server.shutdown()


@pytest.mark.browser
def test_neuroglancer_opens_a_pyramid_from_any_web_server(volumes, chromium):
    import neuroglancer
    from playwright.sync_api import sync_playwright

    handler = functools.partial(Quiet, directory=volumes[0].parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        neuroglancer.set_server_bind_address("127.0.0.1", 0)
        viewer, answers = neuroglancer.Viewer(), set()
        with viewer.txn() as state:
            source = f"zarr://http://127.0.0.1:{server.server_port}/scan.zarr/"
            state.layers["scan"] = neuroglancer.ImageLayer(source=source)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            page = browser.new_page(viewport={"width": 600, "height": 500})
            page.on("response", lambda one: answers.add(one.url.split("scan.zarr/")[-1]) if one.ok else None)
            page.goto(viewer.get_viewer_url())
            deadline = time.monotonic() + 90
            while not {"0/0/0/0", "1/0/0/0"} <= answers and time.monotonic() < deadline:
                page.wait_for_timeout(500)
            browser.close()
        server.shutdown()
    assert {"0/0/0/0", "1/0/0/0"} <= answers


class Quiet(http.server.SimpleHTTPRequestHandler):
    def end_headers(self):
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()

    def log_message(self, *_):
        pass


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no volume to view: give at least one"):
        view([])
    with pytest.raises(InputError, match=r"no Zarr volume at nowhere\.zarr"):
        view(["nowhere.zarr"])
    from numcodecs import Delta

    zarr.create_array(
        tmp_path / "f.zarr", shape=(4,) * 3, dtype="uint8", zarr_format=2, filters=[Delta(dtype="u1")]
    )
    with pytest.raises(InputError, match=r"f.zarr has filters, which Neuroglancer does not read"):
        view([tmp_path / "f.zarr"])
    zarr.create_array(tmp_path / "d.zarr", shape=(4,) * 3, dtype="float64")
    with pytest.raises(InputError, match=r"d.zarr holds float64, which Neuroglancer does not show"):
        view([tmp_path / "d.zarr"])
    monkeypatch.setitem(sys.modules, "neuroglancer", None)
    zarr.create_array(tmp_path / "a.zarr", shape=(4,) * 3, dtype="uint8")
    with pytest.raises(InputError, match=r'pip install "inkzarr\[view\]"'):
        view([tmp_path / "a.zarr"])


def test_odd_ranges_give_the_whole():
    assert parse_range("bytes=-") is None
    assert parse_range("lines=1-2") is None


def test_a_browser_is_opened_where_wanted(volumes, monkeypatch):
    opened = []
    monkeypatch.setattr(sys.modules["inkzarr.view"].webbrowser, "open", opened.append)
    assert view(volumes[:1]).url in opened


def test_ctrl_c_ends_the_command(volumes):
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell's & does not
    code = f"{heard}; from inkzarr.cli import main; main()"
    command = [sys.executable, "-c", code, "view", *volumes, "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        assert fetch(url)[0] == 200
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in told
    assert "Traceback" not in told


@pytest.mark.browser
def test_a_browser_shows_papyrus_and_ink(viewing, chromium, tmp_path):
    from playwright.sync_api import sync_playwright

    before, elsewhere = len(viewing.served), []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1000, "height": 800})
        page.on("request", lambda one: elsewhere.append(one.url) if "//127.0.0.1:" not in one.url else None)
        page.goto(viewing.url)
        shot = wait_for_colour(page)
        page.screenshot(path=tmp_path / "view.png")
        browser.close()
    assert [url for url in elsewhere if not url.startswith(("data:", "blob:"))] == []
    assert {key.split("/")[0] for key in viewing.served[before:] if key[-1].isdigit()} == {"0", "1"}
    # the plane of y and x in the first panel, as it should look
    orange = is_orange(shot[60:400, 60:440])
    assert 0.03 < orange.mean() < 0.5
    grey = np.ptp(shot[60:400, 60:440].astype(int), axis=2) < 12
    values = shot[60:400, 60:440, 0][grey]
    assert np.percentile(values, 95) > 150  # papyrus
    assert np.percentile(values, 5) < 60  # the air between


def is_orange(pixels):
    return (np.abs(pixels.astype(int) - ORANGE).max(axis=-1) < 40) if pixels.size else np.zeros(0, bool)


def wait_for_colour(page):
    """The first screenshot with ink on it, once it no longer changes."""
    last = None
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
        if is_orange(shot).mean() > 0.01 and last is not None and np.array_equal(shot, last):
            return shot
        last = shot
        time.sleep(0.5)
    return last


def test_the_shader_hides_what_is_below_the_threshold():
    assert "ink < threshold ? 0.0 : ink" in OVERLAY.format(colour="#ff5a00")
