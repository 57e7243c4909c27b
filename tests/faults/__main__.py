"""``python -m tests.faults [--kills N] [--rounds N] [--few N] [--only WORD]``: hurt every stage, print a table."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.bench import Bench, WrongError
from tests.faults.faults import FAULTS, disk_full, killed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="of all stages together")
    parser.add_argument("--rounds", type=int, default=1, help="of all other faults, over all stages")
    parser.add_argument("--few", type=int, help="stages a fault, in turn; default: all that it can strike")
    parser.add_argument("--only", default="", help="faults whose name holds this")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    import_all()
    rows, broken, turn = [], [], 0
    with tempfile.TemporaryDirectory() as home:
        bench = Bench(Path(home), given.seed)
        for fault, (hurt, stages) in FAULTS.items():
            if given.only not in fault:
                continue
            count = given.kills if hurt is killed else given.rounds * (given.few or len(stages))
            ended: Counter[str] = Counter()
            for number in range(count):
                name = stages[(turn + number) % len(stages)]
                try:
                    bench.undisturbed(name)
                    bench.clear(name)
                    how = hurt(bench, name)
                    if "not tried" not in how and hurt is not disk_full:  # that disk is gone
                        bench.compare(name)
                except WrongError as wrong:
                    how = "BROKEN"
                    broken.append(f"{fault}, {name}: {wrong}")
                ended[how] += 1
                print(f"{time.strftime('%X')} {fault}, {name}: {how}", file=sys.stderr, flush=True)
            turn += count
            tried = sum(n for how, n in ended.items() if "not tried" not in how)
            rows.append((fault, tried, tried - ended["BROKEN"], dict(ended)))
    print(json.dumps({"rows": rows, "broken": broken}) if given.json else table(rows))
    for line in [] if given.json else broken:
        print(f"\nBROKEN: {line}")
    return 1 if broken else 0


def import_all() -> None:
    """All that runs need, once; forks have it."""
    import inkzarr.cli
    from inkzarr import components, export, flatten, ingest, labels, predict, pyramid, train, verify  # noqa: F401

    assert inkzarr.cli
    signal.signal(signal.SIGINT, signal.default_int_handler)


def table(rows: list[tuple[str, int, int, dict[str, int]]]) -> str:
    """As Markdown."""
    lines = ["| fault | tried | survived | how it ended |", "|---|---|---|---|"]
    for fault, tried, survived, ended in rows:
        how = "; ".join(f"{n} {what}" for what, n in sorted(ended.items(), key=lambda item: -item[1]))
        lines.append(f"| {fault} | {tried} | {survived} | {how} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
