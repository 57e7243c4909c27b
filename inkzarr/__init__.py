"""Out-of-core 3D ink detection for the Herculaneum scrolls, on Zarr and Dask."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from inkzarr.core.cluster import cluster
from inkzarr.core.errors import InkzarrError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.job import RunOptions
from inkzarr.core.labelled import open_labels
from inkzarr.core.schema import VERSION as __version__
from inkzarr.core.store import open_volume

if TYPE_CHECKING:
    from inkzarr import plot, viewer
    from inkzarr.components import components
    from inkzarr.evaluate import evaluate
    from inkzarr.export import export
    from inkzarr.flatten import flatten
    from inkzarr.info import info
    from inkzarr.ingest import ingest
    from inkzarr.labels import labels
    from inkzarr.patches import patches
    from inkzarr.predict import predict
    from inkzarr.pretrain import pretrain
    from inkzarr.pyramid import pyramid
    from inkzarr.split import split
    from inkzarr.train import train
    from inkzarr.verify import verify
    from inkzarr.view import view

STAGES = (
    "components",
    "evaluate",
    "export",
    "flatten",
    "info",
    "ingest",
    "labels",
    "patches",
    "predict",
    "pretrain",
    "pyramid",
    "split",
    "train",
    "verify",
    "view",
)

__all__ = [
    "Box",
    "InkzarrError",
    "RunOptions",
    "Zyx",
    "__version__",
    "cluster",
    "components",
    "evaluate",
    "export",
    "flatten",
    "info",
    "ingest",
    "labels",
    "open_labels",
    "open_volume",
    "patches",
    "plot",
    "predict",
    "pretrain",
    "pyramid",
    "split",
    "train",
    "verify",
    "view",
    "viewer",
]


class _Package(ModuleType):
    """Hands out each stage's function under the stage's name, on first use, so that torch can be absent."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in STAGES and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name in ("plot", "viewer"):
            return importlib.import_module(f"{__name__}.{name}")
        if name not in STAGES:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        importlib.import_module(f"{__name__}.{name}")
        return self.__dict__[name]


sys.modules[__name__].__class__ = _Package
