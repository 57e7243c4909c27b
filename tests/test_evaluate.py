"""Scores of sheets and of volumes: scikit-learn is the oracle; the page is looked into with a parser."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import tifffile
import zarr
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics

from inkzarr.cli import cli
from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Zyx
from inkzarr.core.patches import Patches, write_patches
from inkzarr.evaluate import EvaluateSettings, evaluate, shrink
from inkzarr.flatten import FlattenSettings, flatten
from inkzarr.labels import LabelSettings, labels
from inkzarr.testing.synthetic import SyntheticScroll


def save(path, array):
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def pair(tmp_path):
    """A sheet with a mask, and its label, padded as published ones are."""
    rng = np.random.default_rng(0)
    ink = np.zeros((256, 512), np.uint8)
    ink[40:80, 30:200] = 255
    ink[100:150, 60:90] = 130
    ink[100:150, 190:210] = 90
    ink[:, 260:] = 255  # in the padding
    values = np.clip(rng.normal(90 + 0.2 * ink[:200, :260], 40), 0, 255).astype(np.uint8)
    mask = np.full((200, 260), 255, np.uint8)
    mask[:20] = 0
    return (
        save(tmp_path / "sheet.png", values),
        save(tmp_path / "label.png", ink),
        save(tmp_path / "mask.png", mask),
    )


def oracle(values, ink):
    values, ink = np.ravel(values) / 255, np.ravel(ink)
    return metrics.roc_auc_score(ink, values), metrics.average_precision_score(ink, values)


def test_scikit_learn_agrees_on_a_sheet(pair, tmp_path):
    sheet, label, mask = pair
    values, ink = np.asarray(Image.open(sheet)), np.asarray(Image.open(label))[:200, :260] >= 128
    found = evaluate(sheet, label).scores
    assert (found.auc, found.average_precision) == pytest.approx(oracle(values, ink), abs=1e-12)
    found = evaluate(sheet, label, EvaluateSettings(mask=str(mask))).scores
    assert found.count == 180 * 260
    assert (found.auc, found.average_precision) == pytest.approx(oracle(values[20:], ink[20:]), abs=1e-12)
    tifffile.imwrite(tmp_path / "sheet.tif", values)
    assert evaluate(tmp_path / "sheet.tif", label).scores == evaluate(sheet, label).scores
    clear = np.stack([values, np.asarray(Image.open(mask))], -1)
    save(tmp_path / "alpha.png", clear)
    assert evaluate(tmp_path / "alpha.png", label).scores == found
    squares = evaluate(sheet, label, EvaluateSettings(coarse=10))
    means = values.reshape(20, 10, 26, 10).mean((1, 3)), ink.reshape(20, 10, 26, 10).mean((1, 3)) >= 0.5
    assert squares.coarse.auc == pytest.approx(oracle(*means)[0], abs=1e-3)
    assert squares.coarse.count == 520
    assert "in squares: AUC" in str(squares)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 12))
def test_squares_are_means(rows, cols, edge):
    plane = np.random.default_rng(rows).integers(0, 255, (rows, cols)).astype(np.uint8)
    found = shrink(plane, edge)
    for row, col in np.ndindex(found.shape):
        part = plane[row * edge : (row + 1) * edge, col * edge : (col + 1) * edge]
        assert found[row, col] == pytest.approx(part.mean())


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)


def test_the_page_stands_alone_and_executes_no_name(pair, tmp_path):
    sheet, label, _ = pair
    nasty = tmp_path / "a<script>alert(1)<&.png"
    sheet.rename(nasty)
    out = tmp_path / "report.html"
    report = evaluate(nasty, label, EvaluateSettings(coarse=16), out=out)
    text = out.read_text()
    page = Page(text)
    assert [a for t, a in page.tags if t == "script"] == [{"type": "application/json", "id": "scores"}]
    told = json.loads("".join(page.scripts))
    assert told["all"]["auc"] == report.scores.auc
    assert told["squares"]["count"] == report.coarse.count
    assert len(told["all"]["curves"]["threshold"]) == 256
    assert sum(t == "svg" for t, _ in page.tags) == 4
    images = [a["src"] for t, a in page.tags if t == "img"]
    assert len(images) == 2
    assert all(src.startswith("data:image/png;base64,") for src in images)
    assert not re.search(r"https?://|src=\"(?!data)", text)
    assert "a&lt;script&gt;alert(1)&lt;&amp;.png" in text


def test_the_command_prints_json(pair, tmp_path):
    sheet, label, mask = map(str, pair)
    given = ["evaluate", sheet, label, "--mask", mask, "--out", str(tmp_path / "r.html"), "--coarse", "20"]
    result = CliRunner().invoke(cli, given)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["count"] == 180 * 260
    assert told["coarse"]["auc"] > told["auc"] > 0.7
    assert "curves" not in told
    assert (tmp_path / "r.html").exists()


def test_a_sheet_without_ink_is_told_in_words(pair, tmp_path):
    blank = save(tmp_path / "blank.png", np.zeros((200, 260), np.uint8))
    report = evaluate(pair[0], blank, out=tmp_path / "r.html")
    assert "no scores: 0 of 52000 labelled are ink" in str(report)
    assert report.to_json()["auc"] is None
    assert "not defined" in (tmp_path / "r.html").read_text()


def volumes(folder, shape=(40, 50, 60), chunks=(16, 16, 16), seed=0):
    rng = np.random.default_rng(seed)
    count = (rng.random(shape) < 0.3).astype(np.uint16)
    count[:, :20] = 0
    ink = np.where(count > 0, rng.integers(0, 255, shape), 0).astype(np.uint8)
    values = np.clip(ink / 2 + rng.integers(0, 128, shape), 0, 255).astype(np.uint8)
    group = zarr.create_group(folder / "labels.zarr", zarr_format=2)
    for name, array in (("ink", ink), ("count", count)):
        group.create_array(name, data=array, chunks=chunks, config={"write_empty_chunks": False})
    zarr.create_array(folder / "p.zarr", data=values, chunks=(20, 50, 30))
    return values, ink, count


@given(st.integers(0, 1000), st.data())
def test_each_voxel_in_the_windows_counts_once(tmp_path_factory, seed, data):
    folder = tmp_path_factory.mktemp("v")
    values, ink, count = volumes(folder, seed=seed)
    rng = np.random.default_rng(seed)
    window = Zyx(*data.draw(st.tuples(*[st.integers(1, 40)] * 3)))
    corners = rng.integers(0, (40, 50, 60), (data.draw(st.integers(1, 12)), 3))
    name = data.draw(st.sampled_from(["a.parquet", "a.npy"]))
    write_patches(folder / name, Patches(corners, window=window))
    inside = np.zeros(count.shape, bool)
    for z, y, x in corners:
        inside[z : z + window.z, y : y + window.y, x : x + window.x] = True
    inside &= count > 0
    settings = EvaluateSettings(patches=str(folder / name), window=window)
    found = evaluate(folder / "p.zarr", folder / "labels.zarr", settings).scores
    assert (found.count, found.ink) == (inside.sum(), (inside & (ink >= 128)).sum())
    if 0 < found.ink < found.count:
        expected = oracle(values[inside], ink[inside] >= 128)
        assert (found.auc, found.average_precision) == pytest.approx(expected, abs=1e-12)


def test_without_a_table_all_that_is_labelled_counts(tmp_path):
    _, _, count = volumes(tmp_path)
    report = evaluate(tmp_path / "p.zarr", tmp_path / "labels.zarr", out=tmp_path / "r.html")
    assert report.scores.count == (count > 0).sum()
    assert "<img" not in (tmp_path / "r.html").read_text()


def test_what_was_not_predicted_is_not_scored(tmp_path, capsys):
    values, ink, count = volumes(tmp_path)
    torch = pytest.importorskip("torch")
    from inkzarr.nn.checkpoint import save_checkpoint
    from inkzarr.nn.unet import UNet3D
    from inkzarr.predict import PredictSettings, predict_volume

    torch.manual_seed(0)
    save_checkpoint(tmp_path / "unet.pt", UNet3D(f_maps=4, levels=2))
    zarr.create_array(tmp_path / "scan.zarr", data=np.maximum(values, 1), chunks=(20, 50, 30))
    out, box = str(tmp_path / "box.zarr"), (slice(0, 40), slice(10, 40), slice(7, 44))
    predict_volume(
        str(tmp_path / "scan.zarr"),
        str(tmp_path / "unet.pt"),
        out,
        PredictSettings(window=16, box=":,10:40,7:44"),
    )
    found = evaluate(out, tmp_path / "labels.zarr").scores
    known = count[box] > 0
    assert (found.count, found.ink) == (known.sum(), (ink[box][known] >= 128).sum())
    assert "is of box 0:40,10:40,7:44 alone, labels beyond it are not scored" in capsys.readouterr().err


def test_bad_input_is_told_in_a_line(pair, tmp_path):
    sheet, label, mask = pair
    small = save(tmp_path / "small.png", np.zeros((100, 260), np.uint8))
    with pytest.raises(
        InputError, match=r"label .*small.png is 100 x 260 pixels but its surface is 200 x 260"
    ):
        evaluate(sheet, small)
    with pytest.raises(InputError, match=r"sheet .*none.png does not exist: write it with inkzarr flatten"):
        evaluate(tmp_path / "none.png", label)
    colour = save(tmp_path / "c.png", np.zeros((200, 260, 3), np.uint8))
    with pytest.raises(InputError, match=r"c.png cannot be read as PNG \(it is not of 8-bit grey, with"):
        evaluate(colour, label)
    (tmp_path / "bad.png").write_bytes(sheet.read_bytes()[:200])
    with pytest.raises(InputError, match=r"bad.png cannot be read as PNG"):
        evaluate(tmp_path / "bad.png", label)
    tifffile.imwrite(tmp_path / "two.tif", np.zeros((2, 200, 260), np.uint8), photometric="minisblack")
    with pytest.raises(InputError, match=r"two.tif cannot be read as TIFF of one page \(it has 2 pages\)"):
        evaluate(tmp_path / "two.tif", label)
    with pytest.raises(InputError, match=r"r.png cannot be the report: name an .html file"):
        evaluate(sheet, label, out=tmp_path / "r.png")
    with pytest.raises(InputError, match=r"sheet.png is a sheet, which has no windows"):
        evaluate(sheet, label, EvaluateSettings(patches="a.parquet"))
    with pytest.raises(InputError, match=r"coarse 1 cannot be"):
        EvaluateSettings(coarse=1)
    volumes(tmp_path)
    place = tmp_path / "p.zarr", tmp_path / "labels.zarr"
    with pytest.raises(InputError, match=r"is a volume: --mask and --coarse belong to a sheet"):
        evaluate(*place, EvaluateSettings(mask=str(mask)))
    write_patches(tmp_path / "far.npy", Patches(np.array([[0, 0, 64]])))
    with pytest.raises(InputError, match=r"far.npy has windows outside labels.zarr \(40,50,60\)"):
        evaluate(*place, EvaluateSettings(patches=str(tmp_path / "far.npy")))
    write_patches(tmp_path / "empty.npy", Patches(np.empty((0, 3), np.int64)))
    with pytest.raises(InputError, match=r"empty.npy has no window"):
        evaluate(*place, EvaluateSettings(patches=str(tmp_path / "empty.npy")))
    zarr.create_array(tmp_path / "q.zarr", shape=(4, 5, 6), dtype="uint8")
    with pytest.raises(InputError, match=r"q.zarr is \(4, 5, 6\) uint8, the labels \(40, 50, 60\)"):
        evaluate(tmp_path / "q.zarr", place[1])


def test_the_real_sheet_is_scored_as_its_readme_tells(real_data, tmp_path):
    """Flattened through its flat surface; somebody's prediction has AUC 0.80, raw intensity about 0.5."""
    home = real_data / "scroll1_20231005123335_2-4_left"
    found = evaluate(home / "reference_prediction.png", home / "inklabel.png", EvaluateSettings(coarse=64))
    assert found.scores.auc == pytest.approx(0.80, abs=0.01)
    flatten(home / "volume.zarr", "flat:6", tmp_path / "raw.png", FlattenSettings(depth=0))
    raw = evaluate(tmp_path / "raw.png", home / "inklabel.png")
    assert raw.scores.auc == pytest.approx(0.5, abs=0.03)


def test_what_the_label_does_not_have_is_not_scored(pair, tmp_path):
    sheet, label, mask = pair
    values, ink = np.asarray(Image.open(sheet)), np.asarray(Image.open(label))
    short = save(tmp_path / "short.png", ink[:190, :254])
    report = evaluate(sheet, short, EvaluateSettings(mask=mask))
    assert report.past_label == (10, 6)
    assert report.scores.count == 170 * 254
    assert report.scores.auc == pytest.approx(oracle(values[20:190, :254], ink[20:190, :254] >= 128)[0])
    told = "the last 10 rows and 6 columns of the sheet"
    assert told in str(report)
    assert told in report.to_html()
    assert report.to_json()["past_label"] == [10, 6]
    wide = save(tmp_path / "wide.png", np.zeros((20, 300), np.uint8))
    with pytest.raises(InputError, match="not smaller than 1 x 237"):
        evaluate(wide, save(tmp_path / "narrow.png", np.zeros((20, 236), np.uint8)))


def columns_of(path):
    with Image.open(path) as image:
        return image.width


def test_a_tifxyz_sheet_and_a_label_that_ends_at_the_last_grid_point(tmp_path):
    scroll = SyntheticScroll(shape=(160, 160, 160))
    scroll.write_segments(tmp_path, kind="tifxyz")
    zarr.save_array(tmp_path / "scan.zarr", scroll.volume().to_numpy())
    surface = next(path.parent for path in sorted((tmp_path / "paths").rglob("x.tif")))
    label = next((tmp_path / "inklabels").rglob("*.png"))
    flatten(tmp_path / "scan.zarr", surface, tmp_path / "xyz.png", FlattenSettings(depth=2))
    with Image.open(label) as image:
        cut = save(tmp_path / "cut.png", np.asarray(image)[:, : columns_of(tmp_path / "xyz.png") - 2])
    settings = LabelSettings(shape=(160, 160, 160))
    shutil.copy(cut, label)
    assert labels(tmp_path / "paths", tmp_path / "inklabels", tmp_path / "l.zarr", settings).labelled
    report = evaluate(tmp_path / "xyz.png", cut)
    assert report.past_label == (0, 2)
    assert report.scores.ink > 0
