"""Figures of a report as SVG: lines, dots and parallel coordinates, coloured by a style sheet.

Whatever belongs to a trial has its number in data-t, and a title that says what it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from raymlc.watch.markup import Node, node

_MOST_POINTS = 40_000  # of all lines of a figure: more cannot be seen, and make the page heavy


@dataclass(frozen=True)
class Axis:
    """An axis, with numbers on it or names.

    low, high: its ends, of the numbers or, where it is log, of their logarithms. choices: the names
    in their order. ticks: what is written on it, from 0 to 1.
    """

    label: str
    ticks: tuple[tuple[float, str], ...]
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[str, ...] = ()

    def place(self, value: float | str) -> float:
        """Where a value is, from 0 to 1."""
        if self.choices:
            return (self.choices.index(str(value)) + 0.5) / len(self.choices)
        number = math.log10(float(value)) if self.log else float(value)
        return (number - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Line:
    """A trial as a line. kind: a class of the style sheet. title: what it says when pointed at."""

    trial: int
    kind: str
    title: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Dot:
    """A trial as a dot, as `Line` has it. heat: its colour, from 0 to 1."""

    trial: int
    kind: str
    title: str
    x: float | str
    y: float
    heat: float = 1.0


@dataclass(frozen=True)
class Thread:
    """A trial in parallel coordinates. places: on each axis from 0 to 1; None where it has none."""

    trial: int
    kind: str
    title: str
    places: Sequence[float | None]
    heat: float


def number_axis(
    label: str, values: Iterable[float], log: bool = False, whole: bool = False
) -> Axis:
    """An axis that holds all values, with some air at its ends. log needs values above 0.

    whole: nothing lies between whole numbers.
    """
    known = [math.log10(value) if log else float(value) for value in values]
    low, high = min(known, default=0.0), max(known, default=1.0)
    air = (high - low) * 0.04 or abs(low) * 0.05 or 0.5
    low, high = low - air, high + air
    wanted = _log_ticks(low, high) if log else _ticks(low, high)
    ticks = tuple(
        (((math.log10(tick) if log else tick) - low) / (high - low), f"{tick:.6g}")
        for tick in wanted
        if not whole or float(tick).is_integer()
    )
    return Axis(label, ticks, low, high, log)


def name_axis(label: str, names: Sequence[str]) -> Axis:
    """An axis with a place for each name."""
    ticks = tuple(
        ((at + 0.5) / len(names), name if len(name) < 15 else name[:13] + "…")
        for at, name in enumerate(names)
    )
    return Axis(label, ticks, choices=tuple(names))


def chart(
    x: Axis, y: Axis, lines: Sequence[Line], dots: Sequence[Dot], says: str, wide: bool = False
) -> Node:
    """Lines and dots over two axes, the later above the earlier. says: what is to be seen."""
    width, height, left, bottom = (720, 390, 76, 66) if wide else (340, 250, 56, 46)
    across, up = width - left - 14, height - bottom - 34

    def at(x_place: float, y_place: float) -> str:
        return f"{left + across * x_place:.1f},{34 + up * (1 - y_place):.1f}"

    frame = _frame(x, y, left, across, up)
    every = max(1, math.ceil(sum(len(line.points) for line in lines) / _MOST_POINTS))
    drawn = []
    for line in lines:
        thinned = [*line.points[:-1:every], *line.points[-1:]]
        path = " ".join(at(x.place(a), y.place(b)) for a, b in thinned)
        drawn.append(
            _of_trial("polyline", {"points": path}, line.trial, f"line {line.kind}", line.title)
        )
        if len(thinned) == 1:
            drawn.append(_circle(path, line.trial, f"dot {line.kind}", line.title, 1.0))
    for dot in dots:
        place = at(x.place(dot.x), y.place(dot.y))
        drawn.append(_circle(place, dot.trial, f"dot {dot.kind}", dot.title, dot.heat))
    return _picture(width, height, says, "wide" if wide else "small", [*frame, *drawn])


def parallel(axes: Sequence[Axis], threads: Sequence[Thread], says: str) -> Node:
    """Each trial as a line over upright axes, the later above the earlier."""
    step, height, top = max(124, 720 // max(1, len(axes) - 1)), 330, 44
    up = height - top - 20
    width = step * (len(axes) - 1) + 150
    drawn: list[Node] = []
    for thread in threads:
        pieces, piece = [], list[str]()
        for at, place in enumerate([*thread.places, None]):
            if place is not None:
                piece.append(f"{70 + step * at:.1f},{top + up * (1 - place):.1f}")
            elif piece:
                pieces.append(f"M{' L'.join(piece)}")
                piece = []
        path = {"d": " ".join(pieces), "style": f"--s:{thread.heat:.3f}"}
        drawn.append(_of_trial("path", path, thread.trial, f"thread {thread.kind}", thread.title))
    for at, axis in enumerate(axes):
        x = 70 + step * at
        drawn.append(_straight(x, top, x, top + up, "axis"))
        drawn.append(_text(x, 20, "middle", axis.label, "name"))
        for place, tick in axis.ticks:
            y = top + up * (1 - place)
            drawn.append(_straight(x - 4, y, x, y, "axis"))
            drawn.append(_text(x - 8, y + 4, "end", tick, "tick halo"))
    picture = _picture(width, height, says, "parallel", drawn)
    picture.set("style", f"--least:{width * 0.82:.0f}px;--most:{width * 1.15:.0f}px")
    return picture


def _frame(x: Axis, y: Axis, left: int, across: int, up: int) -> list[Node]:
    floor = 34 + up
    drawn = [_text(4, 20, "start", y.label, "name")]
    for place, tick in y.ticks:
        height = floor - up * place
        drawn.append(_straight(left, height, left + across, height, "grid"))
        drawn.append(_text(left - 8, height + 4, "end", tick, "tick"))
    for place, tick in x.ticks:
        at = left + across * place
        drawn.append(_straight(at, floor, at, floor + 4, "axis"))
        drawn.append(_text(at, floor + 6, "middle", tick, "tick below"))
    drawn.append(_straight(left, floor, left + across, floor, "axis"))
    drawn.append(_text(left + across, floor + 38, "end", x.label, "name across"))
    return drawn


def _picture(width: int, height: int, says: str, kind: str, drawn: Iterable[Node]) -> Node:
    about = {"role": "img", "aria-label": says, "class": kind, "viewBox": f"0 0 {width} {height}"}
    return node("svg", about, *drawn)


def _of_trial(tag: str, shape: dict[str, str], trial: int, kind: str, title: str) -> Node:
    return node(tag, {**shape, "class": kind, "data-t": str(trial)}, node("title", {}, title))


def _circle(place: str, trial: int, kind: str, title: str, heat: float) -> Node:
    cx, cy = place.split(",")
    shape = {"cx": cx, "cy": cy, "r": "4", "style": f"--s:{heat:.3f}"}
    return _of_trial("circle", shape, trial, kind, title)


def _straight(x1: float, y1: float, x2: float, y2: float, kind: str) -> Node:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return node("line", {"class": kind} | {name: f"{value:.1f}" for name, value in ends.items()})


def _text(x: float, y: float, anchor: str, text: str, kind: str) -> Node:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "class": kind}
    return node("text", place, text)


def _ticks(low: float, high: float) -> list[float]:
    """Some three to six round numbers from low to high."""
    rough = (high - low) / 6
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * one for one in (1, 2, 5, 10) if size * one >= rough)
    return [step * at for at in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between 10**low and 10**high: powers of ten, or with their 2 and 5."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5)):
        ticks = [digit * 10.0**power for power in powers for digit in digits]
        ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
        if len(ticks) > 2:
            break
    else:
        return _ticks(10**low, 10**high)
    return ticks[:: math.ceil(len(ticks) / 6)]
