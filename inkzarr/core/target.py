"""The arrays that a job writes, each with its ledger: begun, or taken up where an earlier run stopped."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr
from zarr.core.sync import sync

from inkzarr.core.errors import InputError, StoreError
from inkzarr.core.ledger import DONE, RUNNING, Ledger, Manifest
from inkzarr.core.lock import Lock, locked
from inkzarr.core.remote import is_remote, open_store
from inkzarr.core.schema import FULL_RESOLUTION, LEDGER_FOLDER, LOCK, METADATA, SERIES
from inkzarr.core.store import create_group, create_level, create_volume

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from zarr.abc.store import Store

    from inkzarr.core.job import Job, RunOptions
    from inkzarr.core.schema import VolumeSpec

    Target = tuple[zarr.Array[Any], Ledger]

LONGEST_TOLD = 60


@contextlib.contextmanager
def held(job: Job) -> Iterator[Lock]:
    """Hold the lock of a job's target.

    Raises
    ------
    InputError
        A target that cannot be, or that another run writes to.
    """
    _refuse_bad_place(job)
    with locked(job.out, storage_options=job.storage_options) as lock:
        yield lock


def open_target(job: Job, options: RunOptions) -> list[Target]:
    """The job's arrays and their ledgers: taken up where they agree with the job, else begun; in its lock.

    Raises
    ------
    InputError
        Something else is there, and overwriting was not asked for.
    """
    found = None if options.overwrite else agreeing_ledgers(job)
    store = open_store(job.out, storage_options=job.storage_options, read_only=False)
    try:
        return _begin_or_resume(job, options, found, store)
    except StoreError as error:
        if is_remote(job.out):
            raise
        msg = f"{job.out} cannot be written: choose a folder that can ({error})"
        raise InputError(msg) from error


def _begin_or_resume(job: Job, options: RunOptions, found: list[Ledger] | None, store: Store) -> list[Target]:
    if options.overwrite:
        _delete(job, store)
    ledgers = [Ledger(store, spec.path) for spec in job.specs] if found is None else found
    unfinished = any(ledger.manifest is None or ledger.manifest.state != DONE for ledger in ledgers)
    for spec, ledger in zip(job.specs, ledgers, strict=True):
        ledger.store = store
        if ledger.manifest is None:
            ledger.begin(_manifest(job, spec, options))
        else:
            kept = ledger.manifest
            sparse = kept.sparse or (job.holds is not None and kept.state != DONE)
            ledger.manifest = replace(kept, command=options.command or kept.command, sparse=sparse)
            # what is counted a block must not be counted twice, where blocks were of another size
            if job.more and unfinished and (others := ledger.records.keys() - set(job.blocks())):
                ledger.strike(set(others))
            ledger.gather()
    _sweep(job)
    if not any(
        ledger.records or (ledger.manifest and ledger.manifest.state != RUNNING) for ledger in ledgers
    ):
        _create_group(job, store)
        return [(_create_array(job, spec, store), led) for spec, led in zip(job.specs, ledgers, strict=True)]
    return [(_open_array(job, spec, store), led) for spec, led in zip(job.specs, ledgers, strict=True)]


def agreeing_ledgers(job: Job) -> list[Ledger] | None:
    """The ledgers of the same run, one for each of the job's arrays; None where nothing is there.

    A run that was killed at its very beginning may have left some of them not begun.

    Raises
    ------
    InputError
        Something else is there.
    """
    _refuse_bad_place(job)
    store = open_store(job.out, storage_options=job.storage_options)
    ledgers = [Ledger(store, spec.path) for spec in job.specs]
    loaded = [ledger.load() for ledger in ledgers]
    if not any(loaded):
        place = "" if job.makes_group else job.spec.path
        if names(store, place) - {LEDGER_FOLDER, LOCK}:
            where = "/".join(filter(None, (job.out, place)))
            msg = f"{where} holds what this run did not write: choose another name, or --overwrite"
            raise InputError(msg)
        return None
    for spec, ledger in zip(job.specs, ledgers, strict=True):
        if ledger.manifest is not None:
            _refuse_other(job, ledger.manifest, _fingerprint(job, spec))
    return ledgers


def _refuse_other(job: Job, manifest: Manifest, now: dict[str, Any]) -> None:
    """Raise where a ledger's fingerprint is not the job's; what another version has finished stays good."""
    then = manifest.fingerprint
    if manifest.state != RUNNING:
        then = then | {"version": now["version"]}
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


def names(store: Store, folder: str) -> set[str]:
    """What lies directly in a folder of a store; empty where it does not exist."""

    async def collect() -> set[str]:
        return {name.rstrip("/").rsplit("/", 1)[-1] async for name in store.list_dir(folder)}

    return sync(collect())


def _create_group(job: Job, store: Store) -> None:
    """The group of several arrays, made anew; a volume makes its own."""
    if job.more:
        _delete_metadata(store, "")
        create_group(store, job.spec)


def _create_array(job: Job, spec: VolumeSpec, store: Store) -> zarr.Array[Any]:
    """The array, made anew with its metadata: nothing is recorded, so a killed run may have left half."""
    _delete_metadata(store, f"{spec.path}/")
    if spec.path == FULL_RESOLUTION:
        _delete_metadata(store, "")
        return create_volume(store, spec, job.stage)
    return create_level(zarr.open_group(store, mode="r+"), spec)


def _delete_metadata(store: Store, folder: str) -> None:
    for name in METADATA:
        sync(store.delete(folder + name))


def _open_array(job: Job, spec: VolumeSpec, store: Store) -> zarr.Array[Any]:
    found = zarr.open_group(store, mode="r+").get(spec.path)
    if not isinstance(found, zarr.Array):
        msg = f"{job.out} has a ledger but no array {spec.path}: start afresh with --overwrite"
        raise InputError(msg)
    return found


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_TOLD else f"{text[:LONGEST_TOLD]}..."


def _manifest(job: Job, spec: VolumeSpec, options: RunOptions) -> Manifest:
    region = None if job.region is None else (tuple(job.region.start), tuple(job.region.stop))
    shape, chunks, sparse = tuple(spec.shape), tuple(spec.chunks), job.holds is not None
    manifest = Manifest(_fingerprint(job, spec), shape, chunks, region=region, sparse=sparse)
    return replace(manifest, command=options.command)


def _differences(then: object, now: object, name: str = "") -> Iterator[tuple[str, object, object]]:
    """What differs between two fingerprints, by its dotted name."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in sorted(then.keys() | now.keys()):
            yield from _differences(then.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif then != now:
        yield name, then, now


def _fingerprint(job: Job, spec: VolumeSpec) -> dict[str, Any]:
    layout = {
        "shape": list(spec.shape),
        "dtype": spec.dtype.name,
        "zarr_format": spec.zarr_format,
        "shard": spec.shard,
        "region": None if job.region is None else str(job.region),
        "version": SERIES,
    }
    stored: dict[str, Any] = json.loads(json.dumps({"stage": job.stage, **layout, **job.fingerprint}))
    return stored


def refuse_foreign(job: Job) -> None:
    """Refuse to overwrite what is no Zarr volume.

    Raises
    ------
    InputError
        The target is something else.
    """
    _refuse_bad_place(job)
    if not job.makes_group:
        return
    found = names(open_store(job.out, storage_options=job.storage_options), "") - {LOCK}
    if found and not found & {*METADATA, LEDGER_FOLDER}:
        msg = f"{job.out} is no Zarr volume, so it is not overwritten: choose another name, or delete it"
        raise InputError(msg)


def _delete(job: Job, store: Store) -> None:
    """Delete the target, which must look like a Zarr volume of ours or of nobody.

    The ledgers go first: a run that is killed meanwhile must not take what is left for its own work.
    """
    if not job.makes_group:
        sync(store.delete_dir(f"{LEDGER_FOLDER}/{job.spec.path}"))
        sync(store.delete_dir(job.spec.path))
        return
    refuse_foreign(job)
    with held(job) as lock, lock.emptied():
        sync(store.delete_dir(LEDGER_FOLDER))
        sync(store.delete_dir(""))


def _sweep(job: Job) -> None:
    """Remove half-written files that a killed run left on a local disk."""
    if is_remote(job.out):
        return
    root = Path(_local(job.out))
    for folder in (*(root / spec.path for spec in job.specs), root / LEDGER_FOLDER):
        for partial in list(folder.rglob("*.partial")):
            partial.unlink(missing_ok=True)
    for partial in list(root.glob("*.partial")):
        partial.unlink(missing_ok=True)


def _refuse_bad_place(job: Job) -> None:
    """Refuse a target that is a file, that is or holds an input, or that lies in one."""
    refuse_inside(job.out, job.inputs)
    if not is_remote(job.out) and Path(_local(job.out)).is_file():
        msg = f"{job.out} is a file: choose another name for the folder"
        raise InputError(msg)


def refuse_inside(out: str, inputs: Iterable[str]) -> None:
    """Refuse an output that is or holds an input, or that lies in one.

    Parameters
    ----------
    out : str
        What is to be written: a file, a folder or a URL.
    inputs : iterable of str
        What is read.

    Raises
    ------
    InputError
        Naming both.
    """
    place = f"{_place(out)}/"
    for source in (f"{_place(name)}/" for name in inputs):
        if source.startswith(place) or place.startswith(source):
            msg = f"{out} and the input {source.rstrip('/')} lie in each other: choose another name"
            raise InputError(msg)


def _place(url: str) -> str:
    """A local path without detours, or a URL; to tell whether two are the same."""
    return url.rstrip("/") if is_remote(url) else os.path.realpath(_local(url))


def _local(url: str) -> str:
    return url.removeprefix("file://")
