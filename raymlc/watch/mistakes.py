"""The labels that a model disagrees with, as rows of a CSV and as a contact sheet to look at."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image

from raymlc.data.store import Progress, decode, open_image
from raymlc.training.mistakes import Mistake, Mistakes

COLUMNS = (
    "head",
    "image_path",
    "row",
    "class",
    "label",
    "prediction",
    "label_probability",
    "prediction_probability",
)
PICTURES = 100  # of a head on the sheet
_SIDE = 160  # pixels, the longer one of a thumbnail
_QUALITY = 80  # of its JPEG
_TURNED = range(5, 9)  # EXIF orientations that swap width and height
_ORIENTATION = 0x0112

_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.4 system-ui, sans-serif; margin: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
nav a { margin-right: 1rem; white-space: nowrap; }
.sheet { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
figure { margin: 0; }
figure img { width: 100%; height: 10rem; object-fit: contain; background: #8883; }
figcaption { font-size: .85rem; }
figcaption b { font-weight: 600; } figcaption small { opacity: .75; }
"""


def csv_rows(found: Iterable[Mistakes]) -> Iterator[list[str]]:
    """A row of `COLUMNS` for each mistake, heads in their order, the worst first.

    A probability that is not known is empty.
    """
    for mistakes in found:
        for one in mistakes.worst:
            yield [
                mistakes.head.name,
                one.path,
                str(one.row),
                one.class_,
                one.label,
                one.prediction,
                _number(one.label_probability),
                _number(one.prediction_probability),
            ]


def contact_sheet(
    found: Sequence[Mistakes], table: str, checkpoint: str, progress: Progress | None = None
) -> str:
    """A page of HTML, which needs no other file: pictures with what label and model say of them.

    The first `PICTURES` of each head. table, checkpoint: what the page calls the labels' table and
    the model.
    """
    shown = [mistakes.worst[:PICTURES] for mistakes in found]
    thumbnails = _thumbnails([one.image for some in shown for one in some], progress)
    title = escape(f"Labels of {table} that the model disagrees with")
    links = [
        f'<a href="#head{number}">{escape(mistakes.head.name)}</a>'
        for number, mistakes in enumerate(found)
    ]
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>",
        f"<p>Model: {escape(checkpoint)}. It is surest of the first pictures: there either the"
        " label is wrong, or the model is most of all.</p>",
        f"<nav>{' '.join(links)}</nav>",
    ]
    for number, (mistakes, some) in enumerate(zip(found, shown, strict=True)):
        parts.append(f'<h2 id="head{number}">{escape(mistakes.head.name)}</h2>')
        parts.append(f"<p>{summary(mistakes, len(some), 'here').capitalize()}.</p>")
        parts.append('<div class="sheet">')
        parts += [_figure(one, thumbnails[one.image]) for one in some]
        parts.append("</div>")
    return "\n".join([*parts, "</body>\n</html>\n"])


def summary(mistakes: Mistakes, there: int, where: str) -> str:
    """How many labels of a head are disagreed with, and how many of those are `where`."""
    of = "labels of single classes" if mistakes.head.multi_hot else "labels"
    if not mistakes.total:
        return f"the model agrees with all of {mistakes.known:,} {of}"
    which = "all" if there == mistakes.total else f"the worst {there:,}"
    return (
        f"the model disagrees with {mistakes.total:,} of {mistakes.known:,} {of}; {which} {where}"
    )


def _figure(one: Mistake, thumbnail: str) -> str:
    label, prediction = one.label, one.prediction
    if one.class_:
        label, prediction = f"{one.class_}: {label}", f"{one.class_}: {prediction}"
    alt = escape(f"{one.path}, labelled {label}, predicted {prediction}")
    return (
        f'<figure><img src="{thumbnail}" alt="{alt}"><figcaption>'
        f"label <b>{escape(label)}</b>{_share(one.label_probability)}<br>"
        f"model <b>{escape(prediction)}</b>{_share(one.prediction_probability)}<br>"
        f"<small>row {one.row}, {escape(one.path)}</small></figcaption></figure>"
    )


def _thumbnails(images: Iterable[Path], progress: Progress | None) -> dict[Path, str]:
    """Of each image a small JPEG as a data URL."""
    different = list(dict.fromkeys(images))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        urls = pool.map(_thumbnail, different)
        done: Iterable[int] = range(len(different))
        if progress is not None and different:
            done = progress(done, f"drawing {len(different):,} thumbnails", len(different))
        return {different[index]: url for index, url in zip(done, urls, strict=True)}


def _thumbnail(path: Path) -> str:
    file_in_memory = BytesIO()
    thumbnail(path, _SIDE).save(file_in_memory, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file_in_memory.getvalue()).decode()}"


def thumbnail(path: Path, side: int) -> Image.Image:
    """An image as RGB, upright, in its shape, with so many pixels on its longer side."""
    with open_image(path) as file:
        width, height = file.size
        if file.getexif().get(_ORIENTATION) in _TURNED:
            width, height = height, width
    scale = side / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # `decode` makes a square of whatever mode a file has; here it gets its shape back.
    return Image.fromarray(decode(path, side)).resize(size, Image.Resampling.BICUBIC)


def _number(probability: float) -> str:
    return "" if math.isnan(probability) else f"{probability:.6g}"


def _share(probability: float) -> str:
    return "" if math.isnan(probability) else f" {probability:.1%}"
