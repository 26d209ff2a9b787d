"""The confusion matrix as a heat-map.

In: counts, rows the labels and columns the predictions. Out: `Markup` of an inline SVG. Up to 25 classes every cell
has its count; above that the matrix is one small PNG inside the SVG, whose cells are merged above 256 classes.

The diagonal is blue-green, what lies beside it vermilion: two colours that colour-blind readers can tell apart.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from graft.report.plots import compact, svg
from graft.report.wording import shortened

DRAWN_CLASSES = 25
IMAGE_SIDE = 256


def heat_map(counts: Float[np.ndarray, "k k"], names: Sequence[str], *, described: str) -> Markup:
    """A confusion matrix, rows the labels and columns the predictions, coloured by share of the row.

    Up to 25 classes every cell has its count; above that it is one small image with merged cells if need be.
    """
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shares = counts / totals
    if len(names) > DRAWN_CLASSES:
        return _heat_image(shares, described)
    cell = 34.0 if len(names) <= 12 else 28.0
    longest = max(len(shortened(name, 16)) for name in names)
    left, top = 7.2 * longest + 14, 5.6 * longest + 20
    width, height = left + cell * len(names) + 30, top + cell * len(names) + 4
    drawn = [_heat_names(names, cell, left, top)]
    for row, name in enumerate(names):
        for column, other in enumerate(names):
            value = counts[row, column]
            x, y = left + column * cell, top + row * cell
            kind, share = ("right" if row == column else "wrong"), float(shares[row, column])
            seen = 0.12 + 0.88 * share if value else 0.0
            drawn.append(
                Markup(
                    '<g class="cell {}"><title>{} labelled {} and predicted {}, {} of the label</title>'
                    '<rect x="{}" y="{}" width="{}" height="{}" fill-opacity="{}"/>{}</g>'
                ).format(
                    *(kind, f"{value:.0f}", shortened(name, 80), shortened(other, 80), f"{share:.1%}"),
                    *(compact(x + 1), compact(y + 1), compact(cell - 2), compact(cell - 2), compact(seen)),
                    _cell_text(x + cell / 2, y + cell / 2 + 4, value, strong=share > 0.6),
                )
            )
    return svg(described, height, drawn, width=width)


def _cell_text(x: float, y: float, value: float, *, strong: bool) -> Markup:
    if not value:
        return Markup("")
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="middle">{}</text>').format(
        "on" if strong else "off", compact(x), compact(y), f"{value:.0f}"
    )


def _heat_names(names: Sequence[str], cell: float, left: float, top: float) -> Markup:
    drawn = []
    for index, name in enumerate(names):
        middle = (index + 0.5) * cell
        drawn.append(
            Markup(
                '<text class="name" x="{}" y="{}" text-anchor="end">{short}<title>{name}</title></text>'
                '<text class="name" transform="translate({} {}) rotate(-50)">{short}<title>{name}</title></text>'
            ).format(
                *(left - 8, compact(top + middle + 4), compact(left + middle), top - 6),
                short=shortened(name, 16),
                name=shortened(name, 300),
            )
        )
    return Markup("").join(drawn)


def _heat_image(shares: Float[np.ndarray, "k k"], described: str) -> Markup:
    """One PNG whose opacity is the share of the row: blue-green on the diagonal, vermilion beside it."""
    from PIL import Image

    merged = _merged(np.where(shares > 0, 0.3 + 0.7 * shares, 0.0), IMAGE_SIDE)
    pixels = np.zeros((*merged.shape, 4), dtype=np.uint8)
    pixels[..., :3] = (213, 94, 0)
    diagonal = np.arange(len(merged))
    pixels[diagonal, diagonal, :3] = (0, 130, 105)
    pixels[..., 3] = np.clip(merged * 255, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", optimize=True)
    coded = base64.b64encode(stream.getvalue()).decode()
    picture = Markup(
        '<rect class="field" x="0" y="0" width="420" height="420"/>'
        '<image class="pixelated" width="420" height="420" href="data:image/png;base64,{}"/>'
    ).format(coded)
    return svg(described, 420.0, [picture])


def _merged(matrix: Float[np.ndarray, "k k"], limit: int) -> Float[np.ndarray, "s s"]:
    """The largest value of each block, so that the side is at most `limit`."""
    block = math.ceil(len(matrix) / limit)
    side = math.ceil(len(matrix) / block)
    padded = np.zeros((side * block, side * block))
    padded[: len(matrix), : len(matrix)] = matrix
    return padded.reshape(side, block, side, block).max(axis=(1, 3))
