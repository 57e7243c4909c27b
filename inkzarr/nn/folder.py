"""The folder of a run: its settings, its log, its checkpoints, and the state that it resumes from.

::

    OUT/config.toml           the settings as used; `--config` takes it again
    OUT/last.pt, best.pt      checkpoints of the averaged weights, after the last and after the best epoch
    OUT/state.pt              all that a resumed run needs; weights_only, nothing in it is executed
    OUT/log.jsonl             one JSON object an epoch
    OUT/samples/epoch_001.png
"""

from __future__ import annotations

import io
import json
import os
import pickle
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from inkzarr.core.errors import InputError
from inkzarr.core.extras import require
from inkzarr.core.lock import locked
from inkzarr.core.schema import LOCK, SERIES
from inkzarr.nn.checkpoint import save_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from PIL.Image import Image

    from inkzarr.nn.checkpoint import Normalisation
    from inkzarr.nn.config import Config
    from inkzarr.nn.unet import UNet3D

STATE_VERSION = 1
WRITTEN = ("config.toml", "last.pt", "best.pt", "state.pt", "log.jsonl", "samples/epoch_")


@dataclass
class RunFolder:
    """The files of a run; each is written whole or not at all.

    Parameters
    ----------
    path : Path
        The folder.
    writes : bool
        Whether this process writes it; in the others of a run nothing happens.
    """

    path: Path
    writes: bool = True
    _told: dict[str, str] = field(default_factory=dict, repr=False)
    _board: Any = field(default=None, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._board is not None:
            self._board.close()

    @property
    def last(self) -> Path:
        """The checkpoint of the last epoch."""
        return self.path / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.path / "best.pt"

    @contextmanager
    def locked(self) -> Iterator[Self]:
        """Keep other runs out of the folder, which is made for it.

        Raises
        ------
        InputError
            It is a file, cannot be made, or another run writes to it.
        """
        if self.path.exists() and not self.path.is_dir():
            msg = f"{self.path} is a file: a run needs a folder of its own"
            raise InputError(msg)
        with locked(str(self.path)) if self.writes else nullcontext():
            yield self

    def start(self, config: Config, inputs: Mapping[str, Any], *, resume: bool) -> dict[str, Any] | None:
        """Fill the folder, or find the state to go on from; in its lock.

        Parameters
        ----------
        config : Config
            The run.
        inputs : dict
            What tells its inputs from others'; JSON.
        resume : bool
            Whether the folder may hold anything.

        Returns
        -------
        dict or None
            The state; None where nothing was saved yet.

        Raises
        ------
        InputError
            The folder is not empty and `resume` was not asked for, or cannot be made; its run had other
            settings, inputs or versions; or TensorBoard is asked for and not installed.
        """
        if not self.writes:
            return None
        writer = _board_writer() if config.tensorboard else None
        if not resume and any(each.name != LOCK for each in self.path.iterdir()):
            msg = f"{self.path} exists: add --resume to go on with its run, or name another folder"
            raise InputError(msg)
        inputs = {**inputs, "version": f"{SERIES}, torch {torch.__version__}"}
        self._told = {"config": config.model_dump_json(), "inputs": json.dumps(inputs)}
        state = self._state()
        if state is not None:
            self._refuse_other_run(state, config, inputs)
        self._sweep()
        try:
            (self.path / "samples").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = (
                f"{self.path} cannot be made ({error.strerror}): name a folder in a place that can be written"
            )
            raise InputError(msg) from error
        if state is None:
            self._write("config.toml", config.to_toml().encode())
        self._cut_log(0 if state is None else state["lines"])
        self._board = writer and writer(str(self.path / "tensorboard"))
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Write the state to resume from."""
        if not self.writes:
            return
        buffer = io.BytesIO()
        torch.save({"version": STATE_VERSION, "lines": len(self.entries()), **self._told, **state}, buffer)
        self._write("state.pt", buffer.getvalue())

    def checkpoint(
        self, model: UNet3D, normalisation: Normalisation, lineage: Mapping[str, str], *, better: bool
    ) -> None:
        """Save the network of an epoch as the last one, and as the best where it is `better`."""
        for path in [self.last, *([self.best] if better else [])] if self.writes else []:
            save_checkpoint(path, model, normalisation=normalisation, lineage=lineage)

    def log(self, entry: dict[str, Any]) -> None:
        """Add a line to the log, and to TensorBoard's where that is asked for."""
        if not self.writes:
            return
        log = self.path / "log.jsonl"
        try:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritten(log, error) from error
        numbers = {name: value for name, value in entry.items() if isinstance(value, int | float)}
        for name, value in numbers.items() if self._board is not None else ():
            self._board.add_scalar(name, value, entry["step"])

    def entries(self) -> list[dict[str, Any]]:
        """The log so far."""
        log = self.path / "log.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def picture(self, epoch: int, sheet: Image) -> None:
        """Save the samples of an epoch, counted from 1."""
        buffer = io.BytesIO()
        sheet.save(buffer, format="PNG")
        self._write(f"samples/epoch_{epoch:03}.png", buffer.getvalue())

    def _state(self) -> dict[str, Any] | None:
        path = self.path / "state.pt"
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if state["version"] != STATE_VERSION:
                msg = f"version {state['version']}"
                raise ValueError(msg)
        except (
            OSError,
            EOFError,
            KeyError,
            TypeError,
            ValueError,
            RuntimeError,
            pickle.UnpicklingError,
        ) as error:
            msg = f"{path} cannot be resumed from ({error!s:.80}): start again in another folder"
            raise InputError(msg) from error
        return state

    def _refuse_other_run(self, state: dict[str, Any], config: Config, inputs: Mapping[str, Any]) -> None:
        changed = config.changed(json.loads(state["config"]))
        saved = json.loads(state["inputs"])
        changed += sorted(name for name in inputs.keys() & saved.keys() if inputs[name] != saved[name])
        if changed:
            msg = (
                f"{self.path} was begun with other settings ({', '.join(changed)}): "
                "resume with the same (config.toml and inputs, as many processes), or name another folder"
            )
            raise InputError(msg)

    def _sweep(self) -> None:
        """Delete what a run that was killed left half written."""
        for place in (self.path / name for name in WRITTEN):
            for stray in place.parent.glob(f".{place.name}*.partial"):
                if stray.is_file():
                    stray.unlink()

    def _cut_log(self, lines: int) -> None:
        """Drop what was logged after the state was saved: it comes again."""
        log = self.path / "log.jsonl"
        kept = log.read_bytes().splitlines(keepends=True)[:lines] if log.exists() else []
        self._write("log.jsonl", b"".join(kept))

    def _write(self, name: str, content: bytes) -> None:
        path = self.path / name
        partial = path.with_name(f".{path.name}.partial")
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            raise _unwritten(path, error) from error
        finally:
            partial.unlink(missing_ok=True)


def _unwritten(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be written ({error.strerror}): check the disk")


def _board_writer() -> Any:  # noqa: ANN401
    """TensorBoard's, where it is installed."""
    require("tensorboard", "tensorboard = true", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter
