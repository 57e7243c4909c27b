"""How the chunks that inkzarr writes are compressed: blosc, which every Zarr reader knows, with zstd."""

from __future__ import annotations

import numpy as np
from numcodecs import Blosc
from zarr.codecs import BloscCodec

PACKED_AT_ONCE = 1 << 20
"""Bytes. Of itself blosc takes 32 KB at this level: sparse chunks are larger then, and slower to pack."""


def compressor(dtype: np.dtype, zarr_format: int = 2) -> Blosc | BloscCodec:
    """What compresses chunks; voxels of several bytes are split, so that bytes alike lie together.

    Parameters
    ----------
    dtype : numpy.dtype
        Of the voxels.
    zarr_format : int
        2: as numcodecs has it; 3: as zarr.
    """
    split = dtype.itemsize > 1
    if zarr_format == 2:
        shuffle = Blosc.SHUFFLE if split else Blosc.NOSHUFFLE
        return Blosc("zstd", clevel=1, shuffle=shuffle, blocksize=PACKED_AT_ONCE)
    return BloscCodec(
        typesize=dtype.itemsize,
        cname="zstd",
        clevel=1,
        shuffle="shuffle" if split else "noshuffle",
        blocksize=PACKED_AT_ONCE,
    )
