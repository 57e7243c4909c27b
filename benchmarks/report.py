"""All benchmarks in one run, written to ``benchmarks/RESULTS.md``.

    python -m benchmarks.report               # hours
    python -m benchmarks.report --quick       # minutes, sizes that prove nothing
    python -m benchmarks.report --only network --only predict

Each module runs in a process of its own and prints its tables; here they get a date, the machine, the
command, the versions and the time that each took. A module that fails says so, and the others go on. With
--only, the other modules' sections of an earlier run stay as they are.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
SCROLL_1 = (14376, 7888, 8096)
"""Voxels along z, y, x."""
MODULES = {
    "network": "the forward pass of a window, beside pytorch-3dunet",
    "predict": "whole predict, beside MONAI, nnU-Net and vesuvius",
    "scaling": "the runner on a scroll's shape; workers; memory",
    "memory": "peak memory of ingest and predict, and of a volume eight times larger",
    "labels": "label projection, patches and split, beside what they replace",
    "real_labels": "labels of real segments",
    "pyramid": "coarser levels, beside Dask",
    "storage": "chunks on a local disk, beside zarr-python, zarrs and tensorstore",
    "remote": "reading over a slow line, beside zarr on fsspec, obstore and tensorstore",
    "flatten": "sheets along surfaces, beside loops and scipy",
    "real_flatten": "a real surface through a volume of Scroll 1's shape",
    "components": "connected components, beside cc3d and dask-image",
    "train": "reading and augmenting, beside the network",
    "learning": "what pretraining brings",
}
PACKAGES = [
    "torch",
    "numpy",
    "numba",
    "zarr",
    "dask",
    "scipy",
    "monai",
    "pytorch3dunet",
    "dask-image",
    "tensorstore",
    "zarrs",
    "obstore",
]
HEAD = """# Results

Written by `make bench` (`python -m benchmarks.report`). Only ratios within one table compare: a machine that
does other work shows in all of its lines. What each line means stands at the top of the module. A command
with `--only`, `--case` or `--rounds` is a part of its module; modules without a section were not run since.
"""


def interpreter() -> str:
    """Python of the peers' environment, which `make bench` sets up; else this one's."""
    theirs = ROOT / os.environ.get("INKZARR_PEERS", ".venv-peers") / "bin" / "python"
    return str(theirs) if theirs.exists() else sys.executable


def machine() -> str:
    """One line: what runs, and how busy it is."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    name = model[1] if model else platform.processor() or platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB, load {os.getloadavg()[0]:.1f}"


def versions() -> str:
    """Of Python and what the figures depend on."""
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def section(name: str, options: list[str]) -> str:
    """Run one module; its part of the page."""
    began, busy = time.perf_counter(), machine()
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    text = done.stdout.strip()
    if done.returncode:
        text += "\n\nFAILED: " + (done.stderr.strip().splitlines() or ["?"])[-1]
    today = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
    lines = [
        f"## {name}: {MODULES[name]}",
        f"`python -m benchmarks.{' '.join([name, *options])}`, {today}, {time.perf_counter() - began:.0f} s.",
        f"{busy}; {versions()}.",
        f"```text\n{text}\n```",
    ]
    return "\n\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Run, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--only", action="append", choices=MODULES, help="these modules alone")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the page")
    given = parser.parse_args(arguments)
    before = given.out.read_text() if given.out.exists() else ""
    parts = {part.split(":")[0]: f"## {part}" for part in re.split(r"^## ", before, flags=re.MULTILINE)[1:]}
    for name in given.only or MODULES:
        parts[name] = section(name, ["--quick"] if given.quick else [])
        page = [HEAD, *(parts[known].strip() + "\n" for known in MODULES if known in parts)]
        given.out.write_text("\n".join(page))
        print(f"{name} done", flush=True)


if __name__ == "__main__":
    main()
