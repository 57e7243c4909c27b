"""Libraries that only some installations have."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from inkzarr.core.errors import InputError

if TYPE_CHECKING:
    from types import ModuleType


def require(module: str, what: str, extra: str) -> ModuleType:
    """Import a library that an extra of inkzarr brings.

    Raises
    ------
    InputError
        It is not there; told with the extra that brings it.

    Examples
    --------
    >>> require("none", "a picture", "plot")
    Traceback (most recent call last):
    inkzarr.core.errors.InputError: a picture needs none: pip install "inkzarr[plot]"
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        msg = f'{what} needs {module.partition(".")[0]}: pip install "inkzarr[{extra}]"'
        raise InputError(msg) from error
