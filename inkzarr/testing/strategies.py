"""Hypothesis strategies for places in volumes; the only module that needs hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from inkzarr.core.geometry import Box, Windows, Zyx


def shapes(least: int = 1, most: int = 40) -> st.SearchStrategy[Zyx]:
    """Shapes of `least` to `most` voxels along each axis."""
    edge = st.integers(least, most)
    return st.builds(Zyx, edge, edge, edge)


@st.composite
def boxes(draw: st.DrawFn, shape: Zyx) -> Box:
    """Boxes inside a volume of `shape`, never empty."""
    start = Zyx(*(draw(st.integers(0, size - 1)) for size in shape))
    stop = Zyx(*(draw(st.integers(low + 1, size)) for low, size in zip(start, shape, strict=True)))
    return Box(start, stop)


@st.composite
def windows(draw: st.DrawFn, shape: Zyx, most: int = 16) -> Windows:
    """Windows of up to `most` voxels over a volume of `shape`, with any stride up to the window."""
    window = draw(shapes(1, most))
    stride = Zyx(*(draw(st.integers(1, edge)) for edge in window))
    return Windows(shape, window, stride)
