"""A page of scores: one HTML file with its pictures and curves inside, that needs nothing else."""

from __future__ import annotations

import base64
import html
import json
from typing import TYPE_CHECKING

from inkzarr.core.picture import png

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from inkzarr.core.scores import ScoreSummary

EDGE, LEFT, TOP = 240, 46, 26
"""Of a panel's frame, and the room for its labels, in pixels."""
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1240px;padding:0 1em;color:#1c1c1c}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:1.6em}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.15em .9em .15em 0;text-align:left}
figure{display:inline-block;margin:0 1em 1em 0;vertical-align:top;max-width:100%}
img{max-width:100%;image-rendering:auto;border:1px solid #ccc}figcaption{font-size:.87em;max-width:600px}
svg{font:11px system-ui,sans-serif}.key{display:inline-block;width:.8em;height:.8em;margin-right:.3em}
"""

Points = list[tuple[float, float]]


def score_page(
    title: str,
    scores: Sequence[tuple[str, ScoreSummary]],
    facts: dict[str, str],
    pictures: Sequence[tuple[str, np.ndarray]] = (),
) -> str:
    """The page.

    Parameters
    ----------
    title : str
        Plain text, as are all others; whatever is in them is shown, never executed.
    scores : sequence of (str, ScoreSummary)
        Of what, and how well; at least one, the first with its curves.
    facts : dict of str to str
        What was compared, and how.
    pictures : sequence of (str, numpy.ndarray)
        Captions, and uint8 Y, X or Y, X, 3.

    Returns
    -------
    str
        HTML; the numbers and curves stand in it once more as JSON, for programs.
    """
    shown = "".join(
        f"<figure>{_image(p)}<figcaption>{html.escape(c)}</figcaption></figure>" for c, p in pictures
    )
    told = "".join(f"<tr><th>{html.escape(n)}</th><td>{html.escape(v)}</td></tr>" for n, v in facts.items())
    # a "<" could end the script that holds them
    data = json.dumps({name: summary.to_json() for name, summary in scores}, allow_nan=False).replace(
        "<", "\\u003c"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1><table>{told}</table>"
        f"<h2>Scores</h2>{_table(scores)}"
        + (f"<h2>Pictures</h2>{shown}" if pictures else "")
        + f"<h2>Curves</h2>{_curves(scores[0][1])}"
        + f'<script type="application/json" id="scores">{data}</script></html>\n'
    )


def _image(picture: np.ndarray) -> str:
    coded = base64.b64encode(png(picture)).decode()
    return f'<img alt="" src="data:image/png;base64,{coded}">'


def _table(scores: Sequence[tuple[str, ScoreSummary]]) -> str:
    rows = {
        "AUC": "auc",
        "average precision": "average_precision",
        "best F0.5": "best_f05",
        "at threshold": "best_threshold",
        "Dice there": "dice_best",
        "Dice at 0.5": "dice_half",
        "scored": "count",
        "of them ink": "ink",
    }
    head = "".join(f"<th>{html.escape(name)}</th>" for name, _ in scores)
    lines = [f"<tr><th></th>{head}</tr>"]
    for label, name in rows.items():
        cells = "".join(f"<td>{_number(getattr(summary, name))}</td>" for _, summary in scores)
        lines.append(f"<tr><th>{label}</th>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _number(value: float | None) -> str:
    if value is None:
        return "not defined"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _curves(summary: ScoreSummary) -> str:
    curves = summary.curves
    ends: Points = [(0.0, 0.0)]
    roc = _known(curves.false_positive_rate, curves.recall)
    found = [
        _panel("F0.5 over thresholds", "threshold", "F0.5", _known(curves.threshold, curves.f05)),
        _panel("ROC", "false positive rate", "recall", [*roc, *ends] if roc else [], diagonal=True),
        _panel("Precision and recall", "recall", "precision", _known(curves.recall, curves.precision)),
        _panel(
            "Calibration",
            "mean probability",
            "share of ink",
            [(one.probability, one.ink) for one in summary.calibration],
            diagonal=True,
            dots=True,
        ),
    ]
    return "".join(found)


def _known(x: Sequence[float | None], y: Sequence[float | None]) -> Points:
    return [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]


def _panel(title: str, x: str, y: str, points: Points, *, diagonal: bool = False, dots: bool = False) -> str:
    """One curve in the unit square, as SVG."""

    def place(at: tuple[float, float]) -> tuple[float, float]:
        return LEFT + EDGE * at[0], TOP + EDGE * (1 - at[1])

    parts = [f'<rect x="{LEFT}" y="{TOP}" width="{EDGE}" height="{EDGE}" fill="none" stroke="#999"/>']
    for tick in TICKS:
        right, low = place((tick, tick))
        parts.append(f'<text x="{right:.1f}" y="{TOP + EDGE + 14}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{LEFT - 5}" y="{low + 4:.1f}" text-anchor="end">{tick:g}</text>')
        parts.append(f'<path d="M{LEFT} {low:.1f}h{EDGE}M{right:.1f} {TOP}v{EDGE}" stroke="#e4e4e4"/>')
    if diagonal:
        parts.append(f'<path d="M{LEFT} {TOP + EDGE}l{EDGE} -{EDGE}" stroke="#999" stroke-dasharray="4 3"/>')
    line = " ".join("{:.2f},{:.2f}".format(*place(point)) for point in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#0b5cad" stroke-width="2"/>')
    if dots:
        circles = ('<circle cx="{:.2f}" cy="{:.2f}" r="3" fill="#0b5cad"/>'.format(*place(p)) for p in points)
        parts.extend(circles)
    if not points:
        middle = LEFT + EDGE / 2, TOP + EDGE / 2
        parts.append(f'<text x="{middle[0]}" y="{middle[1]}" text-anchor="middle">not defined</text>')
    width, height = LEFT + EDGE + 20, TOP + EDGE + 36
    words = (
        f'<text x="{LEFT}" y="16" font-size="13" font-weight="600">{title}</text>'
        f'<text x="{LEFT + EDGE / 2}" y="{height - 4}" text-anchor="middle">{x}</text>'
        f'<text transform="translate(11 {TOP + EDGE / 2}) rotate(-90)" text-anchor="middle">{y}</text>'
    )
    size = f'width="{width}" height="{height}"'
    return f'<svg {size} role="img" aria-label="{title}">{"".join(parts)}{words}</svg>'
