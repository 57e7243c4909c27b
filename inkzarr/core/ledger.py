"""The ledger beside an array: which chunks are written, and what was written into them.

It lies on the array's own store, in ``.inkzarr/{array path}/``: ``manifest.json`` says what the run is
(its fingerprint), ``blocks-*.jsonl`` hold one line a finished block. Lines are written in small
whole files, since an object store cannot append; a finished run gathers them in ``blocks.jsonl``,
sorted, so that the same result has the same ledger however often the run was interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.records import BlockRecord, ChunkTable
from inkzarr.core.schema import LEDGER_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from zarr.abc.store import Store

RUNNING, STRUCK, DONE = "running", "struck", "done"
"""A run that is not finished; one that was, until blocks were struck to be computed again; a whole one."""
OUT = "OUT"
"""Stands in a manifest's command for the output's own place."""
GATHERED = "blocks.jsonl"


@dataclass(frozen=True)
class Manifest:
    """What a run is: two runs with the same fingerprint write the same voxels.

    Parameters
    ----------
    fingerprint : dict
        Input, checkpoint and every setting that changes a voxel; JSON.
    shape, chunks : tuple of int
        The array's, z y x.
    state : str
        ``running``, ``struck`` or ``done``.
    region : tuple of two tuples, or None
        First voxel and one past the last, where only a box of the array is written.
    sparse : bool
        Whether blocks known to be empty are left out: once done, a chunk without a record holds zeros.
    blocks : int or None
        How many are recorded, once a sparse run is done: lost lines must not read as empty blocks.
    command : tuple of str, or None
        The words that run it, without secrets, ``OUT`` in place of the output; None where Python did.
    """

    fingerprint: dict[str, Any]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    state: str = RUNNING
    region: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    sparse: bool = False
    blocks: int | None = None
    command: tuple[str, ...] | None = None

    def to_json(self) -> str:
        """What is stored; what only some runs have is left out of others."""
        told = asdict(self)
        if not self.sparse:
            del told["sparse"], told["blocks"]
        if self.command is None:
            del told["command"]
        return json.dumps(told, indent=1)


class Ledger:
    """The ledger of one array.

    Parameters
    ----------
    store : zarr.abc.store.Store
        The store that holds the array's group.
    path : str
        The array's path in that store; the ledger lies in the innermost group.
    """

    def __init__(self, store: Store, path: str) -> None:
        self.store = store
        group, _, name = path.rpartition("/")
        self.folder = f"{group}/{LEDGER_FOLDER}/{name}".strip("/")
        self.manifest: Manifest | None = None
        self.records: dict[Box, BlockRecord] = {}
        self._unsaved: list[BlockRecord] = []
        self._torn = False
        self._run = uuid.uuid4().hex[:12]
        self._parts = 0

    def load(self) -> bool:
        """Read what is there; a line that a crash cut off at the end of a file was never written.

        Returns
        -------
        bool
            Whether the array has a ledger.

        Raises
        ------
        InputError
            The ledger cannot be read.
        """
        if not self.load_manifest() or self.manifest is None:
            return False
        with self._readable():
            self.records = {}
            for part in self._get_many(self._part_names()):
                for line in self._whole_lines(part, self.manifest):
                    record = BlockRecord.from_json(line)
                    _check_fit(record, self.manifest)
                    self.records[record.box] = record
            if self.manifest.state == DONE and self.manifest.blocks not in (None, len(self.records)):
                msg = f"{len(self.records)} blocks where {self.manifest.blocks} were written"
                raise ValueError(msg)
        return True

    def load_manifest(self) -> bool:
        """Read what the run is, and none of its records; returns and raises as `load`."""
        text = self._get("manifest.json")
        if text is None:
            return False
        with self._readable():
            data = json.loads(text)
            self.manifest = Manifest(**{name: _tuples(value) for name, value in {**data}.items()})
        return True

    def headless(self) -> bool:
        """Whether there are records but not what says of which run: that cannot be told from air."""
        return self.store.supports_listing and bool(self._part_names())

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, TypeError, KeyError) as error:
            where = f"the ledger {self.folder} of {self.store}"
            msg = f"{where} cannot be read ({error}): write that volume afresh, with --overwrite"
            raise InputError(msg) from error

    def _whole_lines(self, part: str, manifest: Manifest) -> list[str]:
        """The lines of a file; of a run that goes on, without what no line end follows.

        Every line is written with its end, so what has none was cut. A block whose line is lost is computed
        again. A run that is done is not: there a cut line is damage.
        """
        lines = part.splitlines(keepends=True)
        if manifest.state == RUNNING and lines and not lines[-1].endswith("\n"):
            self._torn = True
            del lines[-1]
        return lines

    @property
    def cells(self) -> Box:
        """The chunks that the run writes, counted in chunks."""
        if self.manifest is None:
            msg = "a ledger has chunks only after it was begun or loaded"
            raise RuntimeError(msg)
        grid = Grid(Zyx.of(self.manifest.shape), Zyx.of(self.manifest.chunks))
        region = self.manifest.region
        return grid.cells(None if region is None else Box(*(Zyx.of(side) for side in region)))

    def begin(self, manifest: Manifest) -> None:
        """Start an empty ledger; of an earlier one nothing stays."""
        self.manifest, self.records = manifest, {}
        for name in self._part_names():
            sync(self.store.delete(f"{self.folder}/{name}"))
        self._put("manifest.json", manifest.to_json())

    def add(self, record: BlockRecord) -> None:
        """Remember a finished block; `flush` makes it last."""
        self.records[record.box] = record
        self._unsaved.append(record)

    def keep(self, boxes: set[Box]) -> None:
        """Forget all blocks but these: what is counted a block must not be counted twice."""
        kept = {box: record for box, record in self.records.items() if box in boxes}
        if len(kept) == len(self.records):
            return
        parts = [name for name in self._part_names() if name != GATHERED]
        if kept:
            self._put(GATHERED, _lines(kept[box] for box in sorted(kept)))
        else:
            parts.append(GATHERED)
        for name in parts:
            sync(self.store.delete(f"{self.folder}/{name}"))
        self.records = kept

    def strike(self, lost: set[Box]) -> None:
        """Forget finished blocks, which are to be computed again; readers are told from now on."""
        if self.manifest is None:
            msg = "blocks are struck only from a ledger that was loaded"
            raise RuntimeError(msg)
        if self.manifest.state == DONE:
            self.manifest = replace(self.manifest, state=STRUCK)
            self._put("manifest.json", self.manifest.to_json())
        self.keep(self.records.keys() - lost)

    def flush(self) -> None:
        """Write what was added since the last flush."""
        if not self._unsaved:
            return
        self._put(f"blocks-{self._run}-{self._parts:06}.jsonl", _lines(self._unsaved))
        self._parts += 1
        self._unsaved = []

    def gather(self) -> None:
        """Put all parts in one file, sorted; what was loaded or added is what it holds."""
        self.flush()
        parts = [name for name in self._part_names() if name != GATHERED]
        if self.records and (parts or self._torn):
            self._put(GATHERED, _lines(self.records[box] for box in sorted(self.records)))
        elif self._torn:  # its only line; a file of none cannot be told from one that was cut
            parts = self._part_names()
        self._torn = False
        for name in parts:
            sync(self.store.delete(f"{self.folder}/{name}"))

    def finish(self) -> None:
        """Gather all parts and mark the run done."""
        if self.manifest is None:
            msg = "a ledger is finished only after it was begun or loaded"
            raise RuntimeError(msg)
        self.gather()
        done = replace(self.manifest, state=DONE, blocks=len(self.records))
        self._put("manifest.json", done.to_json())

    def chunk_table(self) -> ChunkTable:
        """All chunks' records as arrays over the chunk grid."""
        if self.manifest is None:
            msg = "a ledger has chunks only after it was begun or loaded"
            raise RuntimeError(msg)
        grid = Grid(Zyx.of(self.manifest.shape), Zyx.of(self.manifest.chunks))
        table = ChunkTable.empty(grid)
        if self.manifest.sparse and self.manifest.state == DONE:
            table.done[...], table.high[...], table.upper[...] = True, 0, 0
        for box, record in self.records.items():
            table.put(box, record)
        return table

    def tally(self) -> dict[str, int]:
        """What the stage counted, summed over all blocks."""
        total: Counter[str] = Counter()
        for record in self.records.values():
            total.update(record.tally)
        return dict(total)

    def _part_names(self) -> list[str]:
        if not self.store.supports_listing:
            return [GATHERED]

        async def names() -> list[str]:
            return [name async for name in self.store.list_dir(self.folder)]

        found = (name.rstrip("/").rsplit("/", 1)[-1] for name in sync(names()))
        return sorted(name for name in found if name.startswith("blocks") and name.endswith(".jsonl"))

    def _get(self, name: str) -> str | None:
        found = sync(self.store.get(f"{self.folder}/{name}", prototype=default_buffer_prototype()))
        return None if found is None else found.to_bytes().decode(errors="replace")

    def _get_many(self, names: list[str]) -> list[str]:
        async def texts() -> list[str]:
            buffers = [
                self.store.get(f"{self.folder}/{n}", prototype=default_buffer_prototype()) for n in names
            ]
            found = await asyncio.gather(*buffers)
            return ["" if f is None else f.to_bytes().decode(errors="replace") for f in found]

        return sync(texts())

    def _put(self, name: str, text: str) -> None:
        buffer = default_buffer_prototype().buffer.from_bytes(text.encode())
        sync(self.store.set(f"{self.folder}/{name}", buffer))


def _tuples(value: Any) -> Any:  # noqa: ANN401
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _check_fit(record: BlockRecord, manifest: Manifest) -> None:
    """Refuse a block that is not made of whole chunks of the array."""
    grid = Grid(Zyx.of(manifest.shape), Zyx.of(manifest.chunks))
    cells = grid.cells(record.box)
    last = Zyx(*(n - 1 for n in cells.stop))
    if cells.empty or record.box != Box(grid.box(cells.start).start, grid.box(last).stop):
        msg = f"block {record.box} is not made of whole chunks"
        raise ValueError(msg)
    if len(record.chunks) != cells.shape.volume:
        msg = f"block {record.box} has {len(record.chunks)} records for {cells.shape.volume} chunks"
        raise ValueError(msg)


def _lines(records: Iterable[BlockRecord]) -> str:
    return "".join(record.to_json() + "\n" for record in records)
