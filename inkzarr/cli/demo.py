"""inkzarr demo."""

from __future__ import annotations

import click


@click.command("demo")
@click.argument("folder", type=click.Path(), default="demo")
def command(folder: str) -> None:
    """Run the main job on a synthetic scroll with ink of known place, and draw the result.

    \b
    inkzarr demo
    """
    from inkzarr.demo import demo

    click.echo(demo(folder))
