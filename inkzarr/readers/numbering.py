"""The order of slices by the number in their names, and what may be wrong with it."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import PurePath
from typing import TYPE_CHECKING

from inkzarr.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

DIGITS = re.compile(r"(\d+)")


def in_order(names: Sequence[str]) -> list[str]:
    """The names by their slice number, which is the one number in which they differ.

    Parameters
    ----------
    names : sequence of str
        File names, at least one.

    Returns
    -------
    list of str
        Numbers rise by exactly one.

    Raises
    ------
    InputError
        The names follow no common pattern, a number is there twice, or one is missing.

    Examples
    --------
    >>> in_order(["s10.tif", "s9.tif", "s011.TIF"])
    ['s9.tif', 's10.tif', 's011.TIF']
    """
    if len(names) == 1:
        return list(names)
    parts = {name: DIGITS.split(PurePath(name).stem) for name in names}
    group = _number_group(parts)
    numbers = {name: int(split[group]) for name, split in parts.items()}
    ordered = sorted(names, key=lambda name: (numbers[name], name))
    _refuse_twice(ordered, numbers)
    _refuse_gaps(ordered, numbers)
    return ordered


def _number_group(parts: dict[str, list[str]]) -> int:
    """Which part of the split names is the slice number."""
    names = sorted(parts)
    first = parts[names[0]]
    for name in names:
        if parts[name][::2] != first[::2]:
            msg = (
                f"slices {names[0]!r} and {name!r} are named differently: names of one stack differ in "
                "their number alone; move other files elsewhere"
            )
            raise InputError(msg)
    groups = range(1, len(first), 2)
    varying = [g for g in groups if len({int(split[g]) for split in parts.values()}) > 1]
    if len(varying) > 1:
        msg = (
            f"slices such as {names[0]!r} and {names[-1]!r} differ in {len(varying)} numbers: "
            "names of one stack differ in one number alone; rename them"
        )
        raise InputError(msg)
    if not groups:
        msg = f"slices {names[0]!r} and {names[1]!r} have no number in their names: number them from 0"
        raise InputError(msg)
    return varying[0] if varying else groups[-1]


def _refuse_twice(ordered: list[str], numbers: dict[str, int]) -> None:
    number, times = Counter(numbers.values()).most_common(1)[0]
    if times > 1:
        twice = " and ".join(repr(name) for name in ordered if numbers[name] == number)
        msg = f"slice {number} is there {times} times: {twice}; keep one of them"
        raise InputError(msg)


def _refuse_gaps(ordered: list[str], numbers: dict[str, int]) -> None:
    first, last = numbers[ordered[0]], numbers[ordered[-1]]
    absent = last - first + 1 - len(ordered)
    if not absent:
        return
    before, after = next((a, b) for a, b in itertools.pairwise(ordered) if numbers[b] != numbers[a] + 1)
    low, high = numbers[before] + 1, numbers[after] - 1
    span = f"slice {low} is" if low == high else f"slices {low} to {high} are"
    more = f", {absent} in all" if absent > high - low + 1 else ""
    msg = f"{span} missing between {before!r} and {after!r}{more}: fetch them, or renumber without gaps"
    raise InputError(msg)
