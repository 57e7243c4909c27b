"""Small surfaces on disk."""

import numpy as np

from inkzarr.core.surface import write_tifxyz

HEADER = ("width: 3", "height: 2", "dim: 6", "ordered: true", "type: double", "version: 1")


def ppm(path, lines=HEADER, values=None, extra=b""):
    """A PPM of 2 x 3 pixels, or of whatever the lines say."""
    values = np.arange(1.0, 37) if values is None else values
    path.write_bytes(
        "".join(f"{line}\n" for line in lines).encode() + b"<>\n" + values.astype("<f8").tobytes() + extra
    )
    return path


def grid(folder, points, scale=(0.5, 0.5), **options):
    write_tifxyz(folder, points, scale=scale, **options)
    return folder


def plane(rows, cols, step=2.0):
    row, col = np.mgrid[:rows, :cols] * step
    return np.stack([np.full_like(row, 5.0), row, col], -1)
