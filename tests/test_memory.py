"""Memory is that of the blocks in flight: a volume eight times larger takes no more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peak import ALLOCATOR, BLOCK

PEAK = Path(__file__).with_name("peak.py")


@pytest.mark.parametrize("what", ["copy", "export", "predict", "flatten", "components", "percolating"])
def test_eight_times_the_volume_in_the_same_memory(tmp_path, what):
    command = [sys.executable, PEAK, what, tmp_path]
    environment = os.environ | ALLOCATOR
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    added = json.loads(done.stdout)
    print(what, added)
    one_more = BLOCK**3  # whether two threads hold a block at the same moment is chance
    assert added["large"] < 1.1 * added["small"] + one_more
