"""python -m raymlc.pick: choose among a sweep's checkpoints by weights, without training again."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich import box
from rich.table import Table
from rich.text import Text

from raymlc.door import plain_console, run_door
from raymlc.errors import UserError, did_you_mean
from raymlc.metric import objectives
from raymlc.search.front import Picked, pick
from raymlc.watch.progress import brief

_SWEEP, _SUMMARY = "sweep.json", "summary.csv"  # in a sweep's folder
_ABOUT = ("trial", "state", "epochs")  # the columns of a summary that tell what a row is of


@dataclass(frozen=True)
class PickOptions:
    """Choose one of a sweep's checkpoints by what each metric is worth to you.

    Whatever the sweep went by, any metrics of its checkpoints may be weighed against each other.
    Trials on their Pareto front are shown, those that no other beats in one metric without being
    worse in another; the best by your weights is first.

    Example:
      python -m raymlc.pick runs/NAME --weights gender=2 article=1
    """

    sweep: Annotated[Path, tyro.conf.Positional]
    """Folder of a sweep, runs/NAME."""
    weights: Annotated[tuple[str, ...], tyro.conf.arg(metavar="METRIC=WEIGHT ...")] = ()
    """What metrics are worth, such as val/accuracy/gender=2 val/loss/article=1; of a head in the
    sweep's own kind of metric, gender=2. Each counts from 0, for the worst of the front, to 1, for
    the best, times its weight. Default: 1 for each objective of the sweep."""
    all: bool = False
    """Show the trials that are off the front, too."""


@dataclass(frozen=True)
class _Sweep:
    """What a sweep's folder tells: its objectives, and of each trial what it is and its metrics."""

    objectives: tuple[str, ...]
    about: dict[int, tuple[str, ...]]
    stored: dict[int, dict[str, float]]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 when a checkpoint is chosen, 2 for wrong input, 130 after Ctrl-C."""
    return run_door(PickOptions, "pick", _pick, arguments)


def _pick(options: PickOptions) -> int:
    sweep = _read(options.sweep)
    if not any(sweep.stored.values()):
        raise UserError(f"no trial in {options.sweep} has a checkpoint to choose")
    weights = _weights(options.weights, sweep)
    picked = pick(sweep.stored, weights)
    if not picked:
        raise UserError(
            f"no trial in {options.sweep} has a checkpoint with a finite number for each of"
            f" {', '.join(weights)}; leave one out"
        )
    shown = picked if options.all else [one for one in picked if one.rank == 0]
    plain_console().print(_table(shown, sweep, weights, options.all))
    chosen = picked[0]
    count = sum(one.rank == 0 for one in picked)
    print(f"{count} of {len(sweep.stored)} trials are on the front")
    if len(picked) < len(sweep.stored):
        print(f"{len(sweep.stored) - len(picked)} have no checkpoint with all of these metrics")
    print(f"best by weight: trial {chosen.number}, {chosen.score:.4f}")
    print(f"checkpoint: {options.sweep / 'trials' / f'{chosen.number:04}' / 'best'}")
    return 0


def _read(folder: Path) -> _Sweep:
    if not (folder / _SWEEP).is_file():
        raise UserError(
            f"a sweep's folder, such as runs/NAME, holds {_SWEEP}, but {folder} does not; name the"
            " folder of a sweep"
        )
    if not (folder / _SUMMARY).is_file():
        raise UserError(
            f"a sweep writes {_SUMMARY} at its end, but {folder} has none yet; wait for it, or go"
            " on with it by --resume"
        )
    try:
        metric = json.loads((folder / _SWEEP).read_text(encoding="utf-8"))["metric"]
        with (folder / _SUMMARY).open(newline="", encoding="utf-8") as file:
            rows = [_row(row) for row in csv.DictReader(file, strict=True)]
        return _Sweep(
            objectives(metric),
            {number: about for number, about, _ in rows},
            {number: metrics for number, _, metrics in rows},
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, csv.Error) as error:
        raise UserError(
            f"a sweep's folder must be as the sweep left it, but {folder} cannot be read: {error!r}"
        ) from error


def _row(cells: Mapping[str, Any]) -> tuple[int, tuple[str, ...], dict[str, float]]:
    """A trial's number, what it is, and the metrics of its checkpoint; none without one."""
    # What was searched stands among the columns, too, but no field's name begins so.
    metrics = {
        name: float(cell) for name, cell in cells.items() if name.startswith("val/") and cell
    }
    return int(cells["trial"]), tuple(cells[name].lower() for name in _ABOUT), metrics


def _weights(texts: Sequence[str], sweep: _Sweep) -> dict[str, float]:
    """The weight of each metric, by its full name. Raises UserError for what cannot be one."""
    if not texts:
        return dict.fromkeys(sweep.objectives, 1.0)
    weights: dict[str, float] = {}
    for text in texts:
        said, equals, number = text.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not equals or math.isnan(weight):
            raise UserError(
                f"--weights must be written METRIC=WEIGHT with a number, but has {text!r}; such as"
                f" {sweep.objectives[0]}=1"
            )
        name = _full(said, sweep)
        if name in weights:
            raise UserError(
                f"--weights must have one weight for each metric, but {name} has another in"
                f" {text!r}; leave one out"
            )
        weights[name] = weight
    return weights


def _full(said: str, sweep: _Sweep) -> str:
    """The metric that a name means: itself, or a head's in the sweep's kind of metric."""
    known = list(dict.fromkeys(name for metrics in sweep.stored.values() for name in metrics))
    if said in known:
        return said
    kind = "/".join(sweep.objectives[0].split("/")[:2])
    short = {name.removeprefix(f"{kind}/"): name for name in known if name.startswith(f"{kind}/")}
    # An objective of the head's own is what the sweep knows it by.
    short |= {name.split("/", 2)[2]: name for name in sweep.objectives if name.count("/") > 1}
    if said in short:
        return short[said]
    way_out = did_you_mean(said, [*known, *short], f"they have {', '.join(known)}")
    raise UserError(
        f"--weights must name metrics that the checkpoints have, but has {said!r}; {way_out}"
    )


def _table(
    shown: Sequence[Picked], sweep: _Sweep, weights: Mapping[str, float], off_front: bool
) -> Table:
    title = "trials by weight" if off_front else "trials on the front, by weight"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in _ABOUT:
        table.add_column(name, justify="left" if name == "state" else "right")
    if off_front:
        table.add_column("front")
    for name, weight in weights.items():
        table.add_column(Text(f"{name}={weight:g}"), justify="right", overflow="fold")
    table.add_column("score", justify="right")
    for one in shown:
        table.add_row(
            *sweep.about[one.number],
            *(["no" if one.rank else "yes"] if off_front else []),
            *(brief(sweep.stored[one.number][name]) for name in weights),
            brief(one.score),
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
