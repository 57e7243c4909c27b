"""Pretrain: a network learns papyrus from scans without labels, by finding again what was hidden from it.

As in ryanchesler/LSM: four random boxes of a window are set to -1, and the squared error on those voxels
alone is made small. The checkpoint starts ``train --init``.
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
from inkzarr.nn.sources import hold_back, identity, open_unlabelled, scoring, see, training
from inkzarr.nn.start import PRETRAINED, starting_network
from inkzarr.nn.tasks import Held, MaskTask
from inkzarr.nn.unet import check_window

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import PathLike

HELD_BACK = 16
"""One window in so many is kept back, to score on; at most `MOST_HELD` of a scan."""
MOST_HELD = 32
FULL = 10
"""A crop needs voxels that are not 0 in one part of the window in so many."""


@dataclass(frozen=True)
class PretrainReport:
    """How a run ended.

    Parameters
    ----------
    out : str
        Its folder.
    epoch, step : int
        The last ones.
    loss, valid_loss : float
        Mean squared error on hidden voxels, in the last epoch and on windows kept back.
    seconds : float
        In all.
    """

    out: str
    epoch: int
    step: int
    loss: float
    valid_loss: float
    seconds: float

    def __str__(self) -> str:
        """One line."""
        told = f"error {self.loss:.5f}, {self.valid_loss:.5f} on windows kept back"
        return f"{self.out}: {self.epoch} epochs in {duration(self.seconds)}, {told}"


def pretrain(
    volumes: Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    config: Config = Config(),
    *,
    resume: bool = False,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    storage_options: dict[str, Any] | None = None,
) -> PretrainReport:
    """Pretrain a network on scans without labels.

    Parameters
    ----------
    volumes : list of str
        The scans; those of the config come to them.
    out : path
        The run's folder, as `inkzarr.train` has it.
    config : Config
        Everything else; what it says of labels and validation takes no part.
    resume, on_epoch, storage_options
        As `inkzarr.train` has them.

    Returns
    -------
    PretrainReport
        The last epoch.

    Raises
    ------
    InputError
        No scan, one that is missing or all air, or as `inkzarr.train` has it.
    StoreError
        A chunk cannot be read.
    """
    window = config.window or default_window(None)
    urls = [*map(str, volumes), *(scan.volume for scan in config.scans)]
    if not urls:
        msg = "there is no scan to pretrain on: name one or more"
        raise InputError(msg)
    whole = [open_unlabelled(url, window, storage_options=storage_options) for url in urls]
    parts = (
        hold_back(source, config, window, min(MOST_HELD, -(-len(source.corners) // HELD_BACK)))
        for source in whole
    )
    sources, held = zip(*parts, strict=True)
    model, normalisation, start = starting_network(config)
    check_window(window, model.multiples)
    config = config.with_(min_labelled=max(config.min_labelled, int(np.prod(window)) // FULL))
    with processes(config.device) as group, RunFolder(Path(out), writes=group.first).locked() as folder:
        workers = reading(config, group.device)
        kept = scoring(list(held), config, window, workers // 2)
        back = Held(kept, np.arange(len(kept)), config.batch, workers // 2)
        task = MaskTask(window, normalisation, kept.sample(0, len(kept) // 2), back)
        inputs = {"scans": [identity(source) for source in sources], "processes": group.world}
        state = group.of_first(folder.start(config, inputs, resume=resume))
        crops = training(list(sources), config, window, workers)
        pairs = zip(sources, held, strict=True)
        seen = {b.voxels.stored.name for a, b in pairs if see(a.corners, b.corners, config, window).any()}
        notes = [
            f"WARNING: training sees windows that are scored: too small is {name}" for name in sorted(seen)
        ]
        names = ", ".join(source.voxels.stored.name for source in sources)
        lineage = {"stage": PRETRAINED, "version": VERSION, "source": names, "start": start}
        last = fit(
            model, task, crops, config, group, folder, state=state, lineage=lineage,
            notes=[f"starts from {start}", *notes], on_epoch=on_epoch,
        )  # fmt: skip
    told = {name: last[name] for name in ("epoch", "step", "loss", "valid_loss", "seconds")}
    return PretrainReport(str(out), **told)
