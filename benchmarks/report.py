"""All benchmarks in one run, written to ``benchmarks/RESULTS.md``.

    python -m benchmarks.report               # hours
    python -m benchmarks.report --quick       # minutes, sizes that prove nothing
    python -m benchmarks.report --only network --only predict
    python -m benchmarks.report --only predict -- --case 256 8

Each module runs in a process of its own and prints its tables; here they get a date, the machine, the
command, the versions and the time that each took. A module that fails says so, and the others go on; the exit
code tells. With --only, the other modules' sections of an earlier run stay as they are; what follows -- is
given to the modules.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
REAL_DATA = ROOT.parent / "shared" / "data"
SCROLL_1 = (14376, 7888, 8096)
"""Voxels along z, y, x."""
MODULES = {
    "network": "the forward pass of a window, beside pytorch-3dunet",
    "predict": "whole predict, beside MONAI, nnU-Net and vesuvius",
    "scaling": "the runner on a scroll's shape; workers; memory",
    "memory": "peak memory of ingest and predict, and of a volume eight times larger",
    "labels": "label projection, patches and split, beside what they replace",
    "real_labels": "labels of real segments",
    "ingest": "TIFF slices into chunks, beside a loop and Dask",
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
    "connected-components-3d",
    "numcodecs",
    "tensorstore",
    "zarrs",
    "obstore",
    "nnunetv2",
    "vesuvius",
]
FAILED = "FAILED:"
HEAD = """# Results

Written by `python -m benchmarks.report`, which is what `make bench` runs. Every section is a run of its own,
at the time that it tells. Only ratios within one table compare: a machine that does other work shows in all
of its lines. What each line means stands at the top of the module. A command with `--only`, `--case` or
`--rounds` is a part of its module.
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


def is_quick(told: str | None, arguments: list[str] | None) -> bool:
    """Whether a module that knows no other option is to run tiny; `told` is what --help prints."""
    parser = argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    quick: bool = parser.parse_args(arguments).quick
    return quick


def versions() -> str:
    """Of Python and what the figures depend on; of the peers' environment where it has others."""
    code = (
        "import importlib.metadata, json\n"
        "print(json.dumps({one.name: one.version for one in importlib.metadata.distributions()}))"
    )
    found = []
    for python in dict.fromkeys((sys.executable, interpreter())):
        told = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
        here = {name.lower(): version for name, version in json.loads(told).items()}
        found.append({name: here[name] for name in PACKAGES if name in here})
    more = {name: version for name, version in found[-1].items() if found[0].get(name) != version}
    lines = [
        f"Python {platform.python_version()}",
        *(f"{name} {version}" for name, version in found[0].items()),
    ]
    beside = "; beside it " + ", ".join(f"{name} {version}" for name, version in more.items()) if more else ""
    return ", ".join(lines) + beside


def section(name: str, options: list[str]) -> str:
    """Run one module; its part of the page."""
    began, busy = time.perf_counter(), machine()
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    text = done.stdout.strip("\n")
    if done.returncode:
        text += f"\n\n{FAILED} " + (done.stderr.strip().splitlines() or ["?"])[-1]
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
    parser.add_argument("options", nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    options = [*(["--quick"] if given.quick else []), *given.options]
    before = given.out.read_text() if given.out.exists() else ""
    parts = {part.split(":")[0]: f"## {part}" for part in re.split(r"^## ", before, flags=re.MULTILINE)[1:]}
    chosen = list(given.only or MODULES)
    if not REAL_DATA.is_dir():
        left_out = [name for name in chosen if name.startswith("real_")]
        chosen = [name for name in chosen if name not in left_out]
        print("".join(f"{name} left out: no real data at {REAL_DATA}\n" for name in left_out), end="")
    for name in chosen:
        parts[name] = section(name, options)
        page = [HEAD, *(parts[known].strip() + "\n" for known in MODULES if known in parts)]
        given.out.write_text("\n".join(page))
        print(f"{name} {'failed' if FAILED in parts[name] else 'done'}", flush=True)
    if any(FAILED in parts[name] for name in chosen):
        sys.exit(1)


if __name__ == "__main__":
    main()
