"""In a real browser: the dashboard shows our tasks by readable names, and the viewer's slider moves the picture."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import inkzarr
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.job import Job, RunOptions
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import VolumeSpec

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("default"), pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_MS = 90_000

TEXTS = """() => (window.Bokeh ? Bokeh.documents : []).flatMap(document =>
    [...document._all_models.values()].filter(model => model.data && model.data.name)
    .flatMap(model => [...model.data.name]).map(String))"""
"""Names in the tables behind a dashboard's plots, which are drawn on canvases."""

RUN_ALL = """async () => {
    const session = window.jupyterapp.shell.currentWidget.context.sessionContext;
    await session.ready;
    await session.session.kernel.info;  // before, JupyterLab asks which kernel is meant
    window.jupyterapp.commands.execute('notebook:run-all-cells');
}"""


@pytest.fixture(scope="module")
def page(chromium):
    """A page of the browser that this machine has."""
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1400, "height": 1000})
        opened.set_default_timeout(PATIENCE_MS)
        yield opened
        browser.close()


class Slow:
    """A block function that takes a while, so that there is something to see."""

    def __call__(self, box: Box):
        time.sleep(0.3)
        return np.ones(box.shape, np.uint8)


def test_the_dashboard_shows_tasks_by_readable_names(page, tmp_path):
    spec = VolumeSpec(Zyx(512, 512, 256), np.dtype("uint8"))
    job = Job("predict", f"{tmp_path}/out.zarr", spec, Zyx.of(128), {})
    with inkzarr.cluster(workers=1) as cluster:
        run = threading.Thread(target=write_blocks, args=(job, Slow(), RunOptions(scheduler=cluster.address)))
        page.goto(cluster.dashboard)
        run.start()
        until = time.monotonic() + 120
        seen = set()
        while "predict" not in seen and time.monotonic() < until:
            seen = set(page.evaluate(TEXTS))
            time.sleep(0.2)
        page.screenshot(path=tmp_path / "dashboard.png")
        run.join(120)
    assert "predict" in seen, f"the dashboard shows {sorted(seen)}"


@pytest.fixture
def lab(tmp_path):
    """JupyterLab on loopback with notebook 4, as a URL."""
    pytest.importorskip("jupyterlab")
    shutil.copy(ROOT / "notebooks" / "4_predict_lazily.ipynb", tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token=t",
        f"--ServerApp.root_dir={tmp_path}", "--LabApp.expose_app_in_browser=True",
        "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    own = {
        name: str(tmp_path / ".jupyter")
        for name in ("JUPYTER_CONFIG_DIR", "IPYTHONDIR", "JUPYTERLAB_SETTINGS_DIR")
    }
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    own |= {"PYTHONPATH": paths, "JUPYTER_RUNTIME_DIR": str(tmp_path / ".runtime")}
    with (tmp_path / "lab.log").open("wb") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env={**os.environ, **own}, stdout=subprocess.DEVNULL, stderr=log)
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(f"{url}/api", timeout=5).close()
            break
        except OSError:
            time.sleep(0.2)
    else:
        pytest.fail((tmp_path / "lab.log").read_text())
    yield f"{url}/lab/tree/4_predict_lazily.ipynb?token=t"
    for kernel in json.load(urllib.request.urlopen(f"{url}/api/kernels?token=t", timeout=20)):
        request = urllib.request.Request(f"{url}/api/kernels/{kernel['id']}?token=t", method="DELETE")
        urllib.request.urlopen(request, timeout=20).close()
    server.terminate()
    server.wait(30)


def test_the_slider_moves_the_picture(page, lab, tmp_path):
    page.goto(lab)
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    page.evaluate(RUN_ALL)
    picture = page.locator("img.widget-image").first
    picture.wait_for()
    page.get_by_text("mean probability on ink").last.wait_for()  # the notebook ran to its end
    picture.scroll_into_view_if_needed()
    before = shown(page, picture)
    assert before.std() > 20, "something is to be seen"
    orange = (before[..., 0].astype(int) - before[..., 2]) > 100
    assert orange.mean() > 0.01, "ink is laid over the scan"
    handle = page.locator(".widget-slider .noUi-handle").first
    handle.focus()
    for _ in range(8):
        handle.press("ArrowRight")
    until = time.monotonic() + 60
    while np.array_equal(shown(page, picture), before) and time.monotonic() < until:
        time.sleep(0.2)
    page.screenshot(path=tmp_path / "lab.png")
    assert not np.array_equal(shown(page, picture), before), "the picture stood still"


def shown(page, picture):
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(picture.screenshot())).convert("RGB"))
