"""What any command says on the terminal: a bar, numbers, and the table of a sweep's trials."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

if TYPE_CHECKING:  # a prediction needs no Optuna
    from raymlc.search.study import Row


_PAUSE, _SLOWER, _LONGEST_PAUSE = 10.0, 1.5, 300.0  # seconds


class Pace:
    """When it is time for one more line, where nothing is drawn: after 10 s, then ever less often.

    The longest wait between two is 5 minutes.
    """

    def __init__(self) -> None:
        self._said, self._pause = time.monotonic(), _PAUSE

    def due(self) -> bool:
        """Whether it is time now; whoever is told so says the line."""
        now = time.monotonic()
        if now - self._said < self._pause:
            return False
        self._said = now
        self._pause = min(_SLOWER * self._pause, _LONGEST_PAUSE)
        return True


def track(console: Console, done: Iterable[int], text: str, total: int) -> Iterable[int]:
    """A bar over `done` while it is drawn from; where no bar can be drawn a line now and then."""
    if not console.is_interactive:
        console.print(text, highlight=False, soft_wrap=True)
        pace = Pace()
        for count, one in enumerate(done, 1):
            yield one
            if count < total and pace.due():
                console.print(f"{count:,} of {total:,}", highlight=False)
        return
    with Progress(console=console, transient=True) as bar:
        yield from bar.track(done, total=total, description=text)


def table_of_trials(
    rows: Sequence[Row],
    heads: Sequence[str],
    majority: Mapping[str, float],
    title: str,
    width: int,
) -> Table:
    """The trials, best first, then what always saying training's most common answer gets.

    width: of the terminal, in characters. Parameters that it has no room for are left out, first
    those that are the same in all trials; how many is said below.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = ("trial", "state", "epochs", "score", *heads)
    values = [majority[head] for head in heads]
    least = ["", "majority", "", brief(_mean(values)), *map(brief, values)]
    lines = [
        [str(row.number), row.state.lower(), str(row.epochs), brief(row.score)]
        + [brief(row.metrics.get(f"val/accuracy/{head}", math.nan)) for head in heads]
        for row in rows
    ]
    params = {
        name: [brief(row.params[name]) if name in row.params else "" for row in rows]
        for name in dict.fromkeys(name for row in rows for name in row.params)
    }
    room = width - 2 - sum(map(_wide, zip(names, *lines, least, strict=True)))
    fitting = set()
    for name in sorted(params, key=lambda name: len(set(params[name])) == 1):
        room -= _wide([name, *params[name]])
        if room < 0:
            break
        fitting.add(name)
    shown = [name for name in params if name in fitting]
    for name in (*names, *shown):
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    for place, line in enumerate(lines):
        table.add_row(*line, *(params[name][place] for name in shown))
    table.add_section()
    table.add_row(*least)
    if more := len(params) - len(shown):
        parameters = "1 parameter" if more == 1 else f"{more} parameters"
        table.caption = f"{parameters} more, for which there is no room, in summary.csv"
        table.caption_justify = "left"
    return table


def _wide(column: Sequence[str]) -> int:
    """The characters that a column takes, its name included, with the spaces beside it."""
    return max(map(cell_len, column)) + 2


def write_summary(path: Path, rows: Sequence[Row]) -> None:
    """The trials as CSV, best first, with every metric of their checkpoints."""
    params = list(dict.fromkeys(name for row in rows for name in row.params))
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(
            ["trial", "state", "epochs", "score", "seconds", *params, *metrics, "reason"]
        )
        for row in rows:
            lines.writerow(
                [
                    row.number,
                    row.state,
                    row.epochs,
                    row.score,
                    row.seconds,
                    *(row.params.get(name, "") for name in params),
                    *(row.metrics.get(name, "") for name in metrics),
                    row.reason,
                ]
            )


def brief(value: Any) -> str:
    """A number in four digits, anything else as it is; nothing for NaN."""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else f"{value:.4g}"


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
