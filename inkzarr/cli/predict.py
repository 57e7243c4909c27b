"""inkzarr predict."""

from __future__ import annotations

from typing import Any

import click

from inkzarr.cli.options import OneOrThree, cached, run, sort_options, writing


@click.command("predict")
@click.argument("volume")
@click.argument("checkpoint", type=click.Path())
@click.argument("out")
@click.option("--window", type=OneOrThree(), default="128", show_default=True)
@click.option("--overlap", type=float, default=0.5, show_default=True, help="Part that neighbours share.")
@click.option("--blend", type=click.Choice(["gaussian", "constant"]), default="gaussian", show_default=True)
@click.option("--block", type=OneOrThree(), help="Changes no voxel; default: 128,256,256; on a GPU wider.")
@click.option("--batch", type=click.IntRange(1), help="Windows at once; default: one a core, 4 on a GPU.")
@click.option("--air", type=float, default=0, show_default=True, help="Windows of at most this are skipped.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True
)
@click.option("--axes", help="Order in which the network saw axes; yxz for the original project's.")
@click.option("--box", metavar="Z0:Z1,Y0:Y1,X0:X1", help="Predict this box only.")
@writing
@cached
def command(volume: str, checkpoint: str, out: str, plan: bool, **given: Any) -> None:  # noqa: ANN401
    """Predict ink over a whole volume, or a box of it, into OUT; run again to go on.

    \b
    inkzarr predict scan.zarr unet.pt prediction.zarr --plan
    inkzarr predict scan.zarr unet.pt prediction.zarr --window 64 --box 0:512,:,:
    """
    from inkzarr.predict import PredictSettings, plan_predict, predict_volume

    settings, options, rest = sort_options(given, PredictSettings)
    run(plan_predict if plan else predict_volume, volume, checkpoint, out, settings, options, **rest)
