"""The command line as a user runs it: real processes, exit codes, stdout and stderr."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

from inkzarr.cli import cli, options, to_go_on
from inkzarr.cli.options import Bytes, OneOrThree
from inkzarr.core.store import open_volume
from inkzarr.demo import CONFIG, demo
from inkzarr.testing import SyntheticScroll


def run(*arguments, environment=None):
    command = [sys.executable, "-c", "from inkzarr.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def slices(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("slices")
    for z in range(20):
        tifffile.imwrite(folder / f"s{z}.tif", np.full((40, 50), z, np.uint8))
    return folder


def test_ingest_plans_runs_and_refuses(slices, tmp_path):
    out = tmp_path / "scan.zarr"
    plan = run("ingest", slices, out, "--plan")
    assert (plan.returncode, out.exists()) == (0, False)
    assert "blocks" in plan.stdout
    done = run("ingest", slices, out, "--json-logs")
    assert done.returncode == 0
    assert str(out) in done.stdout
    assert json.loads(done.stderr.splitlines()[-1])["done"] == 20 * 40 * 50
    assert open_volume(out)[7].values.max() == 7
    refused = run("ingest", slices, out, "--dtype", "uint8", "--voxel-size", "3")
    assert refused.returncode in (0, 3)
    info = run("info", out)
    assert "20,40,50" in info.stdout.replace(" ", "")
    assert run("verify", out).returncode == 0
    chunk = out / "0" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-5])
    damaged = run("verify", out)
    assert damaged.returncode == 6
    assert "0/0/0/0" in damaged.stdout + damaged.stderr


def test_only_what_was_kept_is_gone_on_with():
    assert (
        to_go_on([]) == to_go_on(["info", "a.zarr"]) == to_go_on(["components", "a.zarr", "b.parquet"]) == ""
    )
    kept = "; what is written stays. To go on: inkzarr "
    for labels in ("--labels=ids.zarr", "--labels ids.zarr"):
        words = f"components a.zarr b.parquet {labels}"
        assert to_go_on(words.split()) == kept + words
    assert to_go_on(["train", "a b", "out"]) == f"{kept}train 'a b' out --resume"
    secret = ["ingest", "s3://me:word@host/a", "out", "--storage-options", "{}", "--overwrite"]
    assert to_go_on(secret) == f"{kept}ingest s3://host/a out --storage-options ..."


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["ingest", "nowhere", "out.zarr"], 3, "nowhere"),
        (["info", "nowhere.zarr"], 3, "no Zarr volume at nowhere.zarr"),
        (["predict", "nowhere.zarr", "c.pt", "o.zarr"], 3, "no Zarr volume at nowhere.zarr"),
        (["predict", "a"], 2, "Missing argument"),
        (["predict", "a", "b", "c", "--window", "x"], 2, "not one whole number above 0"),
        (["predict", "a", "b", "c", "--memory", "much"], 2, "write 8GB or 500MB"),
        (["info", "a", "--storage-options", "[1]"], 2, "JSON object"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_bad_usage_and_bad_input_say_so_in_one_line(arguments, code, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.returncode == code
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_defaults_come_from_the_environment(slices, tmp_path):
    runner = CliRunner(env={"INKZARR_INGEST_ZARR_FORMAT": "3"})
    out = tmp_path / "scan.zarr"
    assert runner.invoke(cli, ["ingest", str(slices), str(out)], catch_exceptions=False).exit_code == 0
    assert (out / "zarr.json").exists()


def test_of_the_processes_of_a_run_the_first_alone_prints(monkeypatch, capsys):
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        options.run(lambda: "done")
    assert capsys.readouterr().out == "done\n"


def test_shell_completion_lists_the_stages():
    completion = CliRunner().invoke(
        cli,
        [],
        prog_name="inkzarr",
        env={"_INKZARR_COMPLETE": "bash_complete", "COMP_WORDS": "inkzarr p", "COMP_CWORD": "1"},
    )
    assert "predict" in completion.output
    assert "pyramid" in completion.output


def test_amounts_of_memory_and_sizes():
    assert [Bytes().convert(text, None, None) for text in ("8GB", "1.5 G", "500MB", "12")] == [
        8_000_000_000,
        1_500_000_000,
        500_000_000,
        12,
    ]
    assert OneOrThree().convert("1,2,3", None, None) == (1, 2, 3)


def test_the_demo_reads_letters_of_which_it_saw_no_label(tmp_path):
    scroll = SyntheticScroll(shape=(144, 160, 160), seed=0, letter=30)
    told = demo(tmp_path, scroll, config=CONFIG.with_(epochs=2, valid_windows=8))
    assert (tmp_path / "letters.png").stat().st_size > 10_000
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert float(re.search(r"AUC ([0-9.]+)", told)[1]) > 0.85


def test_labels_patches_and_split(tmp_path):
    scroll = SyntheticScroll(shape=(64, 160, 160))
    scroll.write_segments(tmp_path)
    out = tmp_path / "labels.zarr"
    command = "labels", tmp_path / "paths", tmp_path / "inklabels", out, "--shape", "64,160,160"
    plan = run(*command, "--plan")
    assert (plan.returncode, out.exists()) == (0, False), plan.stderr
    assert "estimated time" in plan.stdout
    done = run(*command, "--skip-blank", "0")
    assert done.returncode == 0, done.stderr
    assert "conflicts" in done.stdout
    assert (tmp_path / "labels.zarr.png").exists()
    assert run("verify", out).returncode == 0
    table = tmp_path / "all.parquet"
    assert run("patches", out, table, "--window", "32").returncode == 0
    names = table, tmp_path / "valid.parquet", tmp_path / "train.parquet"
    found = run("split", *names, "--region", "0:32,0:64,:", "--margin", "16", "--jitter", "4")
    assert found.returncode == 0, found.stderr
    assert "smallest gap left" in found.stdout
    again = run("split", names[2], names[1], tmp_path / "kept.npy", "--margin", "40")
    assert again.returncode == 0, again.stderr
    ppm = next((tmp_path / "paths").rglob("*.ppm"))
    ppm.write_bytes(ppm.read_bytes()[:-8])
    bad = run(
        "labels", tmp_path / "paths", tmp_path / "inklabels", tmp_path / "no.zarr", "--shape", "64,160,160"
    )
    assert (bad.returncode, bad.stderr.count("\n"), (tmp_path / "no.zarr").exists()) == (3, 1, False)
    assert "cut short" in bad.stderr


def test_pyramids_overwrite_says_what_it_deletes():
    told = " ".join(CliRunner().invoke(cli, ["pyramid", "--help"]).output.split())
    assert "Make all coarser levels anew" in told
    assert "OUT" not in told
