"""Ways to do the same thing, timed in turn."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.sliding_peers import held


class Took(NamedTuple):
    """Seconds by the clock and of the processors; peak of memory beyond what was held before, in GB."""

    clock: float
    cpu: float
    peak: float


def once(way: Callable[[], object]) -> Took:
    """Time one call; what others freed is given back before, so that it does not make this one look free."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, began = held("VmRSS"), (time.perf_counter(), time.process_time())
    way()
    took = time.perf_counter() - began[0], time.process_time() - began[1]
    return Took(*took, held("VmHWM") - before)


def in_turn(ways: dict[str, Callable[[], object]], rounds: int, *, warm: bool = True) -> dict[str, Took]:
    """Medians of rounds, each of which calls all ways; one that warms up comes before and does not count."""
    took: dict[str, list[Took]] = {name: [] for name in ways}
    for number in range(-warm, rounds):
        for name, way in ways.items():
            one = once(way)
            if number >= 0:
                took[name].append(one)
    return {name: Took(*map(statistics.median, zip(*all_of, strict=True))) for name, all_of in took.items()}


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
