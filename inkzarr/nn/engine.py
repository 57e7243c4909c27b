"""A network at work on a device: windows of raw voxels in, probabilities out, in batches of one size."""

from __future__ import annotations

import copy
import logging
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import AXES, Zyx, check_axes
from inkzarr.nn.checkpoint import Checkpoint, Normalisation, load_checkpoint
from inkzarr.nn.fast import Prepared, out_of_memory, prepare
from inkzarr.nn.unet import UNet3D, check_window

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from torch import Tensor, nn

log = logging.getLogger(__name__)

BATCH_ON_GPU = 4
MAPS_AT_ONCE = 5
ENGINES = 2
"""That a process keeps."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: str) -> torch.device:
    """The device that ``auto``, ``cpu`` or ``cuda`` (``cuda:1``) names on this machine.

    Raises
    ------
    InputError
        CUDA was asked for and there is none, or the name is unknown.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.partition(":")[0] not in ("cpu", "cuda"):
        msg = f"device {device!r} is unknown: use auto, cpu or cuda"
        raise InputError(msg)
    if device.startswith("cuda") and not torch.cuda.is_available():
        msg = f"device {device!r} cannot be used, torch finds no CUDA here: use auto or cpu"
        raise InputError(msg)
    return torch.device(device)


class Engine:
    """A network on its device.

    On a CPU every window runs on one thread, as many side by side as there are in a batch. On a GPU, and for
    modules of any other kind, every batch has the same size, filled up with zeros where windows are
    missing. Either way a window's probabilities do not depend on its neighbours in the batch.

    Parameters
    ----------
    model : Checkpoint or torch.nn.Module
        A module gives logits (N, 1, Z, Y, X) for inputs of that shape.
    batch : int or None
        Windows run at once; None is one a thread on a CPU, 4 on a GPU; halved when a GPU is out of memory.
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    dtype : str
        ``float32``, ``bfloat16`` or ``float16``, of the network's maps; the blending is float32.
    axes : str or None
        Order of axes that the network was trained to see; None is the checkpoint's own, else zyx.

    Raises
    ------
    InputError
        No such device or dtype.
    """

    def __init__(
        self,
        model: Checkpoint | nn.Module,
        *,
        batch: int | None = None,
        device: str = "auto",
        dtype: str = "float32",
        axes: str | None = None,
    ) -> None:
        if dtype not in DTYPES:
            msg = f"dtype {dtype!r} is unknown: use {', '.join(DTYPES)}"
            raise InputError(msg)
        if batch is not None and batch < 1:
            msg = f"batch {batch} cannot be: at least one window runs at a time"
            raise InputError(msg)
        self.device = choose_device(device)
        self.batch = batch or (torch.get_num_threads() if self.device.type == "cpu" else BATCH_ON_GPU)
        self.lock = threading.Lock()
        """Held while a block is run: one block at a time computes, others read and write meanwhile."""
        checkpoint = model if isinstance(model, Checkpoint) else None
        module: nn.Module = model.model if isinstance(model, Checkpoint) else model
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.token = checkpoint.sha256 if checkpoint else uuid.uuid4().hex
        self.normalisation = checkpoint.normalisation if checkpoint else Normalisation()
        self.axes = axes or (checkpoint.axes if checkpoint else AXES)
        check_axes(self.axes)
        self._to_network = [AXES.index(axis) for axis in self.axes]
        self._from_network = [self.axes.index(axis) for axis in AXES]
        if isinstance(module, UNet3D) and (module.in_channels, module.out_channels) != (1, 1):
            found = f"{module.in_channels} input and {module.out_channels} output channels"
            msg = f"the network has {found}: one of each is needed, the scan and the logit of ink"
            raise InputError(msg)
        multiples = module.multiples if isinstance(module, UNet3D) else (1, 1, 1)
        self.multiples = Zyx(*(multiples[axis] for axis in self._from_network))
        self._flat = isinstance(module, UNet3D) and module.flat
        self._maps = module.f_maps[0] if isinstance(module, UNet3D) else 1
        self._fill = self.device.type != "cpu" or not isinstance(module, UNet3D)
        self._forward = _forward(module, DTYPES[dtype], self.device)

    def check_window(self, window: Zyx) -> None:
        """Refuse a window that the network cannot halve as often as it has levels.

        A flat network normalises over all planes of a window; where it gets several, a warning tells.

        Raises
        ------
        InputError
            Naming the window and the sizes that fit.
        """
        check_window(window, self.multiples)
        planes = AXES.index(self.axes[0])
        if self._flat and window[planes] > 1:
            one = ",".join(map(str, window._replace(**{AXES[planes]: 1})))
            log.warning(
                "a flat network is given windows of %d planes, which it normalises together: "
                "if it learned from single ones, use --window %s",
                window[planes],
                one,
            )

    @property
    def kind(self) -> dict[str, Any]:
        """What of the device changes a voxel."""
        if self.device.type == "cpu":
            return {"device": "cpu"}
        return {"device": torch.cuda.get_device_name(self.device), "batch": self.batch}

    def window_bytes(self, window: Zyx) -> int:
        """Memory that the network takes for one window, roughly: its full-resolution maps in float32."""
        return MAPS_AT_ONCE * self._maps * window.volume * torch.float32.itemsize

    def upload(self, voxels: np.ndarray) -> Tensor:
        """Put raw voxels on the device; to a GPU from pinned memory, while another block computes there."""
        tensor = torch.from_numpy(voxels)
        if self._copies is None:
            return tensor
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            tensor = tensor.pin_memory().to(self.device, non_blocking=True)
        computing.wait_stream(self._copies)
        tensor.record_stream(computing)
        return tensor

    def download(self, tensor: Tensor) -> Callable[[], np.ndarray]:
        """Begin to bring a result back; call what is returned, after the lock was let go, to wait for it."""
        if self._copies is None:
            return tensor.numpy
        self._copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copies):
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
            tensor.record_stream(self._copies)
            arrived = self._copies.record_event()

        def wait() -> np.ndarray:
            arrived.synchronize()
            return host.numpy()

        return wait

    @torch.inference_mode()
    def probabilities(self, windows: list[Tensor], dtype: np.dtype[Any]) -> list[Tensor]:
        """Run windows of raw voxels.

        Parameters
        ----------
        windows : list of Tensor
            (Z, Y, X) each, all of one shape, on the device.
        dtype : numpy.dtype
            Of the voxels, whose range is scaled as the checkpoint says.

        Returns
        -------
        list of Tensor
            (Z, Y, X) each, float32: the probability of ink.

        Raises
        ------
        InputError
            Not even one window fits the device's memory.
        """
        results: list[Tensor] = []
        while len(results) < len(windows):
            part = windows[len(results) : len(results) + self.batch]
            try:
                results += self._run(part, dtype)
            except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self.release()
                torch.cuda.empty_cache()
                if self.batch == 1:
                    shape = tuple(part[0].shape)
                    msg = f"one window of {shape} does not fit the memory of {self.device}: use a smaller one"
                    raise InputError(msg) from error
                self.batch //= 2
                log.warning("%s is out of memory: going on with batches of %d", self.device, self.batch)
        return results

    def release(self) -> None:
        """Give back the memory that a CPU keeps from window to window."""
        if isinstance(self._forward, Prepared):
            self._forward.release()

    def _run(self, part: list[Tensor], dtype: np.dtype[Any]) -> list[Tensor]:
        scaled = [self.normalisation.scale(window, dtype).permute(self._to_network) for window in part]
        missing = self.batch - len(part) if self._fill else 0
        filled = scaled + [torch.zeros_like(scaled[0])] * missing
        logits = self._forward(torch.stack(filled)[:, None])
        return [torch.sigmoid(one[0].float()).permute(self._from_network) for one in logits[: len(part)]]


_loading = threading.Lock()
_engines: dict[tuple[object, ...], tuple[object, Engine]] = {}


def cached_engine(
    checkpoint: str, axes: str | None, batch: int | None, device: str, dtype: str, sha256: str | None = None
) -> Engine:
    """The engine of a checkpoint file, prepared once in a process and shared by its threads.

    Parameters
    ----------
    checkpoint : str
        Path of the file. One that was replaced since is loaded anew, but where `sha256` tells which is meant.
    axes, batch, device, dtype
        Of the `Engine`.
    sha256 : str, optional
        What the file must be: one that was loaded before, or that lies there.

    Raises
    ------
    InputError
        The checkpoint cannot be read, or is another one.
    """
    path, key = Path(checkpoint), (checkpoint, axes, batch, device, dtype)
    with _loading:
        stamp = (path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else None
        loaded, engine = _engines.get(key, (None, None))
        if engine is None or (loaded != stamp if sha256 is None else engine.token != sha256):
            engine = Engine(load_checkpoint(checkpoint, axes=axes), batch=batch, device=device, dtype=dtype)
            if sha256 not in (None, engine.token):
                msg = (
                    f"checkpoint {checkpoint!r} was replaced while a run used it, or is another file here: "
                    "put that run's back, or start the run again with --overwrite"
                )
                raise InputError(msg)
            _engines[key] = stamp, engine
        _engines[key] = _engines.pop(key)  # the last to go
        for old in list(_engines)[:-ENGINES]:
            del _engines[old]
        return engine


def _forward(module: nn.Module, dtype: torch.dtype, device: torch.device) -> Callable[[Tensor], Tensor]:
    if isinstance(module, UNet3D):
        return prepare(module, dtype=dtype, device=device)
    module = copy.deepcopy(module).to(device).eval()

    def forward(windows: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            logits: Tensor = module(windows)
        return logits

    return forward
