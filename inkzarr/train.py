"""Train: a 3D UNet learns ink from sparse ribbons of labels; what nobody labelled takes no part.

The loop itself is `inkzarr.nn.loop.fit`; what a run writes is told in `inkzarr.nn.folder`, what it can be
told in `inkzarr.nn.config`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inkzarr.core.errors import InputError
from inkzarr.core.progress import duration
from inkzarr.core.schema import VERSION
from inkzarr.nn.config import Config, default_window
from inkzarr.nn.folder import RunFolder
from inkzarr.nn.loop import fit, reading
from inkzarr.nn.processes import processes
from inkzarr.nn.sources import gap, identity, may_be_labelled, open_labelled, scoring, training
from inkzarr.nn.start import starting_network
from inkzarr.nn.tasks import Held, InkTask
from inkzarr.nn.unet import check_window

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from inkzarr.core.patches import Patches
    from inkzarr.nn.config import Numbers, Scan
    from inkzarr.nn.dataset import Source

STAGE = "train"


@dataclass(frozen=True)
class TrainReport:
    """How a run ended.

    Parameters
    ----------
    out : str
        Its folder.
    epoch, step : int
        The last ones.
    loss : float
        Mean of the last epoch.
    f05, auc : float or None
        On validation after the last epoch, where there is any.
    skipped : int
        Steps of the last epoch without labels.
    seconds : float
        In all, runs that it resumed included.
    """

    out: str
    epoch: int
    step: int
    loss: float
    f05: float | None
    auc: float | None
    skipped: int
    seconds: float

    def __str__(self) -> str:
        """One line."""
        scores = "" if self.f05 is None else f", F0.5 {self.f05:.4f}"
        scores += "" if self.auc is None else f", AUC {self.auc:.4f}"
        return f"{self.out}: {self.epoch} epochs in {duration(self.seconds)}, loss {self.loss:.4f}{scores}"


def train(  # noqa: PLR0913 - four paths, as on the command line
    volume: str | PathLike[str],
    labels: str | PathLike[str],
    patches: str | PathLike[str],
    out: str | PathLike[str],
    config: Config = Config(),
    *,
    resume: bool = False,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    storage_options: dict[str, Any] | None = None,
) -> TrainReport:
    """Train a network on the windows of a table.

    Started by ``torchrun``, the processes share each step; else there is one.

    Parameters
    ----------
    volume, labels : str
        The scan, and the label group that belongs to it; local paths or URLs.
    patches : path
        The windows to learn from.
    out : path
        The run's folder: ``last.pt``, ``best.pt``, ``log.jsonl``, ``samples``.
    config : Config
        Everything else, validation and a checkpoint to start from included.
    resume : bool
        Go on with the run in `out`, exactly as if it had never stopped (on a CPU); begin it where there is
        none.
    on_epoch : callable, optional
        Called with each line of the log, a dict.
    storage_options : dict, optional
        For fsspec, for all scans and labels.

    Returns
    -------
    TrainReport
        The last epoch.

    Raises
    ------
    InputError
        What does not belong together, a window that the network cannot halve, `out` that exists or was begun
        with other settings, or a loss that is no number.
    StoreError
        A chunk cannot be read.
    """
    first = (str(volume), str(labels), str(patches))
    opened = [
        open_labelled(*scan, storage_options=storage_options) for scan in (first, *map(_scan, config.scans))
    ]
    sources, table = [source for source, _ in opened], opened[0][1]
    window = config.window or default_window(table.window)
    valid = _open_valid(first, config, window, storage_options)
    model, normalisation, start = starting_network(config)
    check_window(window, model.multiples)
    with processes(config.device) as group, RunFolder(Path(out), writes=group.first).locked() as folder:
        workers = reading(config, group.device)
        held = (
            None
            if valid is None
            else Held(
                scoring([valid[0]], config, window, workers // 2),
                _spread(len(valid[1]), config.valid_windows),
                config.batch,
                workers // 2,
            )
        )
        shown = scoring([(valid or opened[0])[0]], config, window, 0).sample(
            0, _most_ink((valid or opened[0])[1])
        )
        task = InkTask(window, config.loss, normalisation, shown, held)
        inputs: dict[str, Any] = {"scans": [identity(source) for source in sources]}
        inputs |= {"valid": None if valid is None else identity(valid[0]), "processes": group.world}
        state = group.of_first(folder.start(config, inputs, resume=resume))
        crops = training(sources, config, window, workers)
        notes = [f"starts from {start}", *([] if valid is None else [_distance(gap(crops, valid[0]))])]
        lineage = {
            "stage": STAGE,
            "version": VERSION,
            "source": sources[0].voxels.stored.name,
            "start": start,
        }
        last = fit(
            model,
            task,
            crops,
            config,
            group,
            folder,
            state=state,
            lineage=lineage,
            notes=notes,
            on_epoch=on_epoch,
        )
    told = {name: last.get(name) for name in ("epoch", "step", "loss", "f05", "auc", "skipped", "seconds")}
    return TrainReport(str(out), **told)  # type: ignore[arg-type]


def _scan(scan: Scan) -> tuple[str, str, str]:
    if scan.labels is None or scan.patches is None:
        msg = f"scan {scan.volume} of the config has no labels or no patches: training needs both"
        raise InputError(msg)
    return scan.volume, scan.labels, scan.patches


def _open_valid(
    first: tuple[str, str, str], config: Config, window: Numbers, storage_options: dict[str, Any] | None
) -> tuple[Source, Patches] | None:
    """What is scored: other windows of the first scan, and of other labels where the config names them."""
    if config.valid_patches is None:
        return None
    labels = config.valid_labels or first[1]
    source, table = open_labelled(first[0], labels, config.valid_patches, storage_options=storage_options)
    if not may_be_labelled(source, window):
        msg = f"nothing is labelled by {labels} in the windows of {config.valid_patches}: give valid_labels"
        raise InputError(msg)
    return source, table


def _distance(gap: float) -> str:
    """How far validation is from what training sees."""
    if gap > 0:
        return f"training crops, shifted and turned, keep {gap:g} voxels from validation windows"
    return "WARNING: training crops can see validation windows, so scores flatter: split with more --jitter"


def _spread(count: int, most: int | None) -> np.ndarray:
    """All windows, or some, evenly spaced."""
    rows: np.ndarray = np.arange(count)
    return rows if most is None or most >= count else rows[np.linspace(0, count - 1, most).astype(int)]


def _most_ink(table: Patches) -> int:
    """The window to look at."""
    return 0 if table.ink is None else int(np.argmax(table.ink))
