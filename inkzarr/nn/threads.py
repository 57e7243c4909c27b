"""What lies between windows, on as many threads as torch has: sums are added, set aside, taken up again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


@lru_cache(maxsize=1)
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="inkzarr-sums")


def on_threads(kernel: Callable[..., T], jobs: list[tuple[Any, ...]]) -> list[list[T]]:
    """Do jobs on every thread, each its share of each: ``kernel(n, count, *job)``, the n-th of `count`.

    Returns
    -------
    list of list
        What each thread's calls gave, in the order of the jobs.

    Examples
    --------
    >>> def add(n, count, numbers):
    ...     return sum(numbers[n::count])
    >>> sum(share for (share,) in on_threads(add, [(range(5),)]))
    10
    """
    count = torch.get_num_threads()
    return list(_threads(count).map(lambda n: [kernel(n, count, *job) for job in jobs], range(count)))


def share(n: int, count: int, size: int) -> range:
    """The n-th of `count` shares of so many planes, side by side."""
    return range(size * n // count, size * (n + 1) // count)
