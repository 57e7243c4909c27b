"""What lies between windows, on as many threads as torch has: sums are added, set aside, taken up again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

SHARES = 2
"""For each thread: the first one that is through takes the next, as other work slows some."""


@lru_cache(maxsize=16)
def _threads(name: str, count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix=f"inkzarr-{name}")


def on_threads(name: str, kernel: Callable[..., T], jobs: list[tuple[Any, ...]]) -> list[list[T]]:
    """Do jobs on this thread and others: ``kernel(n, count, *job)`` does the n-th of `count` shares of each.

    Parameters
    ----------
    name : str
        Of the other threads: what waits for a disk shares none with what computes.
    kernel : callable
        Does a share of a job.
    jobs : list of tuple
        Its other arguments.

    Returns
    -------
    list of list
        What each share's calls gave, in the order of the jobs. An error is raised once all threads are
        through.

    Examples
    --------
    >>> def add(n, count, numbers):
    ...     return sum(numbers[n::count])
    >>> sum(share for (share,) in on_threads("sums", add, [(range(5),)]))
    10
    """
    threads = torch.get_num_threads()
    count = threads if threads == 1 else SHARES * threads
    left = iter(range(count))
    found: list[list[T]] = [[] for _ in range(count)]

    def work() -> None:
        for n in left:
            found[n] = [kernel(n, count, *job) for job in jobs]

    others = [_threads(name, threads).submit(work) for _ in range(1, threads)]
    try:
        work()
    finally:
        begun = [other for other in others if not other.cancel()]
        wait(begun)
    for other in begun:
        other.result()
    return found


def share(n: int, count: int, size: int) -> range:
    """The n-th of `count` shares of so many planes, side by side."""
    return range(size * n // count, size * (n + 1) // count)
