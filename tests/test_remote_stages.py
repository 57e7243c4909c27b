"""Every stage on its command line, from and to a web server and an S3 server: the same bytes as on a local disk."""

import json

import numpy as np
import pyarrow.parquet
import pytest
import torch
import zarr
from click.testing import CliRunner

from inkzarr.cli import cli
from inkzarr.nn.checkpoint import save_checkpoint
from inkzarr.nn.unet import UNet3D
from inkzarr.testing.synthetic import SyntheticScroll
from tests.core.web import Web
from tests.stored import keys, tree

pytestmark = pytest.mark.slow

SCROLL = SyntheticScroll(shape=(64, 128, 128))
LABELS = ("--skip-blank", "0", "--like")
PREDICT = ("--window", "32", "--overlap", "0", "--block", "64")
TOML = """
window = 16
batch = 1
epochs = 1
network = {f_maps = 4, levels = 2}
"""


def run(*arguments):
    """What the command prints on success."""
    result = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A scan, labels, a network and a prediction on a local disk."""
    folder = tmp_path_factory.mktemp("home")
    scan = SCROLL.volume().values
    zarr.create_array(folder / "scan.zarr", data=scan, chunks=(32, 32, 32), zarr_format=2, compressors=None)
    SCROLL.write_segments(folder)
    torch.manual_seed(0)
    save_checkpoint(folder / "unet.pt", UNet3D(f_maps=4, levels=2))
    run(
        "labels",
        folder / "paths",
        folder / "inklabels",
        folder / "labels.zarr",
        *LABELS,
        folder / "scan.zarr",
    )
    run("patches", folder / "labels.zarr", folder / "patches.parquet", "--window", "16")
    run("predict", folder / "scan.zarr", folder / "unet.pt", folder / "ink.zarr", *PREDICT)
    few = pyarrow.parquet.read_table(folder / "patches.parquet").slice(0, 2)
    pyarrow.parquet.write_table(few, folder / "few.parquet")
    (folder / "run.toml").write_text(TOML)
    return folder


@pytest.fixture(scope="module", params=["http", "s3"])
def there(request, home):
    """Where `home` lies too, and options to read it: anonymously."""
    if request.param == "http":
        web = Web(home)
        yield web.url, ()
        web.close()
        return
    import s3fs

    s3 = request.getfixturevalue("s3")
    fs = s3fs.S3FileSystem(**s3, skip_instance_cache=True)
    for name in ("scan.zarr", "labels.zarr", "ink.zarr"):
        fs.put(str(home / name), f"scrolls/{name}", recursive=True, ACL="public-read")
    options = {"anon": True, "client_kwargs": s3["client_kwargs"]}
    yield "s3://scrolls", ("--storage-options", json.dumps(options))


def result(files):
    """What a run wrote, but for the command that the ledger notes, which names the run's own inputs."""
    told = {name: json.loads(body) for name, body in files.items() if name.endswith("manifest.json")}
    return files | {name: {**manifest, "command": None} for name, manifest in told.items()}


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_info_and_verify(home, there):
    place, options = there
    told = run("info", f"{place}/scan.zarr", *options)
    for what in ("64,128,128", "uint8", "32,32,32", "raw", "MB"):
        assert what in told
    assert "done" in run("info", f"{place}/ink.zarr", *options)
    assert "none damaged" in run("verify", f"{place}/ink.zarr", *options)


def test_predict(home, there, tmp_path):
    place, options = there
    told = run("predict", f"{place}/scan.zarr", home / "unet.pt", tmp_path / "ink.zarr", *PREDICT, *options)
    assert result(tree(tmp_path / "ink.zarr")) == result(tree(home / "ink.zarr"))
    assert "fetched" in told
    assert "MB/s" not in told


def test_labels_like(home, there, tmp_path):
    place, options = there
    given = (home / "paths", home / "inklabels", tmp_path / "labels.zarr")
    run("labels", *given, *LABELS, f"{place}/scan.zarr", *options)
    assert result(tree(tmp_path / "labels.zarr")) == result(tree(home / "labels.zarr"))


def test_flatten(home, there, tmp_path):
    place, options = there
    surface = next((home / "paths").glob("*/*.ppm"))
    run("flatten", home / "ink.zarr", surface, tmp_path / "here.png")
    told = run("flatten", f"{place}/ink.zarr", surface, tmp_path / "there.png", *options)
    assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()
    assert "fetched" in told


def test_components_and_export(home, there, tmp_path):
    place, options = there
    for url, name, more in ((str(home), "here", ()), (place, "there", options)):
        out = tmp_path / name
        out.mkdir()
        given = ("--threshold", "0.5", "--min-voxels", "2", "--sheet", out / "sheet.html")
        scan = ("--labels", out / "ids.zarr", "--scan", f"{url}/scan.zarr")
        run("components", f"{url}/ink.zarr", out / "letters.parquet", *given, *scan, *more)
        run("export", f"{url}/scan.zarr", out / "scan.nrrd", "--box", "3:40,:,5:77", *more)
    here, there = result(tree(tmp_path / "here")), result(tree(tmp_path / "there"))
    assert here["scan.nrrd"] == there["scan.nrrd"]
    assert here["letters.parquet"] == there["letters.parquet"]
    chunks = {name for name in here if name.startswith("ids.zarr/0/")}
    assert chunks
    assert all(here[name] == there[name] for name in chunks)


def test_patches_train_and_evaluate(home, there, tmp_path):
    place, options = there
    run("patches", f"{place}/labels.zarr", tmp_path / "patches.parquet", "--window", "16", *options)
    assert (tmp_path / "patches.parquet").read_bytes() == (home / "patches.parquet").read_bytes()
    told = []
    for url, name, more in ((str(home), "here", ()), (place, "there", options)):
        given = (home / "few.parquet", tmp_path / name, "--config", home / "run.toml")
        run("train", f"{url}/scan.zarr", f"{url}/labels.zarr", *given, *more)
        told.append(run("evaluate", f"{url}/ink.zarr", f"{url}/labels.zarr", *more))
    assert told[0] == told[1]
    here, trained = (weights(tmp_path / name / "last.pt") for name in ("here", "there"))
    assert all(torch.equal(here[name], trained[name]) for name in here)


def test_everything_that_writes_volumes_writes_to_s3(home, s3, tmp_path):
    """Ingest, pyramid, labels, predict and components: each key as the file on a local disk, ledgers included."""
    pytest.importorskip("s3fs")
    import s3fs

    s3fs.S3FileSystem(**s3).put(str(home / "scan.zarr"), "scrolls/in/scan.zarr", recursive=True)
    more = ("--storage-options", json.dumps(s3))
    for name, place, options, source in (
        ("here", str(tmp_path / "out"), (), home),
        ("there", "s3://scrolls/out", more, "s3://scrolls/in"),
    ):
        run("ingest", f"{source}/scan.zarr", f"{place}/scan.zarr", *options)
        run("pyramid", f"{place}/scan.zarr", "--levels", "1", *options)
        given = (home / "paths", home / "inklabels", f"{place}/labels.zarr")
        run("labels", *given, *LABELS, f"{place}/scan.zarr", *options)
        run("predict", f"{place}/scan.zarr", home / "unet.pt", f"{place}/ink.zarr", *PREDICT, *options)
        table = (tmp_path / f"{name}.parquet", "--min-voxels", "2", "--labels", f"{place}/ids.zarr")
        run("components", f"{place}/ink.zarr", *table, *options)
    there, here = result(keys(s3, "scrolls/out")), result(tree(tmp_path / "out"))
    beside = {"labels.zarr.png", ".labels.zarr.sources.json"}  # on a local disk only
    assert set(there) == set(here) - beside
    assert [name for name in there if here[name] != there[name]] == []
    assert {name.split("/")[0] for name in here if ".inkzarr" in name} == {
        "scan.zarr",
        "labels.zarr",
        "ink.zarr",
        "ids.zarr",
    }
    again = run(
        "predict",
        "s3://scrolls/out/scan.zarr",
        home / "unet.pt",
        "s3://scrolls/out/ink.zarr",
        *PREDICT,
        *more,
    )
    assert "from before" in again


def test_from_the_web_to_s3(home, s3, tmp_path):
    """Options of one kind of store do not reach the other."""
    web = Web(home)
    options = {"s3": s3, "http": {"headers": {"X-Token": "1"}}}
    try:
        given = (
            home / "unet.pt",
            "s3://scrolls/web/ink.zarr",
            *PREDICT,
            "--storage-options",
            json.dumps(options),
        )
        run("predict", f"{web.url}/scan.zarr", *given)
    finally:
        web.close()
    assert result(keys(s3, "scrolls/web/ink.zarr")) == result(tree(home / "ink.zarr"))
    assert np.array_equal(
        zarr.open_array("s3://scrolls/web/ink.zarr/0", storage_options=s3, mode="r")[:],
        zarr.open_array(home / "ink.zarr/0", mode="r")[:],
    )
