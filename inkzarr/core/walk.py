"""The keys below a folder of a store, as reading finds them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from zarr.storage import LocalStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from zarr.abc.store import Store


async def keys_below(store: Store, prefix: str) -> AsyncIterator[str]:
    """All keys of a folder; "" is the whole store.

    On a local disk links are followed, as reading follows them, and a folder that may not be looked into is
    an error: zarr's own list passes over both, and what a list leaves out would be taken for empty.

    Raises
    ------
    OSError
        A folder cannot be looked into.
    """
    if not isinstance(store, LocalStore):
        async for key in store.list_prefix(prefix):
            yield key
        return
    for folder, _, names in os.walk(store.root / prefix, followlinks=True, onerror=_refuse):
        below = os.path.relpath(folder, store.root)
        for name in names:
            yield name if below == os.curdir else f"{below}/{name}".replace(os.sep, "/")


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # deleted meanwhile
        raise error
