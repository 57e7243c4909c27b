"""``verify --repair``: damaged blocks are computed again, exactly these, by the command that made them."""

import json
import shutil

import click
import fsspec
import numpy as np
import pytest
import tifffile
import torch
import zarr
from click.testing import CliRunner
from PIL import Image

from inkzarr.cli import cli, to_go_on
from inkzarr.core import lock, runner
from inkzarr.core.errors import DamageError, InkzarrError, InputError
from inkzarr.core.geometry import Zyx
from inkzarr.core.job import Job, RunOptions
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import LOCK, VolumeSpec
from inkzarr.nn.checkpoint import save_checkpoint
from inkzarr.nn.unet import UNet3D
from inkzarr.verify import strike, verify
from tests.stored import tree

SHAPE = (8, 384, 512)
SECRET = "hunter2"


def run(*words):
    done = CliRunner().invoke(cli, list(map(str, words)))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every kind of volume, made by its command: 12 chunks of 128 x 128 in 12 blocks or fewer."""
    home = tmp_path_factory.mktemp("made")
    scan = np.random.default_rng(0).integers(1, 255, SHAPE, dtype=np.uint8)
    scan[:, :128, :128] = 0
    tifffile.imwrite(home / "scan.tif", scan, photometric="minisblack")
    torch.manual_seed(0)
    save_checkpoint(home / "unet.pt", UNet3D(f_maps=4, levels=2))
    run("ingest", home / "scan.tif", home / "scan.zarr", "--voxel-size", "8")
    run("pyramid", home / "scan.zarr", "--levels", "2")
    options = ("--window", "8,64,64", "--overlap", "0", "--block", "128", "--workers", "1")
    run("predict", home / "scan.zarr", home / "unet.pt", home / "ink.zarr", *options)
    word = np.random.default_rng(1).integers(0, 2, SHAPE[1:], dtype=np.uint8) * 255
    word[100:140] = word[:, 300:] = 0
    Image.fromarray(word).save(home / "word.png")
    run(
        "labels", home / "scan.zarr", home / "word.png", home / "labels.zarr", "--flat", "4", "--block", "128"
    )
    run("pyramid", home / "labels.zarr", "--levels", "1")
    rules = ("--threshold", "0.5", "--min-voxels", "1")
    run("components", home / "scan.zarr", home / "ids.parquet", "--labels", home / "ids.zarr", *rules)
    sharded = ("--zarr-format", "3", "--shard", "256", "--voxel-size", "8")
    run("ingest", home / "scan.tif", home / "shards.zarr", *sharded)
    return home


def chunks(volume, array):
    """Files of the array's chunks or shards, those that differ from the others first."""
    files = [path for path in (volume / array).rglob("*") if path.is_file()]
    return sorted(path for path in files if path.name.isdecimal())


def cut_empty_and_swap(files):
    files[0].write_bytes(files[0].read_bytes()[:40])
    files[1].write_bytes(b"")
    first, last = files[2].read_bytes(), files[-1].read_bytes()
    files[2].write_bytes(last)
    files[-1].write_bytes(first)


def flip_and_delete(files):
    body = bytearray(files[0].read_bytes())
    body[len(body) // 2] ^= 4
    files[0].write_bytes(bytes(body))
    files[-1].unlink()


VOLUMES = {
    "ingest": ("scan.zarr", "0"),
    "shards": ("shards.zarr", "0"),
    "pyramid": ("scan.zarr", "1"),
    "predict": ("ink.zarr", "0"),
    "labels": ("labels.zarr", "ink"),
    "votes": ("labels.zarr", "count"),
    "label pyramid": ("labels.zarr", "1/count"),
    "components": ("ids.zarr", "0"),
}


@pytest.mark.parametrize("damage", [cut_empty_and_swap, flip_and_delete])
@pytest.mark.parametrize("what", VOLUMES)
def test_a_damaged_volume_is_whole_again(made, tmp_path, monkeypatch, what, damage):
    name, array = VOLUMES[what]
    volume = tmp_path / name
    shutil.copytree(made / name, volume)
    whole = tree(volume)
    damage(chunks(volume, array))
    damaged = {path for path, body in whole.items() if tree(volume).get(path) != body}
    written = []
    honest = runner._Task._write

    def noted(self, box, array, *rest):
        written.append((array.path, box))
        return honest(self, box, array, *rest)

    monkeypatch.setattr(runner._Task, "_write", noted)
    with pytest.raises(DamageError, match="repair them with --repair"):
        run("verify", volume)
    assert written == []
    done = run("verify", volume, "--repair")
    assert tree(volume) == whole
    assert "none damaged" in done.output
    assert 1 <= len({box for _, box in written}) <= len(damaged), "no other block was computed"


def test_what_is_noted_has_no_secrets_and_nothing_that_changes_nothing(made):
    def noted(volume, array="0"):
        return json.loads((made / volume / ".inkzarr" / array / "manifest.json").read_text())["command"]

    settings = ["--window", "8,64,64", "--overlap", "0.0", "--block", "128,128,128"]
    assert noted("ink.zarr") == ["predict", f"{made}/scan.zarr", f"{made}/unet.pt", "OUT", *settings]
    assert noted("scan.zarr", "1") == ["pyramid", "OUT", "--levels", "2"]
    given = ("--like", made / "scan.zarr", "--storage-options", json.dumps({"token": SECRET}))
    source = "http://me:" + SECRET + "@127.0.0.1:1/labels?key=" + SECRET
    with pytest.raises(InkzarrError):
        run("labels", source, made / "inklabels", made / "more.zarr", *given)
    assert SECRET not in noted_words(source, given)


def noted_words(source, given):
    """What would be noted of that command."""
    from inkzarr.cli.options import _words

    context = cli.commands["labels"].make_context(
        "labels", [source, "inklabels", "more.zarr", *map(str, given)]
    )
    with context:
        words = _words(context)
    assert words[:4] == ("labels", "http://127.0.0.1:1/labels", "inklabels", "OUT")
    return " ".join(words)


@pytest.fixture
def by_python(tmp_path):
    out = tmp_path / "out.zarr"
    voxels = np.random.default_rng(0).integers(1, 9, (4, 260, 130), "uint8")
    job = Job("test", str(out), VolumeSpec(Zyx(*voxels.shape), voxels.dtype), Zyx.of(128), {})
    calls = []

    def compute(box):
        calls.append(box)
        return voxels[box.slices]

    write_blocks(job, compute, RunOptions())
    return job, compute, calls


def test_made_in_python_it_is_struck_and_the_same_call_mends_it(tmp_path, by_python):
    job, compute, calls = by_python
    out, whole = tmp_path / "out.zarr", tree(tmp_path / "out.zarr")
    (out / "0" / "0" / "1" / "0").unlink()
    calls.clear()
    with pytest.raises(DamageError, match=r"1 blocks of 0 of .* are struck.*run test again"):
        run("verify", out, "--repair")
    assert verify(out).unfinished == ["0"]
    with pytest.raises(InputError, match="is unfinished"):
        run("export", out, tmp_path / "out.nrrd")
    assert write_blocks(job, compute, RunOptions()).resumed == 5
    assert len(calls) == 1
    assert tree(out) == whole


def test_all_blocks_lost_and_the_group_keeps_its_levels(made, tmp_path):
    """Nothing is recorded then, but the group is not made anew: its other levels stay listed."""
    volume = tmp_path / "scan.zarr"
    shutil.copytree(made / "scan.zarr", volume)
    whole = tree(volume)
    for file in chunks(volume, "0"):
        file.write_bytes(b"broken")
    run("verify", volume, "--repair")
    assert tree(volume) == whole


def test_what_cannot_be_repaired_is_left_as_it_is(made, tmp_path, monkeypatch):
    volume = tmp_path / "scan.zarr"
    shutil.copytree(made / "scan.zarr", volume)
    (volume / "0" / "0" / "1" / "1").unlink()
    zarr.save_array(tmp_path / "bare.zarr", np.ones((4, 8, 8), "uint8"))
    (tmp_path / "bare.zarr" / "zarr.json").read_text()
    next(path for path in (tmp_path / "bare.zarr").rglob("0") if path.is_file()).write_bytes(b"no")
    before = tree(tmp_path)
    for url in (volume / "0", tmp_path / "bare.zarr"):
        with pytest.raises(InputError, match="has no ledger of its own"):
            run("verify", url, "--repair")
    monkeypatch.setattr(lock.Holder, "gone", lambda self: False)
    (volume / LOCK).write_text(lock.json.dumps(lock.asdict(lock.Holder.new())))
    with pytest.raises(InputError, match="is being written by another run"):
        strike(verify(volume))
    (volume / LOCK).unlink()
    assert tree(tmp_path) == before


def test_a_repair_that_was_interrupted_is_taken_up(made, tmp_path, monkeypatch):
    volume = tmp_path / "scan.zarr"
    shutil.copytree(made / "scan.zarr", volume)
    whole = tree(volume)
    flip_and_delete(chunks(volume, "0"))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner._Task, "_write", interrupted)
    words = ["verify", str(volume), "--repair"]
    with pytest.raises((KeyboardInterrupt, click.Abort)):
        cli.main(words, standalone_mode=False)
    assert to_go_on(words).endswith(f"To go on: inkzarr verify {volume} --repair")
    assert to_go_on(words[:2]) == ""
    monkeypatch.undo()
    assert tree(volume) != whole
    run("verify", volume, "--repair")
    assert tree(volume) == whole


def test_chunks_that_only_the_ledger_lost_stay(tmp_path):
    job = Job(
        "test", str(tmp_path / "scan.zarr"), VolumeSpec(Zyx(8, 128, 256), np.dtype("u1")), Zyx.of(128), {}
    )
    write_blocks(job, lambda box: np.ones(box.shape, "uint8"), RunOptions())
    kept = tree(tmp_path / "scan.zarr")
    (tmp_path / "scan.zarr" / ".inkzarr" / "0" / "blocks.jsonl").unlink()
    with pytest.raises(DamageError, match="not noted what made them"):
        run("verify", tmp_path / "scan.zarr", "--repair")
    found = tree(tmp_path / "scan.zarr")
    assert {name: found.get(name) for name in kept if "/c/" in name} == {
        name: body for name, body in kept.items() if "/c/" in name
    }


def test_the_volume_that_was_named_is_struck_and_no_other():
    """What a URL has behind a mark is not shown, and no part of the name is lost."""
    for name in ("repair/scan", "repair/scan#2"):
        job = Job("test", f"memory://{name}", VolumeSpec(Zyx(8, 128, 128), np.dtype("u1")), Zyx.of(128), {})
        write_blocks(job, lambda box: np.ones(box.shape, "uint8"), RunOptions())
    store = fsspec.filesystem("memory")
    (chunk,) = (key for key in store.find("/repair/scan#2") if "/c/" in key or key.endswith("0/0/0/0"))
    body = store.cat_file(chunk)
    store.pipe_file(chunk, body[: len(body) // 2])
    report = verify("memory://repair/scan#2")
    assert len(report.damaged) == 1
    strike(report)
    assert not verify("memory://repair/scan").damaged
    assert not verify("memory://repair/scan").unfinished
    assert verify("memory://repair/scan#2").unfinished
