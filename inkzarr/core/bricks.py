"""Where a block's votes are counted: bricks of 1 x 4 x 4 voxels, given a place once somebody votes in them.

::

    brick (z, y / 4, x / 4)         mine   of the segment that votes now  --+
      0  1  2  3                                                            +--> place in the pool
      4  5  6  7    a number        held   of the segments before it      --+
      8  9 10 11    a voxel
     12 13 14 15                    reached  bricks of the segment          free  places given back

A sheet is thin: most of a block holds no vote. What is voted for lies side by side in the pool, and where
only one segment votes, as nearly everywhere, its bricks are the block's once it is through. Only where
segments meet must voxels be looked at, to add up votes and to say whether segments disagree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

EDGE_SHIFT = 2
EDGE = 1 << EDGE_SHIFT
VOXELS_SHIFT = 2 * EDGE_SHIFT
VOXELS = 1 << VOXELS_SHIFT
"""Of a brick: with numbers of 32 bits, what the processor takes from memory at once."""
MOST_COUNT = 65535
INK = 128
"""Mean value from which a voxel is said to be ink."""


class Layout(NamedTuple):
    """How a voxel's votes are one whole number.

    Parameters
    ----------
    shift : int
        The bit from which votes are counted; below is the sum of their values.
    most : int
        Votes that it holds, one less than a power of two.
    conflict : int
        The bit that tells that a segment said ink, and another one none.
    """

    shift: int
    most: int
    conflict: int

    @property
    def dtype(self) -> np.dtype:
        """Of the numbers."""
        return np.dtype(np.int32 if self.conflict < 1 << 31 else np.int64)


NARROW = Layout(18, (1 << 10) - 1, 1 << 29)
"""Fast, and enough unless pixels are far closer than voxels, or boxes deep."""
WIDE = Layout(34, (1 << 26) - 1, 1 << 60)
"""67 million votes for one voxel: further ones are not counted, so that nothing wraps."""


class Bricks(NamedTuple):
    """The votes for a block's voxels, see above.

    Parameters
    ----------
    pool : numpy.ndarray of int32 or int64
        16 numbers a place; place 0 is nobody's.
    mine, held : numpy.ndarray of uint32
        By brick, in C order; 0: no place.
    reached, free : numpy.ndarray of uint32
        Bricks, and places.
    sizes : numpy.ndarray of int64, (3,)
        How many are reached; places ever given; how many are free.
    """

    pool: NDArray[np.integer]
    mine: NDArray[np.uint32]
    held: NDArray[np.uint32]
    reached: NDArray[np.uint32]
    free: NDArray[np.uint32]
    sizes: NDArray[np.int64]

    @classmethod
    def room(cls, bricks: int, dtype: np.dtype) -> Bricks:
        """For so many bricks; what is not used takes no memory."""
        pool = np.empty((2 * bricks + 1) * VOXELS, dtype)
        mine, held = np.zeros((2, bricks), np.uint32)
        reached, free = np.empty((2, bricks), np.uint32)
        return cls(pool, mine, held, reached, free, np.zeros(3, np.int64))

    def forget(self) -> None:
        """Forget all votes, which are settled."""
        self.held[:] = 0
        self.sizes[:] = 0


@njit(nogil=True, cache=True)
def settle(bricks, layout):
    """Make the votes of the segment that voted the block's; whether a voxel had more than it holds.

    Parameters
    ----------
    bricks : Bricks
        The votes.
    layout : Layout
        Of the pool. Votes beyond the most that it holds are not added.

    Returns
    -------
    bool
        Whether any were not.
    """
    pool, mine, held, reached, free, sizes = bricks
    shift, most, conflict = layout
    low = (1 << shift) - 1
    beyond = False
    for at in range(sizes[0]):
        brick = reached[at]
        place, before = mine[brick], held[brick]
        mine[brick] = 0
        if not before:
            held[brick] = place
            continue
        free[sizes[2]] = place
        sizes[2] += 1
        theirs = np.uintp(before) << np.uintp(VOXELS_SHIFT)
        ours = np.uintp(place) << np.uintp(VOXELS_SHIFT)
        for k in range(VOXELS):
            old, new = np.int64(pool[theirs + np.uintp(k)]), np.int64(pool[ours + np.uintp(k)])
            votes, more = (old & (conflict - 1)) >> shift, new >> shift
            if not more:
                continue
            # segments that agreed so far say together what each of them said
            inked = 2 * (old & low) + votes >= 2 * INK * votes
            if votes and inked != (2 * (new & low) + more >= 2 * INK * more):
                old |= conflict
            full = votes + more > most
            beyond |= full
            pool[theirs + np.uintp(k)] = old if full else old + new
    sizes[0] = 0
    return beyond


def _finisher(layout: Layout, real: type[np.floating]) -> Callable[..., tuple[int, ...]]:
    """`finish` for one layout; as that is known when it is compiled, several voxels are computed at once."""
    whole, shift, conflict = layout.dtype.type, layout.shift, layout.conflict
    sums, counted = (1 << shift) - 1, conflict - 1

    @njit(nogil=True, cache=True)
    def finish(bricks, across, start, ink, count):
        pool, held = bricks.pool, bricks.held
        depth, height, width = ink.shape
        room = -(-height // EDGE) * -(-width // EDGE)
        corners, fetched = np.empty((2, room), np.int64), np.empty(room * VOXELS, pool.dtype)
        means, numbers = np.empty(len(fetched), np.uint8), np.empty(len(fetched), np.uint16)
        labelled = painted = conflicts = cast = 0
        for z in range(depth):
            # bricks lie far apart: those of a plane are fetched first, and none waits for another
            n = 0
            for y in range(0, height, EDGE):
                brick = ((start[0] + z) * across[0] + (start[1] + y) // EDGE) * across[1] + start[2] // EDGE
                for x in range(0, width, EDGE):
                    place = held[brick]
                    brick += 1
                    if place:
                        begin, to = np.uintp(place) << np.uintp(VOXELS_SHIFT), np.uintp(n * VOXELS)
                        for k in range(VOXELS):
                            fetched[to + np.uintp(k)] = pool[begin + np.uintp(k)]
                        corners[0, n], corners[1, n] = y, x
                        n += 1
            for k in range(n * VOXELS):
                votes = fetched[k]
                number = np.int32((votes & whole(counted)) >> whole(shift))
                total = whole(votes & whole(sums))
                # exact: it is 1 / (2 number) or more below the next whole number, and rounding adds less
                mean = np.int32(real(whole(2 * total + number)) / real(np.int32(2 * max(number, 1))))
                means[k], numbers[k] = mean, min(number, np.int32(MOST_COUNT))
                labelled += number > 0
                painted += mean >= INK
                conflicts += votes >= whole(conflict)
                cast += number
            plane, plane_count = ink[z].reshape(-1), count[z].reshape(-1)
            plane[:], plane_count[:] = 0, 0
            for at in range(n):
                y, x = corners[0, at], corners[1, at]
                for j in range(min(EDGE, height - y)):
                    to, of = np.uintp((y + j) * width + x), np.uintp(at * VOXELS + j * EDGE)
                    for k in range(min(EDGE, width - x)):
                        plane[to + np.uintp(k)] = means[of + np.uintp(k)]
                        plane_count[to + np.uintp(k)] = numbers[of + np.uintp(k)]
        return labelled, painted, conflicts, cast

    return finish


_FINISH = {NARROW: _finisher(NARROW, np.float32), WIDE: _finisher(WIDE, np.float64)}


def finish(
    bricks: Bricks,
    layout: Layout,
    across: tuple[int, int],
    start: tuple[int, ...],
    ink: NDArray[np.uint8],
    count: NDArray[np.uint16],
) -> tuple[int, ...]:
    """The stored arrays of a part of a block, from its votes.

    Parameters
    ----------
    bricks : Bricks
        Settled.
    layout : Layout
        Of the pool.
    across : tuple of two int
        Bricks of the block along y and x.
    start : tuple of three int
        First voxel of the part in the block; along y and x a brick's first.
    ink, count : numpy.ndarray of uint8 and uint16, z y x
        Receive the mean, rounded half up, and the votes, at most 65535; 0 without a vote.

    Returns
    -------
    tuple of int
        Voxels with a vote, those of them that are ink, those where segments disagree, and votes.
    """
    return _FINISH[layout](bricks, across, start, ink, count)
