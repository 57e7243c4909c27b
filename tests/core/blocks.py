"""A job of 27 small blocks, its voxels, and a block function that fails when told to."""

import threading
from collections import Counter

import numpy as np

from inkzarr.core.geometry import Zyx
from inkzarr.core.job import Job
from inkzarr.core.schema import VolumeSpec

SHAPE = Zyx(20, 17, 24)


def voxels(box, dtype="uint8"):
    """Of any box: a number that tells every place, with air among it."""
    z, y, x = np.meshgrid(*map(np.arange, box.start, box.stop), indexing="ij")
    values = (z * 7 + y * 31 + x * 3) % 251 * ((z // 8 + y // 8 + x // 8) % 3 > 0)
    return values.astype(dtype)


def job(out, shape=SHAPE, block=8, dtype="uint8", region=None, fingerprint=None, **layout):
    spec = VolumeSpec(shape, np.dtype(dtype), lineage={"stage": "test"}, **layout)
    fingerprint = {"made_of": "numbers"} if fingerprint is None else fingerprint
    return Job("test", str(out), spec, Zyx.of(block), fingerprint, workers=2, region=region)


class Fails:
    """A block function that fails for some blocks, at first or always."""

    def __init__(self, starts, times=10**9, error=OSError):
        self.starts, self.times, self.error = set(starts), times, error
        self.calls = Counter()
        self.lock = threading.Lock()

    def __call__(self, box):
        with self.lock:
            self.calls[box.start] += 1
            calls = self.calls[box.start]
        if box.start in self.starts and calls <= self.times:
            msg = f"told to fail at {box.start}"
            raise self.error(msg)
        return voxels(box)
