"""Whoever opens an unfinished output is told so, once, and of how to go on; nothing but the ledger is read."""

import re

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image

import inkzarr
from inkzarr.cli import cli
from inkzarr.core.errors import InputError, UnfinishedWarning
from inkzarr.core.ledger import Ledger
from inkzarr.labels import LabelSettings
from inkzarr.view import Viewing

TOLD = r"{name} is unfinished: run the command that makes it again, until it is done \({most}{n} of {n} chunks are missing\)"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A scan with a second level, and labels on it."""
    home = tmp_path_factory.mktemp("made")
    voxels = np.random.default_rng(0).integers(1, 255, (8, 140, 140), np.uint8)
    tifffile.imwrite(home / "scan.tif", voxels, photometric="minisblack")
    inkzarr.ingest(home / "scan.tif", home / "scan.zarr")
    inkzarr.pyramid(home / "scan.zarr", levels=1)
    Image.fromarray(voxels[0] // 128 * 255).save(home / "word.png")
    inkzarr.labels(home / "scan.zarr", home / "word.png", home / "labels.zarr", LabelSettings(flat=4))
    return home


@pytest.fixture(params=["scan.zarr 0", "scan.zarr 1", "labels.zarr ink", "labels.zarr count"])
def running(made, request):
    """A volume while one of its arrays is a run of which nothing is recorded; that one's level and chunks."""
    name, array = request.param.split()
    folder = made / name / ".inkzarr" / array
    kept = {path: path.read_text() for path in folder.iterdir()}
    count = kept.pop(folder / "manifest.json")
    (folder / "manifest.json").write_text(count.replace('"done"', '"running"'))
    for path in kept:
        path.unlink()
    yield made / name, int(array == "1"), 1 if array == "1" else 4
    for path, text in {**kept, folder / "manifest.json": count}.items():
        path.write_text(text)


def most(path):
    """Of labels empty chunks are left out, so that all that can be told is how many are missing at most."""
    return "at most " if "labels" in path.name else ""


def opened(path, level):
    return inkzarr.open_labels(path) if "labels" in path.name else inkzarr.open_volume(path, level=level)


def viewed(path, _level):
    return inkzarr.view(path, browser=False)


def plotted(path, _level):
    return inkzarr.plot.slice(path)


@pytest.mark.parametrize("reader", [opened, viewed, plotted])
def test_it_warns_once(running, reader):
    path, level, n = running
    with pytest.warns(UnfinishedWarning, match=TOLD.format(name=path.name, n=n, most=most(path))) as told:
        reader(path, level)
    assert len(told) == 1
    assert told[0].filename == __file__


def test_info_and_its_card_tell(running):
    path, _, n = running
    found = inkzarr.info(path)
    for text in (str(found), found._repr_html_()):
        told = f"is unfinished: run the command that makes it again, until it is done ({most(path)}{n} of {n}"
        assert told in text


@pytest.mark.parametrize("name", ["scan.zarr", "labels.zarr"])
def test_what_is_done_is_opened_without_a_word_and_open_reads_no_record(made, name, monkeypatch):
    assert plotted(made / name, 0)  # a warning is an error in all tests
    assert viewed(made / name, 0)
    assert "unfinished" not in str(inkzarr.info(made / name))
    monkeypatch.setattr(Ledger, "load", lambda _: pytest.fail("records were read"))
    assert opened(made / name, 0).shape == (8, 140, 140)


def test_the_command_line_tells_in_one_line(running, monkeypatch):
    path, _, n = running
    monkeypatch.setattr(Viewing, "wait", lambda _: None)
    done = CliRunner().invoke(cli, ["view", str(path), "--no-browser"])
    assert done.exit_code == 0
    assert re.search(
        rf"^inkzarr: .*{TOLD.format(name=path.name, n=n, most=most(path))}$", done.stderr, re.MULTILINE
    )


def test_a_run_whose_manifest_is_lost_is_not_taken_for_one_that_is_whole(running):
    path, level, _ = running
    for each in (path / ".inkzarr").iterdir():
        (each / "manifest.json").rename(each / "kept")
        (each / "blocks-1-000000.jsonl").touch()
    try:
        for ask in (lambda: opened(path, level), lambda: inkzarr.verify(path), lambda: inkzarr.info(path)):
            with pytest.raises(InputError, match=r"has lost its manifest\.json: .* with --overwrite"):
                ask()
    finally:
        for each in (path / ".inkzarr").iterdir():
            (each / "kept").rename(each / "manifest.json")
            (each / "blocks-1-000000.jsonl").unlink()
