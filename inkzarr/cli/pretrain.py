"""inkzarr pretrain."""

from __future__ import annotations

from typing import Any

import click

from inkzarr.cli.options import cached, run


@click.command("pretrain")
@click.argument("volumes", metavar="VOLUME...", nargs=-1, required=True)
@click.argument("out", type=click.Path())
@click.option("--init", type=click.Path(), metavar="CHECKPOINT", help="Weights to start from.")
@click.option("--config", type=click.Path(), metavar="TOML", help="Everything else.")
@click.option("--resume", is_flag=True, help="Go on with the run in OUT.")
@cached
def command(volumes: tuple[str, ...], out: str, config: str | None, **given: Any) -> None:  # noqa: ANN401
    """Pretrain a 3D UNet on scans without labels, by hiding parts of them; for train --init.

    \b
    inkzarr pretrain scroll1.zarr scroll2.zarr pretrained/ --config run.toml
    inkzarr train scan.zarr labels.zarr train.parquet run/ --init pretrained/best.pt
    """
    from inkzarr.nn.config import Config, read_config
    from inkzarr.pretrain import pretrain

    rest = {name: given.pop(name) for name in ("resume", "storage_options")}
    chosen = (Config() if config is None else read_config(config)).with_(**given)
    run(pretrain, volumes, out, chosen, **rest)
