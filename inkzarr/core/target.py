"""The array that a job writes and its ledger: begun, or taken up where an earlier run stopped."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import zarr
from zarr.core.sync import sync

from inkzarr.core.errors import InputError
from inkzarr.core.ledger import Ledger, Manifest
from inkzarr.core.remote import is_remote, open_store
from inkzarr.core.schema import FULL_RESOLUTION, LEDGER_FOLDER
from inkzarr.core.store import create_level, create_volume

if TYPE_CHECKING:
    from zarr.abc.store import Store

    from inkzarr.core.job import Job, RunOptions


def open_target(job: Job, options: RunOptions) -> tuple[zarr.Array[Any], Ledger]:
    """The array and its ledger: taken up where they agree with the job, else begun.

    Raises
    ------
    InputError
        Something else is there, and overwriting was not asked for.
    """
    ledger = None if options.overwrite else agreeing_ledger(job)
    store = open_store(job.out, storage_options=job.storage_options, read_only=False)
    if ledger is None:
        if options.overwrite:
            _delete(job, store)
        ledger = Ledger(store, job.spec.path)
        region = None if job.region is None else (tuple(job.region.start), tuple(job.region.stop))
        shape, chunks = tuple(job.spec.shape), tuple(job.spec.chunks)
        ledger.begin(Manifest(_fingerprint(job), shape, chunks, region=region))
    else:
        ledger.store = store
        _sweep(job)
    return _open_array(job, store), ledger


def agreeing_ledger(job: Job) -> Ledger | None:
    """The ledger of the same run; None where nothing is there.

    Raises
    ------
    InputError
        Something else is there.
    """
    store = open_store(job.out, storage_options=job.storage_options)
    ledger = Ledger(store, job.spec.path)
    if not ledger.load() or ledger.manifest is None:
        place = "" if job.spec.path == FULL_RESOLUTION else job.spec.path
        if names(store, place) - {LEDGER_FOLDER}:
            where = "/".join(filter(None, (job.out, place)))
            msg = f"{where} holds what this run did not write: choose another name, or --overwrite"
            raise InputError(msg)
        return None
    then, now = ledger.manifest.fingerprint, _fingerprint(job)
    if then != now:
        differing = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
        told = "; ".join(f"{key} was {then.get(key)!r}, is {now.get(key)!r}" for key in differing)
        msg = f"{job.out} was begun with other settings ({told}): use them again, or --overwrite"
        raise InputError(msg)
    return ledger


def names(store: Store, folder: str) -> set[str]:
    """What lies directly in a folder of a store; empty where it does not exist."""

    async def collect() -> set[str]:
        try:
            return {name.rstrip("/").rsplit("/", 1)[-1] async for name in store.list_dir(folder)}
        except FileNotFoundError:
            return set()

    return sync(collect())


def _open_array(job: Job, store: Store) -> zarr.Array[Any]:
    try:
        group = zarr.open_group(store, mode="r+")
    except FileNotFoundError:
        return create_volume(store, job.spec, job.out.rstrip("/").rsplit("/", 1)[-1])
    found = group.get(job.spec.path)
    return found if isinstance(found, zarr.Array) else create_level(group, job.spec)


def _fingerprint(job: Job) -> dict[str, Any]:
    spec = job.spec
    layout = {
        "shape": list(spec.shape),
        "dtype": spec.dtype.name,
        "zarr_format": spec.zarr_format,
        "shard": spec.shard,
        "region": None if job.region is None else str(job.region),
    }
    return {"stage": job.stage, **layout, **job.fingerprint}


def _delete(job: Job, store: Store) -> None:
    """Delete the target, which must look like a Zarr volume of ours or of nobody."""
    if job.spec.path != FULL_RESOLUTION:
        sync(store.delete_dir(job.spec.path))
        sync(store.delete_dir(f"{LEDGER_FOLDER}/{job.spec.path}"))
        return
    found = names(store, "")
    if found and not found & {".zgroup", ".zarray", "zarr.json", LEDGER_FOLDER}:
        msg = f"{job.out} is no Zarr volume, so it is not overwritten: choose another name, or delete it"
        raise InputError(msg)
    sync(store.clear())


def _sweep(job: Job) -> None:
    """Remove half-written files that a killed run left on a local disk."""
    if is_remote(job.out):
        return
    root = job.out.removeprefix("file://")
    for folder, _, names in os.walk(root):
        for name in names:
            if name.endswith(".partial"):
                os.unlink(os.path.join(folder, name))  # noqa: PTH108, PTH118 - walks many thousand files
