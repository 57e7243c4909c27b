"""Taking apart the numbers of a PPM; compiled."""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def split_points(stored, tolerance, points, normals, valid):
    """Points and normals, z y x, of stored x, y, z, nx, ny, nz; valid where finite and not six zeros.

    Parameters
    ----------
    stored : numpy.ndarray of float64, (rows, columns, 6)
        As a PPM holds them.
    tolerance : float
        A normal whose length differs from 1 by more is made a unit vector.
    points, normals, valid : numpy.ndarray
        Receive the result; 0 where not valid.
    """
    for row in range(valid.shape[0]):
        for col in range(valid.shape[1]):
            good, some = True, False
            for i in range(6):
                value = stored[row, col, i]
                good &= np.isfinite(value)
                some |= value != 0
            valid[row, col] = good and some
            for i in range(3):
                points[row, col, i] = stored[row, col, 2 - i] if good else 0.0
                normals[row, col, i] = stored[row, col, 5 - i] if good else 0.0
            z, y, x = normals[row, col, 0], normals[row, col, 1], normals[row, col, 2]
            length = math.sqrt(z * z + y * y + x * x)
            if length > 0 and abs(length - 1) > tolerance:
                for i in range(3):
                    normals[row, col, i] /= length
