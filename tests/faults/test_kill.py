"""Runs killed at random moments end, once they are let, with the bytes of an undisturbed run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DEATHS = Path(__file__).with_name("deaths.py")


def run(*arguments):
    done = subprocess.run(
        [sys.executable, DEATHS, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("what", ["predict", "copy"])
def test_killed_twenty_times(tmp_path, what):
    told = run("kill", what, 2026, 20, tmp_path)
    assert told["kills"] == 20
    assert told["finished"] >= 1
    assert told["differing"] == []
    assert max(told["recorded"]) > 1, "the kills came too early to tell anything"


def test_interrupted(tmp_path):
    for name, told in run("signal", tmp_path).items():
        assert told["code"] == 130, name
        assert told["recorded_before"] == 0
        assert told["recorded"] > 0, "the ledger was not flushed"
        again = f"To go on: inkzarr predict {tmp_path}/scan.zarr {tmp_path}/unet.pt {told['out']} --window 16"
        assert again in told["log"]
        assert "Traceback" not in told["log"]
        assert told["resumed_code"] == 0
        assert told["same"]
