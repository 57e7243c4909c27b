"""What a process fetched of a remote volume, and what of that it needed."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Traffic:
    """Bytes of chunks.

    Parameters
    ----------
    needed : int
        Of the chunks that were read, each counted once, wherever they came from.
    fetched : int
        That came over the line.

    Examples
    --------
    >>> traffic = Traffic()
    >>> traffic.note("0/0/0", 100, fetched=100)
    >>> traffic.note("0/0/0", 100, fetched=100)
    >>> traffic.needed, traffic.fetched
    (100, 200)
    """

    needed: int = 0
    fetched: int = 0
    _seen: set[int] = field(default_factory=set, repr=False)

    def note(self, name: str, nbytes: int, *, fetched: int) -> None:
        """A chunk, or a part of a shard, was read."""
        self.fetched += fetched
        if (known := hash(name)) not in self._seen:
            self._seen.add(known)
            self.needed += nbytes
