"""The built-in data set: small pictures of coloured shapes, drawn here rather than downloaded.

Heads `shape` and `color` are single-label, `marks` is multi-hot. Neighbouring hues overlap, pixels
are noisy, some training labels are wrong and some cells empty: settings matter, and none reaches 1.

Suffixes: N rows, M marks, P points, HWC a picture, 2 the x and y of a point.
"""

import colorsys
import csv
import json
import math
import shutil
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from raymlc.errors import UserError

# The share of the pictures that show each class; of the marks, each is there or not by itself.
SHAPE_SHARE = {
    "circle": 0.28,
    "square": 0.22,
    "triangle": 0.18,
    "star": 0.14,
    "cross": 0.10,
    "ring": 0.08,
}
COLOR_SHARE = {
    "red": 0.25,
    "orange": 0.19,
    "blue": 0.15,
    "green": 0.12,
    "yellow": 0.10,
    "purple": 0.08,
    "teal": 0.06,
    "pink": 0.05,
}
MARK_SHARE = {"dot": 0.45, "stripe": 0.35, "border": 0.25}
MISSING_SHARE = 0.05  # of the cells of each head
WRONG_SHARE = 0.03  # of the training cells of each single-label head

# One row for each class comes first and is labelled without fault: train then knows every class.
FAULTLESS = max(len(SHAPE_SHARE), len(COLOR_SHARE))
FEWEST_ROWS = FAULTLESS * 5 // 4

# Sizes in pixels, lightness in steps of 0 to 255. With these, a small network learns much in a few
# epochs and has more to learn: each mark is wide enough to be seen after a few poolings.
SIDE = 48
CANVAS = 2 * SIDE  # drawn larger, then averaged down, so that edges are smooth
PIXEL_SD = 8.0
WHITE = (235, 235, 235)
BLACK = (20, 20, 20)
HUE = {
    "red": 0,
    "orange": 24,
    "blue": 218,
    "green": 118,
    "yellow": 50,
    "purple": 272,
    "teal": 176,
    "pink": 328,
}  # in degrees
HUE_SD = 9.0  # in degrees; red and orange overlap

STAMP = "demo.json"  # in the folder, names the drawing that it holds


class Drawn(NamedTuple):
    """What each picture shows: the truth, before faults are put into the labels."""

    shape: NDArray[np.int64]  # (N), numbers in the order of SHAPE_SHARE
    color: NDArray[np.int64]  # (N), numbers in the order of COLOR_SHARE
    marks: NDArray[np.bool_]  # (N, M), M in the order of MARK_SHARE


def draw_demo(folder: Path, rows: int = 2000, seed: int = 0) -> None:
    """Draw the built-in data set into `folder`, unless it is there already.

    Makes `images/0000.png` and so on, square RGB pictures; `val.csv` with the last `rows // 5`
    rows, and `train.csv` with the others. Their columns are image_path (relative to `folder`),
    shape, color and marks. A marks cell holds names joined by `|`, or a lone `|` if no mark is
    there. In any head an empty cell is a missing label.

    The same rows and seed give the same bytes under the same numpy and Pillow. The folder appears
    in one step, when it is complete, so any number of processes may ask for it at once.

    rows: at least 10.
    seed: at least 0.
    Raises UserError if rows or seed is out of range, or if `folder` holds anything but this very
        drawing; OSError if it cannot be written.
    """
    if rows < FEWEST_ROWS:
        raise UserError(
            f"rows of the demo must be at least {FEWEST_ROWS}, for train to hold every class,"
            f" but are {rows}; ask for more"
        )
    if seed < 0:
        raise UserError(f"seed of the demo must be at least 0, but is {seed}; give another")
    folder = folder.resolve()
    stamp = json.dumps({"rows": rows, "seed": seed})
    if _is_drawn(folder, stamp):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f"{folder.name}.{uuid4().hex}.part")
    try:
        _draw_folder(draft, rows, seed)
        (draft / STAMP).write_text(stamp, encoding="utf-8")
        try:
            draft.rename(folder)
        except OSError:  # another process may have been faster
            if not _is_drawn(folder, stamp):
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _is_drawn(folder: Path, stamp: str) -> bool:
    """Whether the drawing is there; UserError if something else is."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    file = folder / STAMP
    found = file.read_text(encoding="utf-8") if file.is_file() else "something else"
    if found != stamp:
        raise UserError(
            f"the demo {stamp} needs a folder of its own, but {folder} holds {found};"
            " name another folder or delete this one"
        )
    return True


def _draw_folder(folder: Path, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    train_rows = rows - rows // 5
    drawn = draw_contents(rows, rng)
    table = label_rows(drawn, train_rows, rng)
    (folder / "images").mkdir(parents=True)
    shapes, colors = list(SHAPE_SHARE), list(COLOR_SHARE)
    for (image_path, *_), shape, color, on_M in zip(table, *drawn, strict=True):
        marks = {name for name, on in zip(MARK_SHARE, on_M, strict=True) if on}
        picture = draw_picture(shapes[shape], colors[color], marks, rng)
        picture.save(folder / image_path, compress_level=1)
    for name, part in (("train.csv", table[:train_rows]), ("val.csv", table[train_rows:])):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["image_path", "shape", "color", "marks"])
            writer.writerows(part)


def draw_contents(rows: int, rng: np.random.Generator) -> Drawn:
    """Choose what each picture shows; every class is among the first rows."""
    shape_N = rng.choice(len(SHAPE_SHARE), size=rows, p=list(SHAPE_SHARE.values()))
    color_N = rng.choice(len(COLOR_SHARE), size=rows, p=list(COLOR_SHARE.values()))
    marks_NM = rng.random((rows, len(MARK_SHARE))) < list(MARK_SHARE.values())
    shape_N[: len(SHAPE_SHARE)] = np.arange(len(SHAPE_SHARE))
    color_N[: len(COLOR_SHARE)] = np.arange(len(COLOR_SHARE))
    marks_NM[0] = True
    return Drawn(shape_N, color_N, marks_NM)


def label_rows(drawn: Drawn, train_rows: int, rng: np.random.Generator) -> list[list[str]]:
    """The cells image_path, shape, color and marks of each row, faults included.

    Wrong labels are put into the first `train_rows` rows only, missing ones into all.
    """
    rows = len(drawn.shape)
    heads = []
    for share, class_N in ((SHAPE_SHARE, drawn.shape), (COLOR_SHARE, drawn.color)):
        wrong_N = rng.random(rows) < WRONG_SHARE
        wrong_N[:FAULTLESS] = False
        wrong_N[train_rows:] = False
        shift_N = np.where(wrong_N, rng.integers(1, len(share), rows), 0)
        names = list(share)
        heads.append([names[index] for index in (class_N + shift_N) % len(share)])
    names_M = np.array(list(MARK_SHARE))
    heads.append(["|".join(names_M[on_M]) or "|" for on_M in drawn.marks])
    for cells in heads:
        missing_N = rng.random(rows) < MISSING_SHARE
        missing_N[:FAULTLESS] = False
        for row in np.flatnonzero(missing_N):
            cells[row] = ""
    paths = [f"images/{row:04d}.png" for row in range(rows)]
    return [list(cells) for cells in zip(paths, *heads, strict=True)]


def draw_picture(shape: str, color: str, marks: set[str], rng: np.random.Generator) -> Image.Image:
    """A blurred background, the shape, its marks; then the light of the day and pixel noise."""
    patches_HWC = rng.integers(90, 150, (3, 3, 3), dtype=np.uint8)
    image = Image.fromarray(patches_HWC).resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    radius = rng.uniform(0.34, 0.42) * CANVAS
    center_2 = CANVAS / 2 + rng.uniform(-8, 8, 2)
    outline_P2 = center_2 + radius * OUTLINES[shape] @ _rotation(rng.normal(0, 0.2))
    if "border" in marks:  # a step past the start, for the last corner to be joined too
        once_around = _points(outline_P2)
        draw.line([*once_around, once_around[1]], fill=WHITE, width=20, joint="curve")
    paint = _paint(color, rng)
    draw.polygon(_points(outline_P2), fill=paint, outline=paint)
    if "stripe" in marks:
        _draw_stripes(draw, center_2, rng)
    if "dot" in marks:
        x, y = center_2 + rng.uniform(-0.8, 0.8, 2) * radius
        draw.circle((float(x), float(y)), rng.uniform(13, 17), fill=WHITE)
    image_HWC = np.asarray(image.reduce(CANVAS // SIDE), dtype=np.float32)
    noise_HWC = PIXEL_SD * rng.standard_normal(image_HWC.shape, dtype=np.float32)
    lit_HWC = np.float32(rng.uniform(0.85, 1.15)) * image_HWC + noise_HWC
    return Image.fromarray(lit_HWC.clip(0, 255).astype(np.uint8))


def _draw_stripes(
    draw: ImageDraw.ImageDraw, center_2: NDArray[np.float64], rng: np.random.Generator
) -> None:
    """Five parallel lines across the whole picture, in any direction."""
    rotation = _rotation(rng.uniform(0, math.tau))
    phase = rng.uniform(-8, 8)
    for offset in (-40, -20, 0, 20, 40):
        ends_P2 = np.array([[-2.0 * CANVAS, offset + phase], [2.0 * CANVAS, offset + phase]])
        draw.line(_points(center_2 + ends_P2 @ rotation), fill=BLACK, width=5)


def _paint(color: str, rng: np.random.Generator) -> tuple[int, int, int]:
    hue = (HUE[color] + rng.normal(0, HUE_SD)) / 360 % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, rng.uniform(0.6, 1), rng.uniform(0.6, 1))
    return int(255 * red), int(255 * green), int(255 * blue)


def _rotation(angle: float) -> NDArray[np.float64]:
    """The matrix that turns points by `angle`, in radians, when they are multiplied by it."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])


def _points(points_P2: NDArray[np.float64]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points_P2]


def _polar(radii: list[float]) -> NDArray[np.float64]:
    """A closed line through points at equal angles and these distances from the centre."""
    angle_P = np.linspace(0, math.tau, len(radii) + 1)
    radius_P = np.array([*radii, radii[0]])
    return np.stack([radius_P * np.cos(angle_P), radius_P * np.sin(angle_P)], axis=1)


def _cross(arm: float) -> NDArray[np.float64]:
    """A closed line around two bars of half width `arm`."""
    quarter_P2 = np.array([[1.0, -arm], [1.0, arm], [arm, arm]])
    turned = [quarter_P2 @ _rotation(quarters * math.tau / 4) for quarters in range(4)]
    return np.concatenate([*turned, quarter_P2[:1]])


# Each shape is one closed line, in units of its radius; a ring's runs out, across and back.
OUTLINES = {
    "circle": _polar([0.9] * 32),
    "square": _polar([1.0] * 4),
    "triangle": _polar([1.1] * 3),
    "star": _polar([1.1, 0.5] * 5),
    "cross": _cross(0.3),
    "ring": np.concatenate([_polar([1.0] * 32), _polar([0.55] * 32)[::-1]]),
}
