"""The array that a job writes and its ledger: begun, or taken up where an earlier run stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr
from zarr.core.sync import sync

from inkzarr.core.errors import InputError, StoreError
from inkzarr.core.ledger import Ledger, Manifest
from inkzarr.core.remote import is_remote, open_store
from inkzarr.core.schema import FULL_RESOLUTION, LEDGER_FOLDER, METADATA
from inkzarr.core.store import create_level, create_volume

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zarr.abc.store import Store

    from inkzarr.core.job import Job, RunOptions

LONGEST_TOLD = 60


def open_target(job: Job, options: RunOptions) -> tuple[zarr.Array[Any], Ledger]:
    """The array and its ledger: taken up where they agree with the job, else begun.

    Raises
    ------
    InputError
        Something else is there, and overwriting was not asked for.
    """
    _refuse_bad_place(job)
    ledger = None if options.overwrite else agreeing_ledger(job)
    store = open_store(job.out, storage_options=job.storage_options, read_only=False)
    try:
        return _begin_or_resume(job, options, ledger, store)
    except StoreError as error:
        if is_remote(job.out):
            raise
        msg = f"{job.out} cannot be written: choose a folder that can ({error})"
        raise InputError(msg) from error


def _begin_or_resume(
    job: Job, options: RunOptions, ledger: Ledger | None, store: Store
) -> tuple[zarr.Array[Any], Ledger]:
    if ledger is None:
        if options.overwrite:
            _delete(job, store)
        ledger = Ledger(store, job.spec.path)
        region = None if job.region is None else (tuple(job.region.start), tuple(job.region.stop))
        shape, chunks = tuple(job.spec.shape), tuple(job.spec.chunks)
        ledger.begin(Manifest(_fingerprint(job), shape, chunks, region=region))
    else:
        ledger.store = store
        ledger.gather()
    _sweep(job)
    return _open_array(job, store) if ledger.records else _create_array(job, store), ledger


def agreeing_ledger(job: Job) -> Ledger | None:
    """The ledger of the same run; None where nothing is there.

    Raises
    ------
    InputError
        Something else is there.
    """
    _refuse_bad_place(job)
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
    if then.get("stage") != now["stage"]:
        told = f"{job.out} was made by {then.get('stage')}, not by {job.stage}"
        msg = f"{told}: choose another name, or --overwrite"
        raise InputError(msg)
    if then != now:
        told = "; ".join(
            f"{key} was {_cut(was)}, is {_cut(now)}" for key, was, now in _differences(then, now)
        )
        msg = f"{job.out} was begun with other settings ({told}): use them again, or --overwrite"
        raise InputError(msg)
    return ledger


def names(store: Store, folder: str) -> set[str]:
    """What lies directly in a folder of a store; empty where it does not exist."""

    async def collect() -> set[str]:
        return {name.rstrip("/").rsplit("/", 1)[-1] async for name in store.list_dir(folder)}

    return sync(collect())


def _create_array(job: Job, store: Store) -> zarr.Array[Any]:
    """The array, made anew with its metadata: nothing is recorded, so a killed run may have left half."""
    whole = job.spec.path == FULL_RESOLUTION
    for folder in ("", f"{job.spec.path}/") if whole else (f"{job.spec.path}/",):
        for name in METADATA:
            sync(store.delete(folder + name))
    if whole:
        return create_volume(store, job.spec, job.stage)
    return create_level(zarr.open_group(store, mode="r+"), job.spec)


def _open_array(job: Job, store: Store) -> zarr.Array[Any]:
    found = zarr.open_group(store, mode="r+").get(job.spec.path)
    if not isinstance(found, zarr.Array):
        msg = f"{job.out} has a ledger but no array {job.spec.path}: start afresh with --overwrite"
        raise InputError(msg)
    return found


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_TOLD else f"{text[:LONGEST_TOLD]}..."


def _differences(then: object, now: object, name: str = "") -> Iterator[tuple[str, object, object]]:
    """What differs between two fingerprints, by its dotted name."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in sorted(then.keys() | now.keys()):
            yield from _differences(then.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif then != now:
        yield name, then, now


def _fingerprint(job: Job) -> dict[str, Any]:
    spec = job.spec
    layout = {
        "shape": list(spec.shape),
        "dtype": spec.dtype.name,
        "zarr_format": spec.zarr_format,
        "shard": spec.shard,
        "region": None if job.region is None else str(job.region),
    }
    stored: dict[str, Any] = json.loads(json.dumps({"stage": job.stage, **layout, **job.fingerprint}))
    return stored


def _delete(job: Job, store: Store) -> None:
    """Delete the target, which must look like a Zarr volume of ours or of nobody.

    The ledgers go first: a run that is killed meanwhile must not take what is left for its own work.
    """
    if job.spec.path != FULL_RESOLUTION:
        sync(store.delete_dir(f"{LEDGER_FOLDER}/{job.spec.path}"))
        sync(store.delete_dir(job.spec.path))
        return
    found = names(store, "")
    if found and not found & {*METADATA, LEDGER_FOLDER}:
        msg = f"{job.out} is no Zarr volume, so it is not overwritten: choose another name, or delete it"
        raise InputError(msg)
    sync(store.delete_dir(LEDGER_FOLDER))
    sync(store.delete_dir(""))


def _sweep(job: Job) -> None:
    """Remove half-written files that a killed run left on a local disk."""
    if is_remote(job.out):
        return
    root = Path(_local(job.out))
    for folder in (root / job.spec.path, root / LEDGER_FOLDER):
        for partial in list(folder.rglob("*.partial")):
            partial.unlink()
    for partial in list(root.glob("*.partial")):
        partial.unlink()


def _refuse_bad_place(job: Job) -> None:
    """Refuse a target that is a file, that is or holds an input, or that lies in one."""
    out = f"{_place(job.out)}/"
    for source in (f"{_place(name)}/" for name in job.inputs):
        if source.startswith(out) or out.startswith(source):
            msg = f"{job.out} and the input {source.rstrip('/')} lie in each other: choose another name"
            raise InputError(msg)
    if not is_remote(job.out) and Path(_local(job.out)).is_file():
        msg = f"{job.out} is a file: choose another name for the folder"
        raise InputError(msg)


def _place(url: str) -> str:
    """A local path without detours, or a URL; to tell whether two are the same."""
    return url.rstrip("/") if is_remote(url) else os.path.realpath(_local(url))


def _local(url: str) -> str:
    return url.removeprefix("file://")
