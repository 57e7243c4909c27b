"""Cards: what Jupyter shows of a value; every text is escaped."""

from __future__ import annotations

import base64
import html
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LONGEST = 400
"""Characters of one fact."""


def card(
    title: str,
    facts: Mapping[str, object],
    *,
    table: Sequence[Mapping[str, str]] = (),
    picture: bytes = b"",
    caption: str = "",
    links: Sequence[str] = (),
) -> str:
    """HTML of a value: its title, a table, a picture, and facts in small print.

    Parameters
    ----------
    title : str
        In bold.
    facts : mapping
        Name and value, a line each; what is no text is shown as JSON.
    table : sequence of mappings
        A row each, all with the same columns.
    picture : bytes
        A PNG file.
    caption : str
        Of the picture, or why there is none.
    links : sequence of str
        Names of facts that are URLs of our own making, to be clicked.

    Examples
    --------
    >>> card("a < b", {"windows": 3})
    '<div><b>a &lt; b</b><br><small>windows: 3</small></div>'
    """
    parts = [f"<b>{html.escape(title)}</b>"]
    if table:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in table[0])
        cells = ("".join(f"<td>{html.escape(text)}</td>" for text in row.values()) for row in table)
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    else:
        parts.append("<br>")
    if picture:
        data = base64.b64encode(picture).decode()
        parts.append(f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{data}"><br>')
    if caption:
        parts.append(f"<p>{html.escape(caption)}</p>")
    lines = (
        f"{html.escape(str(name))}: {_shown(value, link=name in links)}" for name, value in facts.items()
    )
    return f"<div>{''.join(parts)}<small>{'<br>'.join(lines)}</small></div>"


def as_text(value: object) -> str:
    """A text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _shown(value: object, *, link: bool) -> str:
    text = as_text(value)
    shown = html.escape(text if len(text) <= LONGEST else f"{text[:LONGEST]} ...")
    return f'<a href="{html.escape(text)}" target="_blank">{shown}</a>' if link else shown
