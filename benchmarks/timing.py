"""Ways to do the same thing, timed in turn.

Peaks come from a round of their own, in which glibc takes every large array from the kernel and gives it
back: else a way would be seen to need nothing where it finds what threads freed before it.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.sliding_peers import held

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Of mallopt(3)."""
LIBC = ctypes.CDLL(None)


class Took(NamedTuple):
    """Seconds by the clock and of the processors; peak of memory beyond what was held before, in GB."""

    clock: float
    cpu: float
    peak: float


def once(way: Callable[[], object]) -> Took:
    """Time one call."""
    LIBC.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, began = held("VmRSS"), (time.perf_counter(), time.process_time())
    way()
    took = time.perf_counter() - began[0], time.process_time() - began[1]
    return Took(*took, held("VmHWM") - before)


def in_turn(ways: dict[str, Callable[[], object]], rounds: int, *, warm: bool = True) -> dict[str, Took]:
    """Medians of rounds, each of which calls all ways; one that warms up comes before and does not count.

    Another one follows for the peaks.
    """
    took: dict[str, list[Took]] = {name: [] for name in ways}
    for number in range(-warm, rounds):
        for name, way in ways.items():
            one = once(way)
            if number >= 0:
                took[name].append(one)
    LIBC.mallopt(MMAP_THRESHOLD, 2**18)
    peaks = {name: once(way).peak for name, way in ways.items()}
    LIBC.mallopt(MMAP_THRESHOLD, 2**25)  # where it ends by itself once a large array was freed
    LIBC.mallopt(TRIM_THRESHOLD, 2**26)
    return {
        name: Took(
            *(statistics.median(getattr(one, kind) for one in all_of) for kind in ("clock", "cpu")),
            peaks[name],
        )
        for name, all_of in took.items()
    }


def show(table: dict[str, Took], *against: tuple[str, str]) -> None:
    """A line a way, beside some of them as (name, what to call it); above 1 is faster than that."""
    for name, took in table.items():
        line = f"  {name:<34}"
        for kind in ("clock", "cpu"):
            mine = getattr(took, kind)
            beside = "".join(
                f" {getattr(table[other], kind) / mine:>6.2f} x {told}" for other, told in against
            )
            line += f"  {kind} {mine:>7.3f} s{beside}"
        print(f"{line}  peak {took.peak:>6.2f} GB", flush=True)
