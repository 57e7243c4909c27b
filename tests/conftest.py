"""Hypothesis profiles, and where the real data lies."""

import os
import shutil
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

CHECKS = list(HealthCheck)
settings.register_profile(
    "ci", max_examples=25, deadline=None, derandomize=True, suppress_health_check=CHECKS
)
settings.register_profile("long", max_examples=400, deadline=None, suppress_health_check=CHECKS)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scroll data; tests that need it say so where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data at {REAL_DATA}: this test needs it, others use the synthetic scroll")
    return REAL_DATA


@pytest.fixture(scope="session")
def chromium() -> str:
    """A browser of this machine; without one the tests fail, saying how to get it."""
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    path = next(filter(None, found), None)
    if path is None:
        pytest.fail("no Chromium: run `make browser` (Debian: apt-get install chromium), or -m 'not browser'")
    return path


@pytest.fixture(scope="session")
def two(tmp_path_factory):
    """Two bent segments that overlap, one of which leaves the volume."""
    from tests.labelling import curved, segment

    folder, rng = tmp_path_factory.mktemp("two"), np.random.default_rng(5)
    parts = []
    for name, middle in (("10", (70, 75, 68)), ("20", (100, 80, 120))):
        points, normals, valid = curved(rng, 75, 140, middle=middle)
        values = rng.integers(0, 256, valid.shape, "uint8") * (rng.random(valid.shape) < 0.7).astype("uint8")
        parts.append(segment(folder, name, points, normals, valid, values))
    return folder, parts


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    """A network small enough to be run many times."""
    import torch

    from inkzarr.nn.checkpoint import save_checkpoint
    from inkzarr.nn.unet import UNet3D

    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    save_checkpoint(path, UNet3D(f_maps=4, levels=2))
    return str(path)


@pytest.fixture(scope="session")
def moto():
    """URL of an S3 server in a process of its own."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    from tests.core.line import start_moto

    server, url = start_moto()
    yield url
    server.terminate()
    server.wait(10)


@pytest.fixture(scope="module")
def s3(moto):
    """Options for the server, that holds one bucket, ``scrolls``, and nothing else."""
    import s3fs

    urllib.request.urlopen(
        urllib.request.Request(f"{moto}/moto-api/reset", method="POST"), timeout=20
    ).close()
    secret = "wJalrXUtnFEMI-not-a-real-one"
    options = {"key": "AKIAIOSFODNN7", "secret": secret, "client_kwargs": {"endpoint_url": moto}}
    s3fs.S3FileSystem(**options).mkdir("scrolls")
    return options
