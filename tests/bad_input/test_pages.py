"""No page, card or viewer executes what a file or segment is named."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

import inkzarr
from inkzarr.components import ComponentSettings
from inkzarr.core.cluster import DaskCluster
from inkzarr.core.patches import Patches
from inkzarr.core.ppm import write_ppm
from inkzarr.core.surface import open_surface
from inkzarr.evaluate import EvaluateSettings, evaluate
from inkzarr.info import info
from inkzarr.nn.checkpoint import load_checkpoint, save_checkpoint
from inkzarr.nn.unet import UNet3D
from inkzarr.view import open_layers

SCRIPT = "<script>alert(1)</script>"
EVIL = "<img src=x onerror=alert(1)>\"'&<script>alert(1)<"
"""As above, but a file can be named so."""
OURS = {"div", "b", "br", "small", "img", "p", "a", "table", "thead", "tbody", "tr", "th", "td"}


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def harmless(text, also=()):
    """Only tags of ours, no attribute that runs anything, pictures inside the page alone."""
    for tag, attributes in Tags(text).found:
        assert tag in OURS | set(also), tag
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("src", "data:").startswith("data:")
        assert not attributes.get("href", "").lower().startswith("javascript")
    return True


@pytest.fixture
def evil(tmp_path):
    """A prediction with one component, in a folder of that name."""
    voxels = np.zeros((24, 24, 24), np.uint8)
    voxels[4:7, 4:20, 4:18] = 200
    url = tmp_path / f"{EVIL}.zarr"
    zarr.create_array(url, data=voxels, chunks=(24,) * 3, zarr_format=2, attributes={EVIL: SCRIPT})
    return url


def test_the_contact_sheet(evil, tmp_path):
    out = tmp_path / "sheet.html"
    inkzarr.components(evil, tmp_path / "c.parquet", ComponentSettings(min_voxels=10, sheet=out))
    text = out.read_text()
    also = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "h1",
        "body",
        "code",
        "pre",
        "script",
        "details",
        "summary",
    }
    assert harmless(text, also)
    assert sum(tag == "script" for tag, _ in Tags(text).found) == 1, "the one that sorts"
    assert "&lt;img src=x onerror" in text


def test_the_score_page_of_a_volume(evil, tmp_path):
    sheet, label = tmp_path / f"{EVIL}.png", tmp_path / f"{EVIL}_inklabels.png"
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    Image.fromarray(ramp).save(sheet)
    Image.fromarray((ramp > 128).astype(np.uint8) * 255).save(label)
    out = tmp_path / "report.html"
    evaluate(sheet, label, EvaluateSettings(), out=out)
    text = out.read_text()
    also = {"html", "meta", "title", "style", "h1", "h2", "figure", "figcaption", "script"}
    assert harmless(text, also | {"svg", "rect", "text", "path", "polyline", "circle"})
    assert [a["type"] for t, a in Tags(text).found if t == "script"] == ["application/json"]


def test_cards(evil, tmp_path):
    torch.manual_seed(0)
    unet = tmp_path / f"{EVIL}.pt"
    save_checkpoint(unet, UNet3D(f_maps=4, levels=2), lineage={EVIL: SCRIPT, "source": EVIL})
    points = np.stack(np.meshgrid(np.arange(4.0), np.arange(5.0), [1.0]), -1).reshape(5, 4, 3)
    segment = tmp_path / f"{EVIL}.ppm"
    write_ppm(segment, points, np.broadcast_to([1.0, 0.0, 0.0], points.shape))
    for shown in (
        info(evil)._repr_html_(),
        open_surface(str(segment))._repr_html_(),
        Patches(np.zeros((1, 3), np.int64), lineage={EVIL: SCRIPT, "source": EVIL})._repr_html_(),
        load_checkpoint(unet)._repr_html_(),
        DaskCluster(SCRIPT, f"http://127.0.0.1/{SCRIPT}", 2)._repr_html_(),
    ):
        assert harmless(shown)


def test_the_viewer_hands_names_over_as_json(evil):
    (layer,) = open_layers([str(evil)])
    (image,) = json.loads(layer.document(".zattrs"))["multiscales"]
    assert image["name"] == f"{EVIL}.zarr"
    assert layer.document("../.zattrs") is None
