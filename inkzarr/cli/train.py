"""inkzarr train."""

from __future__ import annotations

from typing import Any

import click

from inkzarr.cli.options import cached, run


@click.command("train")
@click.argument("volume")
@click.argument("labels")
@click.argument("patches", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--valid-labels", metavar="LABELS", help="Default: the labels that are trained on.")
@click.option("--valid-patches", type=click.Path(), help="Windows to score after each epoch.")
@click.option("--init", type=click.Path(), metavar="CHECKPOINT", help="Weights to start from.")
@click.option("--config", type=click.Path(), metavar="TOML", help="Everything else.")
@click.option("--resume", is_flag=True, help="Go on with the run in OUT.")
@cached
def command(volume: str, labels: str, patches: str, out: str, config: str | None, **given: Any) -> None:  # noqa: ANN401
    """Train a 3D UNet on labelled windows; OUT is a folder for checkpoints, log and sample pictures.

    \b
    inkzarr train scan.zarr labels.zarr train.parquet run/ --valid-patches valid.parquet --config run.toml
    inkzarr train scan.zarr labels.zarr train.parquet run/ --config run.toml --resume
    torchrun --nproc-per-node 4 --no-python inkzarr train scan.zarr labels.zarr train.parquet run/
    """
    from inkzarr.nn.config import Config, read_config
    from inkzarr.train import train

    rest = {name: given.pop(name) for name in ("resume", "storage_options")}
    chosen = (Config() if config is None else read_config(config)).with_(**given)
    run(train, volume, labels, patches, out, chosen, **rest)
