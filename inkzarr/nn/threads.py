"""What lies between windows, on as many threads as torch has: sums are added, set aside, taken up again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


@lru_cache(maxsize=4)
def _threads(name: str, count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix=f"inkzarr-{name}")


def on_threads(name: str, kernel: Callable[..., T], jobs: list[tuple[Any, ...]]) -> list[list[T]]:
    """Do jobs on every thread, each its share of each: ``kernel(n, count, *job)``, the n-th of `count`.

    Parameters
    ----------
    name : str
        Of the threads: what waits for a disk shares none with what computes.
    kernel : callable
        Does a share of a job.
    jobs : list of tuple
        Its other arguments.

    Returns
    -------
    list of list
        What each thread's calls gave, in the order of the jobs. An error is raised once all threads are
        through.

    Examples
    --------
    >>> def add(n, count, numbers):
    ...     return sum(numbers[n::count])
    >>> sum(share for (share,) in on_threads("sums", add, [(range(5),)]))
    10
    """

    def work(n: int) -> list[T]:
        return [kernel(n, count, *job) for job in jobs]

    count = torch.get_num_threads()
    shares = [_threads(name, count).submit(work, n) for n in range(count)]
    wait(shares)
    return [share.result() for share in shares]


def share(n: int, count: int, size: int) -> range:
    """The n-th of `count` shares of so many planes, side by side."""
    return range(size * n // count, size * (n + 1) // count)
