"""What can go wrong, by what the user can do about it; each kind has its own exit code."""

from __future__ import annotations

import re

USER = re.compile(r"(?<=://)[^\s/?#'\"<>]*@")
QUERY = re.compile(r"(?<!file)(://[^\s?#'\"<>]+)[?#][^\s'\"<>)]*")


def hide_secrets(text: str) -> str:
    """A text without the user, password, query and fragment of any URL in it.

    Examples
    --------
    >>> hide_secrets("nothing at s3://me:secret@host/scan.zarr?token=1 (404)")
    'nothing at s3://host/scan.zarr (404)'
    """
    return QUERY.sub(r"\1", USER.sub("", text))


def one_line(text: str) -> str:
    """A text without line ends, and without what a terminal would take for commands."""
    return "".join(letter if letter.isprintable() else " " for letter in text.strip())


class InkzarrError(Exception):
    """An expected failure, told in one line: the value, the rule, the remedy; no secret of a URL is in it."""

    exit_code = 1

    def __init__(self, told: str = "") -> None:
        super().__init__(hide_secrets(told))


class InputError(InkzarrError):
    """Bad input: a file, an array or a setting breaks a rule; nothing was written."""

    exit_code = 3

    def __init__(self, told: str = "") -> None:
        super().__init__(one_line(told))


class StoreError(InkzarrError):
    """A store failed for good: refused, timed out, cut short or undecodable after every retry."""

    exit_code = 4

    def __init__(self, told: str = "") -> None:
        super().__init__(one_line(told))


class DiskError(StoreError):
    """A local disk failed, or holds a chunk that is lost or does not decode."""

    exit_code = 3


class BlocksFailedError(InkzarrError):
    """Some blocks failed after every retry; the others are written, run again to go on."""

    exit_code = 5


class UnfinishedWarning(UserWarning):
    """What is opened is not written yet in parts, which read as zeros."""


class DamageError(InkzarrError):
    """Verification found stored voxels that are not those that were written."""

    exit_code = 6
