"""What the commands share: kinds of parameters, options common to many, and how a stage is run."""

from __future__ import annotations

import functools
import json
import os
import re
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
from click.core import ParameterSource

from inkzarr.core.errors import hide_secrets
from inkzarr.core.job import RunOptions
from inkzarr.core.ledger import OUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from inkzarr.core.geometry import Zyx

LONGEST_NUMBER = 20
"""Digits of an amount of memory."""
PASSING = {*RunOptions.__dataclass_fields__, "plan", "storage_options", "cache"}
"""Options that change nothing that is written, or hold secrets."""
WRITTEN = {"pyramid": "volume", "components": "labels"}
"""What names the volume that a command writes, where that is not ``out``."""

F = TypeVar("F", bound="Callable[..., Any]")


class Bytes(click.ParamType[int]):
    """An amount of memory: ``8GB``, ``500MB``, or a plain number of bytes."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401
        """Read it; k, M, G and T are powers of 1000, Ki, Mi, Gi and Ti of 1024."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?\s*", str(value), re.IGNORECASE)
        if match is None:
            self.fail(f"{value!r} is no amount of memory: write 8GB or 500MB", param, ctx)
        if len(match[1]) > LONGEST_NUMBER:
            self.fail(f"{match[1][:LONGEST_NUMBER]}... is more memory than there is", param, ctx)
        base = 1024 if match[3] else 1000
        return int(float(match[1]) * base ** " KMGT".index(match[2].upper() or " "))


class OneOrThree(click.ParamType["Zyx"]):
    """One whole number for all axes, or three as z,y,x."""

    name = "n | z,y,x"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Zyx:  # noqa: ANN401
        """Read it."""
        from inkzarr.core.geometry import Zyx

        parts = value if isinstance(value, tuple) else str(value).split(",")
        try:
            numbers = tuple(int(part) for part in parts)
        except ValueError:
            numbers = ()
        if len(numbers) not in (1, 3) or min(numbers) < 1:
            self.fail(f"{value!r} is not one whole number above 0, or three as z,y,x", param, ctx)
        return Zyx.of(numbers[0] if len(numbers) == 1 else numbers)


def storage(command: F) -> F:
    """Add the option that reaches remote stores."""
    option = click.option(
        "--storage-options",
        metavar="JSON",
        help="For fsspec, as JSON: '{\"anon\": true}'.",
        callback=lambda _ctx, _param, text: _json(text),
    )
    return option(command)


def cached(command: F) -> F:
    """Add the option that keeps remote chunks; with those of `storage`."""

    @functools.wraps(command)
    def with_cache(*, cache: str | None, storage_options: dict[str, Any] | None, **given: Any) -> Any:  # noqa: ANN401
        kept = {} if cache is None else {"cache": cache}
        return command(storage_options={**(storage_options or {}), **kept} or None, **given)

    option = click.option("--cache", metavar="DIR", help="Keep remote chunks here; at most 50 GB.")
    return option(storage(cast("F", with_cache)))


def writing(command: F) -> F:
    """Add the options common to all that write volumes."""
    return writing_over("Delete what is at OUT, and start afresh.")(command)


def writing_over(overwrite: str) -> Callable[[F], F]:
    """As `writing`; `overwrite` is the help of that option."""
    options = [
        click.option("--scheduler", metavar="ADDRESS", help="A Dask scheduler, tcp://...; default: threads."),
        click.option("--workers", type=click.IntRange(1), help="Blocks in flight."),
        click.option("--memory", type=Bytes(), help="Memory for the blocks in flight, such as 8GB."),
        click.option("--plan", is_flag=True, help="Print what would be done, and stop."),
        click.option("--overwrite", is_flag=True, help=overwrite),
        click.option("--json-logs", is_flag=True, help="Progress as JSON lines."),
    ]

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def sort_options(given: dict[str, Any], settings: type | None) -> tuple[Any, RunOptions, dict[str, Any]]:
    """Sort a command's options into the stage's settings, the run's options, and the rest."""
    run = {name: given.pop(name) for name in RunOptions.__dataclass_fields__ if name in given}
    fields = getattr(settings, "__dataclass_fields__", {})
    own = {name: given.pop(name) for name in fields if name in given}
    options = RunOptions(**run, command=_words(click.get_current_context()))
    return settings(**own) if settings else None, options, given


def _words(context: click.Context) -> tuple[str, ...]:
    """The command that runs, as given, but for secrets and for what changes nothing that is written."""
    arguments, options = [str(context.info_name)], []
    out = WRITTEN.get(str(context.info_name), "out")
    for parameter in context.command.params:
        name, value = str(parameter.name), context.params.get(str(parameter.name))
        default = context.get_parameter_source(name) in (ParameterSource.DEFAULT, None)
        if name in PASSING or default or value is None:
            continue
        texts = [OUT] if name == out else _texts(value, several=parameter.multiple)
        if isinstance(parameter, click.Argument):
            arguments += texts
        elif isinstance(value, bool):
            options += [parameter.opts[-1]] if value else []
        else:
            options += [word for text in texts for word in (parameter.opts[-1], text)]
    return (*arguments, *options)


def _texts(value: Any, *, several: bool) -> list[str]:  # noqa: ANN401
    from inkzarr.core.remote import without_secrets

    values = value if several else [value]
    return [",".join(map(str, v)) if isinstance(v, tuple) else without_secrets(str(v)) for v in values]


def run(call: Callable[..., object], *arguments: object, **options: object) -> None:
    """Call a stage and print what it returns; of the processes of ``torchrun`` the first does."""
    result = call(*arguments, **options)
    if os.environ.get("RANK", "0") != "0":
        return
    for line in result if isinstance(result, list) else [result]:
        click.echo(hide_secrets(str(line)))


def _json(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        msg = "it must be a JSON object, such as '{\"anon\": true}'"
        raise click.BadParameter(msg)
    return found
