"""The small form of `make faults`: every fault, on a few stages in turn; no byte is wrong, and nothing is lost in silence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("moto")


@pytest.mark.slow
def test_every_fault_is_survived():
    command = [sys.executable, "-m", "tests.faults", "--kills", "15", "--few", "1", "--json"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=540, check=False)
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    assert told["broken"] == []
    assert len(told["rows"]) == 13
    for fault, tried, _stages, survived, ended in told["rows"]:
        skipped = any("not tried" in how for how in ended)
        assert tried or skipped, fault
        assert tried == survived
    (killed,) = [ended for fault, *_, ended in told["rows"] if fault.startswith("SIGKILL")]
    assert killed.get("taken up, same bytes", 0) > 2, "the kills came too late to tell anything"
