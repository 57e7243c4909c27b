"""What can go wrong, by what the user can do about it; each kind has its own exit code."""


class InkzarrError(Exception):
    """An expected failure, told in one line: the value, the rule, the remedy."""

    exit_code = 1


class InputError(InkzarrError):
    """Bad input: a file, an array or a setting breaks a rule; nothing was written."""

    exit_code = 3


class StoreError(InkzarrError):
    """A store failed for good: refused, timed out, cut short or undecodable after every retry."""

    exit_code = 4


class DiskError(StoreError):
    """A local disk failed, or holds a chunk that is lost or does not decode."""

    exit_code = 3


class BlocksFailedError(InkzarrError):
    """Some blocks failed after every retry; the others are written, run again to go on."""

    exit_code = 5


class DamageError(InkzarrError):
    """Verification found stored voxels that are not those that were written."""

    exit_code = 6
