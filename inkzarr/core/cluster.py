"""A Dask cluster for notebooks and scripts: started on this machine, or joined where one runs."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from inkzarr.core.card import card
from inkzarr.core.errors import InputError
from inkzarr.core.extras import require

if TYPE_CHECKING:
    from types import TracebackType

HOST = "127.0.0.1"
ADDRESS = "DASK_SCHEDULER_ADDRESS"
"""The environment variable that names a scheduler to join."""
CONNECT_S = 20.0


@dataclass(frozen=True)
class DaskCluster:
    """A cluster that runs; in Jupyter it shows the link to its dashboard.

    Parameters
    ----------
    address : str
        Of the scheduler: ``RunOptions(scheduler=cluster.address)``.
    dashboard : str
        URL of the page that shows what the cluster does.
    workers : int
        Processes, when it was started or joined.
    """

    address: str
    dashboard: str
    workers: int
    _owned: Any = field(default=None, repr=False, compare=False)

    def close(self) -> None:
        """Stop the cluster where it was started here; one that was joined runs on."""
        if self._owned is not None:
            self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _repr_html_(self) -> str:
        """For Jupyter, where a URL becomes a link."""
        facts = {"dashboard": self.dashboard, "scheduler": self.address, "workers": self.workers}
        return card("Dask cluster", facts, links=("dashboard",))


def cluster(
    address: str | None = None, *, workers: int | None = None, threads: int = 1, memory: str | None = None
) -> DaskCluster:
    """Start a Dask cluster on this machine, or join one that runs.

    Parameters
    ----------
    address : str, optional
        Of a scheduler to join, ``tcp://...``; by default the one that the environment variable
        ``DASK_SCHEDULER_ADDRESS`` names, and without it a cluster is started.
    workers : int, optional
        Processes to start; by default one a core.
    threads : int
        Of each process.
    memory : str, optional
        Of each process, such as ``4GB``; by default its share of the machine's.

    Returns
    -------
    DaskCluster
        Close it, or use it in a ``with`` statement.

    Raises
    ------
    InputError
        `distributed` is not installed, or no scheduler answers.

    Examples
    --------
    >>> with cluster(workers=1) as running:  # doctest: +SKIP
    ...     options = RunOptions(scheduler=running.address)
    """
    distributed = require("distributed", "a cluster", "cluster")
    address = address or os.environ.get(ADDRESS)
    if address is None:
        limit = "auto" if memory is None else memory
        started = distributed.LocalCluster(
            n_workers=workers or os.cpu_count(),
            threads_per_worker=threads,
            memory_limit=limit,
            host=HOST,
            dashboard_address=f"{HOST}:0",
        )
        return DaskCluster(started.scheduler_address, started.dashboard_link, len(started.workers), started)
    try:
        with distributed.Client(address, timeout=CONNECT_S, set_as_default=False) as client:
            return DaskCluster(address, client.dashboard_link, len(client.nthreads()))
    except (OSError, ValueError) as error:
        msg = f"no scheduler answers at {address} ({error}): start one, or leave the address out"
        raise InputError(msg) from error
