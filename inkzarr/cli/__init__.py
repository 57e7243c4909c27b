"""The command line: one subcommand a stage, in a file of its own, each importing its stage inside."""

from __future__ import annotations

import importlib
import logging
import os
import shlex
import signal
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

import click

from inkzarr.core.errors import InkzarrError, hide_secrets
from inkzarr.core.schema import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import FrameType

COMMANDS = (
    "ingest",
    "info",
    "verify",
    "labels",
    "patches",
    "split",
    "pretrain",
    "train",
    "predict",
    "flatten",
    "evaluate",
    "components",
    "pyramid",
    "export",
    "view",
    "demo",
)
BUG = 1
INTERRUPTED = 130
USAGE = 2
RESUMABLE = (
    "ingest",
    "labels",
    "pretrain",
    "train",
    "predict",
    "flatten",
    "components",
    "pyramid",
    "demo",
    "verify",
)
LABELS = "--labels"
"""All that `components` keeps of a run that was interrupted."""
REPAIR = "--repair"
"""Without which `verify` writes nothing."""
STORAGE, HIDDEN = "--storage-options", "..."
RESUMED = ("pretrain", "train")
"""Those that resume only where told to."""


@click.group(context_settings={"auto_envvar_prefix": "INKZARR", "help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="inkzarr")
def cli() -> None:
    """Find ink in the CT scans of unopened scrolls, out of core.

    \b
    inkzarr ingest slices/ scan.zarr
    inkzarr predict scan.zarr unet.pt prediction.zarr
    """


for _name in COMMANDS:
    cli.add_command(importlib.import_module(f"inkzarr.cli.{_name}").command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code that `docs` list; a bug shows its traceback."""
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # a damaged file is one line, not one a tag
        result = cli.main(arguments, prog_name="inkzarr", standalone_mode=False)
    except InkzarrError as error:
        _leave(f"inkzarr: {error}", error.exit_code)
    except click.UsageError as error:
        click.UsageError(hide_secrets(error.format_message()), error.ctx).show()
        sys.exit(USAGE)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        given = list(sys.argv[1:] if arguments is None else arguments)
        _leave(f"inkzarr: interrupted{to_go_on(given)}", INTERRUPTED)
    except Exception:  # noqa: BLE001 - a bug, told as Python would, but for what is secret
        _leave(hide_secrets(traceback.format_exc()), BUG)
    sys.exit(result if isinstance(result, int) else 0)


def to_go_on(given: Sequence[str]) -> str:
    """What an interrupted command kept, and the one that goes on; empty where it kept nothing.

    Examples
    --------
    >>> to_go_on(["ingest", "slices", "scan.zarr", "--overwrite"])
    '; what is written stays. To go on: inkzarr ingest slices scan.zarr'
    """
    stage = given[0] if given else ""
    needed = {"components": LABELS, "verify": REPAIR}.get(stage, "")
    kept = stage in RESUMABLE and any(word.startswith(needed) for word in given)
    if not kept:
        return ""
    again = shlex.join(["inkzarr", *_told(word for word in given if word != "--overwrite")])
    again += " --resume" if stage in RESUMED and "--resume" not in given else ""
    return f"; what is written stays. To go on: {again}"


def _told(words: Iterable[str]) -> Iterator[str]:
    """A command as it may be printed: without users and passwords of URLs, and without storage options."""
    hidden = False
    for word in words:
        name, equals, _ = word.partition("=")
        secret = name == STORAGE and equals
        yield HIDDEN if hidden else f"{STORAGE}={HIDDEN}" if secret else hide_secrets(word)
        hidden = word == STORAGE


def _leave(message: str, code: int) -> NoReturn:
    """Exit at once: blocks that still run on other threads are not waited for, nor recorded."""
    click.echo(message, err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
