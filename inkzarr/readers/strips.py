"""All segments' painted parts: strip by strip for the run, a pixel of each tile for its plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inkzarr.core.buckets import TILE, PixelCount, Rule, Strip, refuse_no_votes, scan_strip
from inkzarr.core.progress import Progress
from inkzarr.readers.painted import paint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inkzarr.readers.segments import Segment

SAMPLES = 50_000
"""Pixels that a plan looks at."""


def painted_strips(
    segments: list[Segment], skip_blank: int, pixels: list[PixelCount], progress: Progress
) -> Iterator[Strip]:
    """The painted parts of all segments; one label and its masks are in memory at a time."""
    for number, segment in enumerate(segments):
        painted = paint(segment, skip_blank)
        pixels[number].blank, pixels[number].unsupervised = painted.blank, painted.unsupervised
        surface = segment.surface.unmasked()
        for row, col, values, used in painted.strips(TILE):
            there = painted.there(slice(row, row + used.shape[0]), slice(col, col + used.shape[1]))
            yield Strip(number, surface, row, col, values, used, there)
        del painted  # before the next one is decoded
        progress.advance(segment.shape[0] * segment.shape[1])


def look(segments: list[Segment], rule: Rule, skip_blank: int) -> tuple[np.ndarray, int, int]:
    """Look at one pixel of each tile: the cells that it touches, painted pixels, and pixels looked at.

    Raises
    ------
    InputError
        A PNG is damaged, or no pixel votes.
    """
    touched = np.zeros(rule.grid.counts, np.bool_)
    painted_pixels = seen = 0
    each = max(1, SAMPLES // len(segments))
    for segment in segments:
        painted = paint(segment, skip_blank)
        painted_pixels += painted.count
        surface, places = segment.surface.unmasked(), list(painted.samples(TILE))
        for row, col in places[:: max(1, len(places) // each)]:
            points, _, valid = surface.tile(slice(row, row + 1), slice(col, col + 1))
            at = np.floor(points[0, 0] + 0.5)
            seen += 1
            there = painted.masked is None or painted.masked[row, col]
            if there and valid[0, 0] and (at >= 0).all() and (at < rule.grid.shape).all():
                touched[tuple((at // rule.grid.cell).astype(int))] = True
    if not touched.any():
        _refuse_no_votes(segments, rule, skip_blank)
    return touched, painted_pixels, seen


def _refuse_no_votes(segments: list[Segment], rule: Rule, skip_blank: int) -> None:
    """Look at all pixels until one votes: those that were looked at have no place."""
    pixels = [PixelCount() for _ in segments]
    total = sum(segment.shape[0] * segment.shape[1] for segment in segments)
    with Progress("looking for votes", total, unit="pixel") as progress:
        for strip in painted_strips(segments, skip_blank, pixels, progress):
            pixels[strip.segment].add(scan_strip(strip, rule))
            if pixels[strip.segment].used:
                return
    refuse_no_votes(pixels)
