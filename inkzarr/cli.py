"""The command line: one subcommand a stage, each imported inside its command."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from inkzarr.core.errors import InkzarrError
from inkzarr.core.job import RunOptions
from inkzarr.core.schema import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from inkzarr.core.geometry import Zyx

INTERRUPTED = 130
UNFORESEEN = 1
USAGE = 2
RESUMABLE = ("ingest", "predict", "pyramid", "demo")

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


def writing(command: F) -> F:
    """Add the options common to all that write volumes."""
    options = [
        click.option("--scheduler", metavar="ADDRESS", help="A Dask scheduler, tcp://...; default: threads."),
        click.option("--workers", type=click.IntRange(1), help="Blocks in flight."),
        click.option("--memory", type=Bytes(), help="Memory for the blocks in flight, such as 8GB."),
        click.option("--plan", is_flag=True, help="Print what would be done, and stop."),
        click.option("--overwrite", is_flag=True, help="Delete what is at OUT, and start afresh."),
        click.option("--json-logs", is_flag=True, help="Progress as JSON lines."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group(context_settings={"auto_envvar_prefix": "INKZARR", "help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="inkzarr")
def cli() -> None:
    """Find ink in the CT scans of unopened scrolls, out of core.

    \b
    inkzarr ingest slices/ scan.zarr
    inkzarr predict scan.zarr unet.pt prediction.zarr
    """


@cli.command("ingest")
@click.argument("source")
@click.argument("out")
@click.option("--axes", default="zyx", show_default=True, help="Order of the source's axes.")
@click.option("--voxel-size", type=float, help="Micrometres; default: what the source says, else 7.91.")
@click.option("--dtype", type=click.Choice(["uint8", "keep"]), default="uint8", show_default=True)
@click.option("--zarr-format", type=click.Choice(["2", "3"]), default="2", show_default=True)
@click.option("--shard", type=click.IntRange(1), metavar="N", help="Shards of N^3 voxels, Zarr 3 only.")
@writing
@storage
def ingest_command(source: str, out: str, plan: bool, **given: Any) -> None:  # noqa: ANN401
    """Turn slices, HDF5, NRRD or another Zarr into an OME-Zarr of 128^3 chunks.

    uint16 becomes uint8 by its high byte, rounded down; --dtype keep keeps it.

    \b
    inkzarr ingest slices/ scan.zarr --voxel-size 7.91
    inkzarr ingest volume.h5::raw scan.zarr --axes yxz
    """
    from inkzarr.ingest import IngestSettings, ingest, plan_ingest

    given["zarr_format"] = int(given["zarr_format"])
    given["voxel_size_um"] = given.pop("voxel_size")
    settings, options, rest = _split(given, IngestSettings)
    _run(plan_ingest if plan else ingest, source, out, settings, options, **rest)


@cli.command("info")
@click.argument("url")
@storage
def info_command(url: str, storage_options: dict[str, Any] | None) -> None:
    """Print levels, shapes, chunks, codec, voxel size, bytes and lineage of a volume.

    \b
    inkzarr info scan.zarr
    inkzarr info s3://bucket/scan.zarr --storage-options '{"anon": true}'
    """
    from inkzarr.info import info

    click.echo(info(url, storage_options=storage_options))


@cli.command("verify")
@click.argument("url")
@storage
def verify_command(url: str, storage_options: dict[str, Any] | None) -> None:
    """Check every chunk against the ledger; damage ends with exit code 6.

    \b
    inkzarr verify prediction.zarr
    """
    from inkzarr.verify import verify

    report = verify(url, storage_options=storage_options)
    click.echo(report)
    report.raise_for_damage()


@cli.command("labels")
@click.argument("paths", type=click.Path())
@click.argument("ink", type=click.Path())
@click.argument("out")
@click.option("--like", metavar="VOLUME", help="The scan that the labels belong to: shape and voxel size.")
@click.option("--shape", type=OneOrThree(), help="Of the volume, where there is no scan at hand.")
@click.option("--depth", type=float, default=4, show_default=True, help="Voxels on each side of the surface.")
@click.option("--footprint", type=click.Choice(["ray", "box"]), default="ray", show_default=True)
@click.option(
    "--skip-blank", type=click.IntRange(0), default=128, show_default=True, help="0: all blocks vote."
)
@click.option(
    "--only", multiple=True, metavar="ID", help="Take this segment alone; again for more, * for any."
)
@click.option("--exclude", multiple=True, metavar="ID", help="Leave this segment out; again for more.")
@click.option("--all-versions", is_flag=True, help="Keep ids that differ in the last character only.")
@click.option(
    "--flat", type=float, metavar="Z", help="PATHS is the flattened volume; its surface is slice Z."
)
@click.option("--block", type=click.IntRange(1), default=256, show_default=True, help="Changes no voxel.")
@writing
@storage
def labels_command(paths: str, ink: str, out: str, plan: bool, **given: Any) -> None:  # noqa: ANN401
    """Bring the 2D ink labels of all segments back into the 3D volume.

    \b
    inkzarr labels paths/ inklabels/ labels.zarr --like scan.zarr
    inkzarr labels paths/ inklabels/ labels.zarr --shape 14376,7888,8096 --exclude '2023*' --plan
    inkzarr labels layers.zarr word.png labels.zarr --flat 32
    """
    from inkzarr.labels import LabelSettings, labels, plan_labels

    settings, options, rest = _split(given, LabelSettings)
    _run(plan_labels if plan else labels, paths, ink, out, settings, options, **rest)


@cli.command("patches")
@click.argument("labels")
@click.argument("out", type=click.Path())
@click.option("--window", type=OneOrThree(), default="128", show_default=True)
@click.option("--stride", type=OneOrThree(), help="Default: the window.")
@click.option(
    "--min-labelled", type=click.IntRange(1), default=1, show_default=True, help="Voxels with a label."
)
@click.option("--workers", type=click.IntRange(1), help="Chunks read at once.")
@storage
def patches_command(labels: str, out: str, **given: Any) -> None:  # noqa: ANN401
    """List the windows that hold labels, as Parquet or .npy.

    \b
    inkzarr patches labels.zarr patches.parquet --stride 64
    """
    from inkzarr.patches import PatchSettings, patches

    settings, options, rest = _split(given, PatchSettings)
    _run(patches, labels, out, settings, workers=options.workers, **rest)


@cli.command("split")
@click.argument("train", metavar="TRAIN_PATCHES", type=click.Path())
@click.argument("valid", metavar="VALID_PATCHES", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--margin", type=click.FloatRange(0), default=512, show_default=True, help="Voxels.")
@click.option("--window", type=OneOrThree(), help="Default: what the tables tell, else 128.")
@click.option(
    "--jitter", type=click.IntRange(0), default=0, show_default=True, help="Shift of a training crop."
)
@click.option("--rule", type=click.Choice(["box", "corner"]), default="box", show_default=True)
@click.option("--region", metavar="Z0:Z1,Y0:Y1,X0:X1", help="Windows of TRAIN_PATCHES in it are validation.")
def split_command(train: str, valid: str, out: str, region: str | None, **given: Any) -> None:  # noqa: ANN401
    """Keep the training windows that are far from validation; draw both in a PNG beside OUT.

    With --region there is one table, and VALID_PATCHES is written too.

    \b
    inkzarr split segments.parquet held_out.parquet train.parquet --jitter 16
    inkzarr split all.parquet valid.parquet train.parquet --region 0:2000,:,:
    """
    from inkzarr.split import SplitSettings, split, split_by_region

    settings = SplitSettings(**given)
    if region is None:
        _run(split, train, valid, out, settings)
    else:
        _run(split_by_region, train, region, valid, out, settings)


@cli.command("predict")
@click.argument("volume")
@click.argument("checkpoint", type=click.Path())
@click.argument("out")
@click.option("--window", type=OneOrThree(), default="128", show_default=True)
@click.option("--overlap", type=float, default=0.5, show_default=True, help="Part that neighbours share.")
@click.option("--blend", type=click.Choice(["gaussian", "constant"]), default="gaussian", show_default=True)
@click.option("--block", type=OneOrThree(), default="512", show_default=True, help="Changes no voxel.")
@click.option("--batch", type=click.IntRange(1), help="Windows at once; default: one a core, 4 on a GPU.")
@click.option("--air", type=float, default=0, show_default=True, help="Windows of at most this are skipped.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True
)
@click.option("--axes", help="Order in which the network saw axes; yxz for the original project's.")
@click.option("--box", metavar="Z0:Z1,Y0:Y1,X0:X1", help="Predict this box only.")
@writing
@storage
def predict_command(volume: str, checkpoint: str, out: str, plan: bool, **given: Any) -> None:  # noqa: ANN401
    """Predict ink over a whole volume, or a box of it, into OUT; run again to go on.

    \b
    inkzarr predict scan.zarr unet.pt prediction.zarr --plan
    inkzarr predict scan.zarr unet.pt prediction.zarr --window 64 --box 0:512,:,:
    """
    from inkzarr.predict import PredictSettings, plan_predict, predict_volume

    settings, options, rest = _split(given, PredictSettings)
    _run(plan_predict if plan else predict_volume, volume, checkpoint, out, settings, options, **rest)


@cli.command("pyramid")
@click.argument("volume")
@click.option("--levels", type=click.IntRange(1), help="Default: until a level fits one chunk.")
@click.option("--reduce", type=click.Choice(["mean", "max"]), default="mean", show_default=True)
@writing
@storage
def pyramid_command(volume: str, plan: bool, levels: int | None, reduce: str, **given: Any) -> None:  # noqa: ANN401
    """Add coarser levels, each half as fine as the one before; max suits labels.

    \b
    inkzarr pyramid scan.zarr --levels 5
    """
    from inkzarr.pyramid import plan_pyramid, pyramid

    _, options, rest = _split(given, None)
    _run(plan_pyramid if plan else pyramid, volume, levels=levels, reduce=reduce, options=options, **rest)


@cli.command("export")
@click.argument("volume")
@click.argument("out", type=click.Path())
@click.option("--box", metavar="Z0:Z1,Y0:Y1,X0:X1", help="Default: the whole volume.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
@storage
def export_command(volume: str, out: str, **given: Any) -> None:  # noqa: ANN401
    """Write a box as .nrrd or .tif, by the name of OUT.

    \b
    inkzarr export prediction.zarr letters.nrrd --box 0:200,1000:1500,1000:1500
    """
    from inkzarr.export import export

    click.echo(export(volume, out, **given))


@cli.command("demo")
@click.argument("folder", type=click.Path(), default="demo")
def demo_command(folder: str) -> None:
    """Run the main job on a synthetic scroll with ink of known place, and draw the result.

    \b
    inkzarr demo
    """
    from inkzarr.demo import demo

    click.echo(demo(folder))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code that `docs` list; a bug shows its traceback."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        result = cli.main(arguments, prog_name="inkzarr", standalone_mode=False)
    except InkzarrError as error:
        _leave(f"inkzarr: {error}", error.exit_code)
    except click.UsageError as error:
        error.show()
        sys.exit(USAGE)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        given = list(sys.argv[1:] if arguments is None else arguments)
        again = shlex.join(["inkzarr", *(word for word in given if word != "--overwrite")])
        resumes = f"; what is written stays. To go on: {again}" if given[:1] and given[0] in RESUMABLE else ""
        _leave(f"inkzarr: interrupted{resumes}", INTERRUPTED)
    sys.exit(result if isinstance(result, int) else 0)


def _leave(message: str, code: int) -> NoReturn:
    """Exit at once: blocks that still run on other threads are not waited for, nor recorded."""
    click.echo(message, err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _json(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        msg = "it must be a JSON object, such as '{\"anon\": true}'"
        raise click.BadParameter(msg)
    return found


def _split(given: dict[str, Any], settings: type | None) -> tuple[Any, RunOptions, dict[str, Any]]:
    """Sort a command's options into the stage's settings, the run's options, and the rest."""
    run = {name: given.pop(name) for name in RunOptions.__dataclass_fields__ if name in given}
    fields = getattr(settings, "__dataclass_fields__", {})
    own = {name: given.pop(name) for name in fields if name in given}
    return settings(**own) if settings else None, RunOptions(**run), given


def _run(call: Callable[..., object], *arguments: object, **options: object) -> None:
    result = call(*arguments, **options)
    for line in result if isinstance(result, list) else [result]:
        click.echo(line)
