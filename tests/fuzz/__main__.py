"""The long form: ``python -m tests.fuzz --minutes 10`` fuzzes each parser so long, and prints a table."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
import traceback
from collections import Counter

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.parsers import PARSERS

AT_ONCE = 500


def fuzz(name: str, minutes: float) -> tuple[Counter[str], str]:
    """Until the time is over, or something is found: what was counted, and the finding."""
    parser, counts = PARSERS[name], Counter()
    end = time.monotonic() + 60 * minutes

    def once(given_input: object) -> None:
        counts["taken" if parser.check(given_input) else "refused"] += 1

    quiet = settings(
        max_examples=AT_ONCE,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    first = time.time_ns()
    while time.monotonic() < end:
        first += 1
        try:
            seed(first)(quiet(given(parser.inputs)(once)))()
        except Exception:  # noqa: BLE001 - whatever it is, it is the finding
            return counts, traceback.format_exc()
    return counts, ""


def main() -> None:
    """Read the command line, fuzz, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("names", nargs="*", default=list(PARSERS))
    told = parser.parse_args()
    found = []
    print("| parser | minutes | inputs | of them taken | found |\n|---|---|---|---|---|")
    for name in told.names:
        began = time.monotonic()
        counts, finding = fuzz(name, told.minutes)
        minutes = (time.monotonic() - began) / 60
        verdict = "a crash" if finding else "nothing"
        print(f"| {name} | {minutes:.1f} | {counts.total()} | {counts['taken']} | {verdict} |", flush=True)
        found += [f"{name}:\n{finding}"] if finding else []
    with contextlib.suppress(BrokenPipeError):
        print("\n".join(found), file=sys.stderr)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
