"""Pictures of what a model takes for what: confusion matrices, and a grid of its worst mistakes.

Shapes: H and W pixels; N classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from raymlc.training.mistakes import Mistake
from raymlc.watch.confusion import Confusion
from raymlc.watch.mistakes import thumbnail

MOST_CLASSES = 20  # of a matrix
_CELL, _NAME = 34, 150  # pixels of a cell, and of a class's name
_COLUMNS = 6  # of a grid
_TILE, _LINE, _GAP = 144, 16, 8  # pixels of a picture in it, a line of text, and between pictures
_RIGHT, _WRONG = (46, 110, 190), (214, 84, 40)
_INK, _FAINT, _PAPER = (20, 20, 20), (90, 90, 90), (255, 255, 255)
_PLACES = ("found", "missed", "wrongly said")  # of a class of a multi-hot head


def draw_confusion(head: str, one: Confusion) -> NDArray[np.uint8]:
    """A head's counts as a picture (H, W, 3): a row a class, its cells dark by their share of it.

    Of more than MOST_CLASSES those that are confused most, in the table's order. Of a multi-hot
    head each class has how often it was found, missed, and said where it was not.
    """
    if one.multi_hot:
        # As scikit-learn orders them: [[true negatives, false positives], [misses, hits]].
        counts_N3 = np.stack([one.counts[:, 1, 1], one.counts[:, 1, 0], one.counts[:, 0, 1]], 1)
        rows = _most_confused(counts_N3[:, 1:].sum(1))
        right = [[column == 0 for column in range(3)] for _ in rows]
        title = "classes by how often they were"
        return _draw(
            _Matrix(f"{head}: {title}", [one.true[row] for row in rows], _PLACES),
            counts_N3[rows],
            right,
        )
    wrong = one.counts.copy()
    own = range(len(one.predicted))  # the first rows are of the same classes
    wrong[own, own] = 0
    confused = wrong.sum(1)
    confused[: len(one.predicted)] += wrong.sum(0)
    rows = _most_confused(confused)
    columns = [row for row in rows if row < len(one.predicted)]
    right = [[row == column for column in columns] for row in rows]
    few = "" if len(rows) == len(one.true) else f", {len(rows)} most confused of {len(one.true)}"
    names = [one.true[row] for row in rows], [one.predicted[column] for column in columns]
    totals = one.counts.sum(1)[rows]
    title = f"{head}: label (rows), prediction (columns){few}"
    return _draw(_Matrix(title, *names), one.counts[np.ix_(rows, columns)], right, totals)


def draw_mistakes(worst: Sequence[Mistake]) -> NDArray[np.uint8]:
    """Mistakes as a grid of images (H, W, 3), the worst first: the label, then the prediction."""
    columns = max(1, min(_COLUMNS, len(worst)))
    tall, wide = _TILE + 2 * _LINE + _GAP, _TILE + _GAP
    image = Image.new(
        "RGB",
        (columns * wide + _GAP, max(1, math.ceil(len(worst) / columns)) * tall + _GAP),
        _PAPER,
    )
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for place, one in enumerate(worst):
        row, column = divmod(place, columns)
        left, top = _GAP + column * wide, _GAP + row * tall
        small = thumbnail(one.image, _TILE)
        image.paste(small, (left + (_TILE - small.width) // 2, top + (_TILE - small.height) // 2))
        said = {
            one.label: (one.label_probability, _RIGHT),
            one.prediction: (one.prediction_probability, _WRONG),
        }
        for line, (name, (probability, color)) in enumerate(said.items()):
            name = f"{one.class_}: {name}" if one.class_ else name
            share = "" if math.isnan(probability) else f" {probability:.0%}"
            text = _fitting(name, font, _TILE - font.getlength(share)) + share
            draw.text((left, top + _TILE + line * _LINE), text, color, font)
    return np.asarray(image)


@dataclass(frozen=True)
class _Matrix:
    title: str
    rows: Sequence[str]
    columns: Sequence[str]


def _most_confused(wrong_N: NDArray[np.int64]) -> list[int]:
    """The places of the classes to show, in their order."""
    return sorted(np.argsort(-wrong_N, kind="stable")[:MOST_CLASSES].tolist())


def _draw(
    matrix: _Matrix,
    counts: NDArray[np.int64],
    right: Sequence[Sequence[bool]],
    totals: NDArray[np.int64] | None = None,
) -> NDArray[np.uint8]:
    """A matrix as a picture. totals: what a row's cells are shares of; by default its sum."""
    totals = counts.sum(1) if totals is None else totals
    font, small = ImageFont.load_default(13), ImageFont.load_default(11)
    names = [_fitting(name, font, _NAME) for name in matrix.columns]
    above = int(max((font.getlength(name) for name in names), default=0)) + 2 * _LINE + _GAP
    left = int(max((font.getlength(_fitting(n, font, _NAME)) for n in matrix.rows), default=0))
    left += 2 * _GAP
    width = max(left + len(names) * _CELL, int(font.getlength(matrix.title)) + _GAP) + _GAP
    image = Image.new("RGB", (width, above + len(matrix.rows) * _CELL + _GAP), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((_GAP, 4), matrix.title, _INK, font)
    for column, name in enumerate(names):
        # Upright names need more room than a cell has.
        strip = Image.new("RGB", (above - 2 * _LINE, _LINE), _PAPER)
        ImageDraw.Draw(strip).text((0, 0), name, _FAINT, font)
        image.paste(strip.rotate(90, expand=True), (left + column * _CELL + 8, 2 * _LINE - _GAP))
    for row, name in enumerate(matrix.rows):
        top = above + row * _CELL
        draw.text((_GAP, top + 9), _fitting(name, font, _NAME), _FAINT, font)
        for column, count in enumerate(counts[row].tolist()):
            share = count / totals[row] if totals[row] else 0.0
            color = _RIGHT if right[row][column] else _WRONG
            # A tenth of a row is to be seen beside the white of none.
            depth = math.sqrt(share)
            fill = tuple(round(255 + (part - 255) * depth) for part in color)
            box = (left + column * _CELL, top, left + (column + 1) * _CELL - 2, top + _CELL - 2)
            draw.rectangle(box, fill)
            if count:
                ink = _PAPER if depth > 0.6 else _INK
                middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
                draw.text(middle, _short(count), ink, small, anchor="mm")
    return np.asarray(image)


def _short(count: int) -> str:
    """A count in at most four signs or so."""
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k"


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """A text in one line of at most so many pixels, cut at its end."""
    text = " ".join(text.split()) or "?"
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
