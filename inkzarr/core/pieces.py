"""Counting the labelled voxels of windows in a chunk; compiled."""

from __future__ import annotations

from numba import njit


@njit(nogil=True, cache=True)
def count_pieces(ink, count, threshold, of_z, of_y, of_x, pieces):
    """Labelled and ink voxels of each piece of a chunk.

    Parameters
    ----------
    ink, count : numpy.ndarray of uint8 and uint16, z y x
        A chunk of a label group.
    threshold : int
        Mean value from which a voxel is ink.
    of_z, of_y, of_x : numpy.ndarray of int64
        Piece of each voxel along each axis.
    pieces : numpy.ndarray of int64, (pieces along z, y, x, 2)
        Labelled and ink voxels are added to it.
    """
    for i in range(count.shape[0]):
        for j in range(count.shape[1]):
            for k in range(count.shape[2]):
                if count[i, j, k]:
                    pieces[of_z[i], of_y[j], of_x[k], 0] += 1
                    pieces[of_z[i], of_y[j], of_x[k], 1] += ink[i, j, k] >= threshold
