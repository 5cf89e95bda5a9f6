"""The sections of a report that are drawn: curves, importance, parallel coordinates, slices, front.

Each is a list of what stands below the section's title; where nothing can be drawn, it says why.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from raymlc.metric import higher_is_better, objectives
from raymlc.search.front import front
from raymlc.search.read import Told
from raymlc.watch.figures import (
    Axis,
    Dot,
    Line,
    Thread,
    chart,
    name_axis,
    number_axis,
    parallel,
)
from raymlc.watch.findings import STATES, Sweep
from raymlc.watch.markup import Node, header, node, note, row, table
from raymlc.watch.progress import brief

_HEADS = 4  # at most, that are drawn against one another: 6 pairs


def curves(sweep: Sweep) -> list[Node]:
    """Every epoch of every trial, a figure for each objective, and the scores as they came."""
    told = [one for one in sweep.told if one.curve]
    if not told:
        return [_words("No trial has finished an epoch yet.")]
    drawn: list[Node] = []
    for at, name in enumerate(objectives(sweep.metric)):
        lines = [
            Line(one.number, _kind(one, sweep), _title(one, sweep), points)
            for one in _best_last(sweep, told)
            if (points := [(e, v[at]) for e, v in one.curve.items() if math.isfinite(v[at])])
        ]
        if not lines:
            drawn.append(_words(f"{name} was not a number in any epoch."))
            continue
        values = [value for line in lines for _, value in line.points]
        x = number_axis("epoch", (e for line in lines for e, _ in line.points), whole=True)
        # A loss falls by factors, of which nothing could be seen else.
        log = not higher_is_better(name) and min(values) > 0 and max(values) > 20 * min(values)
        says = (
            f"Learning curves: {name} of {len(lines)} trials by epoch, from {min(values):.4g} to"
            f" {max(values):.4g}; those that were stopped early are faded"
        )
        drawn.append(_figure(chart(x, number_axis(name, values, log), lines, [], says, wide=True)))
    drawn.append(_legend(sweep, told))
    return [*drawn, *_history(sweep)]


def _history(sweep: Sweep) -> list[Node]:
    scored = sorted(_scored(sweep), key=lambda one: one.number)
    if len(scored) < 2:
        return []
    pick = max if higher_is_better(sweep.metric) else min
    bests = list(itertools.accumulate((one.score for one in scored), pick))
    steps = [
        (float(x), y)
        for one, before, now in zip(scored, [bests[0], *bests], bests, strict=False)
        for x, y in ((one.number, before), (one.number, now))
    ]
    assert sweep.best is not None
    line = Line(sweep.best.number, "envelope", "the best so far", steps)
    says = (
        f"Scores of {len(scored)} trials in the order in which they were proposed; the best so far"
        f" comes to {bests[-1]:.4g}"
    )
    x = number_axis("trial", (one.number for one in scored), whole=True)
    y = number_axis(_score_name(sweep), (one.score for one in scored))
    dots = [_dot(sweep, one, one.number) for one in _best_last(sweep, scored)]
    return [
        _words(
            "Scores in the order in which the trials were proposed; the line is the best so far."
        ),
        _figure(chart(x, y, [line], dots, says, wide=True)),
    ]


def coordinates(sweep: Sweep) -> list[Node]:
    """All trials with a score, as lines over what was searched."""
    scored = _scored(sweep)
    if not scored or not sweep.searched:
        return [_words("There is no trial with a score to draw.")]
    axes = {name: _axis(name, sweep) for name in sweep.searched}
    score = number_axis(_score_name(sweep), (one.score for one in scored))
    heat = _heat(scored)
    threads = [
        Thread(
            one.number,
            _kind(one, sweep),
            _title(one, sweep),
            [
                *(
                    axis.place(one.params[n]) if n in one.params else None
                    for n, axis in axes.items()
                ),
                score.place(one.score),
            ],
            heat[one.number],
        )
        for one in _best_last(sweep, scored)
    ]
    says = (
        f"Parallel coordinates: {len(scored)} trials over {', '.join(axes)} and the score; the"
        " better, the stronger the colour"
    )
    return [
        node("div", {"class": "scroll"}, parallel([*axes.values(), score], threads, says)),
        note("The better a trial, the stronger its colour; the best is drawn last."),
    ]


def slices(sweep: Sweep) -> list[Node]:
    """The score over each parameter by itself."""
    scored = _scored(sweep)
    if not scored or not sweep.searched:
        return [_words("There is no trial with a score to draw.")]
    y = number_axis(_score_name(sweep), (one.score for one in scored))
    drawn = []
    for name in sweep.searched:
        those = [one for one in scored if name in one.params]
        dots = [_dot(sweep, one, _value(one, name)) for one in _best_last(sweep, those)]
        says = f"{_score_name(sweep)} of {len(dots)} trials by {name}"
        drawn.append(_figure(chart(_axis(name, sweep), y, [], dots, says)))
    words = "Faded: stopped early, so that their score is of fewer epochs."
    return [node("div", {"class": "grid"}, *drawn), note(words)]


def pareto(sweep: Sweep) -> list[Node]:
    """The trials that no other beats in everything: of the objectives, else over the heads."""
    names = objectives(sweep.metric)
    what = "objective"
    if len(names) == 1:
        names, what = tuple(sweep.head_metrics.values()), "head"
    if len(names) < 2:
        return [_words("There is one head and one objective, so nothing is traded off.")]
    stored = {one.number: one.metrics for one in sweep.told if one.metrics}
    on = front(stored, names)
    if not on:
        return [_words("No trial has stored a checkpoint with a number for each of them yet.")]
    best = {
        name: (max if higher_is_better(name) else min)(stored[n][name] for n in on)
        for name in names
    }
    rows = []
    for number in on:
        cells = []
        for name in names:
            value = stored[number][name]
            kind = {"class": "first"} if value == best[name] else {}
            cells.append(node("td", kind, f"{value:.4f}"))
        line = row(str(number), *cells)
        line.set("data-t", str(number))
        rows.append(line)
    are = "trials are" if len(on) > 1 else "trial is"
    words = (
        f"{len(on)} {are} on the front: no other is better in one {what} without being worse in"
        " another. In bold the best of each column. To choose by your own weights:"
    )
    return [
        node("p", {}, words, " ", node("code", {}, "python -m raymlc.pick")),
        table("The front", header("trial", *names), rows, tall=len(rows) > 12),
        node("div", {"class": "grid"}, *_pairs(sweep, names[:_HEADS], set(on), stored)),
    ]


def _pairs(
    sweep: Sweep, names: Sequence[str], on: set[int], stored: Mapping[int, Mapping[str, float]]
) -> list[Node]:
    drawn = []
    for first, second in itertools.combinations(names, 2):
        values = {
            number: (metrics.get(first, math.nan), metrics.get(second, math.nan))
            for number, metrics in stored.items()
        }
        values = {n: pair for n, pair in values.items() if all(map(math.isfinite, pair))}
        order = sorted(values, key=lambda number: number in on)
        dots = [
            Dot(
                number,
                "front" if number in on else "behind",
                f"trial {number}: {first} {brief(values[number][0])},"
                f" {second} {brief(values[number][1])}",
                *values[number],
            )
            for number in order
        ]
        x = number_axis(first, (pair[0] for pair in values.values()))
        y = number_axis(second, (pair[1] for pair in values.values()))
        says = f"{second} over {first} of {len(dots)} trials; filled: on the front"
        drawn.append(_figure(chart(x, y, [], dots, says)))
    return drawn


def finals_chart(sweep: Sweep) -> Node | None:
    """Each finalist's finals; None without any that succeeded."""
    finalists = [one for one in sweep.outcome.finalists if one.finals]
    if not finalists:
        return None
    dots = [
        Dot(one.trial, "complete", f"trial {one.trial}, seed {final.seed}: {final.score:.4f}",
            str(one.trial), final.score)
        for one in finalists
        for final in one.finals
    ]  # fmt: skip
    dots += [
        Dot(one.trial, "swept", f"trial {one.trial} in the sweep: {one.swept:.4f}",
            str(one.trial), one.swept)
        for one in finalists
    ]  # fmt: skip
    x = name_axis("trial", [str(one.trial) for one in finalists])
    y = number_axis(_score_name(sweep), (dot.y for dot in dots))
    says = f"Scores of the finals of {len(finalists)} trials; rings: what the sweep said of them"
    return _figure(chart(x, y, [], dots, says))


def _axis(name: str, sweep: Sweep) -> Axis:
    """An axis over all of a parameter's range, and what lies beside it."""
    values = [one.params[name] for one in sweep.told if name in one.params]
    ranges = [one.ranges[name] for one in sweep.told if name in one.ranges]
    spread: BaseDistribution | None = ranges[0] if ranges else None
    if isinstance(spread, FloatDistribution | IntDistribution) and all(map(_is_number, values)):
        ends = [float(end) for one in ranges for end in _ends(one)]
        every = [*ends, *map(float, values)]
        log = spread.log and min(every) > 0
        return number_axis(name, every, log, isinstance(spread, IntDistribution))
    names = list(spread.choices) if isinstance(spread, CategoricalDistribution) else []
    return name_axis(name, list(dict.fromkeys(map(str, [*names, *values]))))


def _ends(spread: BaseDistribution) -> list[float]:
    if isinstance(spread, FloatDistribution | IntDistribution):
        return [spread.low, spread.high]
    return []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _value(one: Told, name: str) -> float | str:
    value = one.params[name]
    return value if _is_number(value) else str(value)


def _scored(sweep: Sweep) -> list[Told]:
    return [one for one in sweep.told if math.isfinite(one.score)]


def _heat(scored: Sequence[Told]) -> dict[int, float]:
    """By rank, so that one bad trial does not make all others look alike."""
    last = max(1, len(scored) - 1)
    return {one.number: 1 - rank / last for rank, one in enumerate(scored)}


def _best_last(sweep: Sweep, told: Sequence[Told]) -> list[Told]:
    """As they are drawn: those that were stopped below, the best above all."""
    place = {one.number: at for at, one in enumerate(sweep.told)}
    return sorted(
        told, key=lambda one: (place[one.number] == 0, one.state == "COMPLETE", -place[one.number])
    )


def _dot(sweep: Sweep, one: Told, x: float | str) -> Dot:
    return Dot(one.number, _kind(one, sweep), _title(one, sweep), x, one.score)


def _kind(one: Told, sweep: Sweep) -> str:
    best = sweep.best is not None and one.number == sweep.best.number
    return f"{one.state.lower()}{' best' if best else ''}"


def _title(one: Told, sweep: Sweep) -> str:
    params = ", ".join(f"{name} {brief(value)}" for name, value in one.params.items())
    score = f"{_score_name(sweep)} {one.score:.4f}" if math.isfinite(one.score) else "no score"
    return f"trial {one.number}, {STATES[one.state]} after {one.epochs} epochs: {score} ({params})"


def _score_name(sweep: Sweep) -> str:
    names = objectives(sweep.metric)
    return names[0] if len(names) == 1 else "score"


def _legend(sweep: Sweep, told: Sequence[Told]) -> Node:
    best = sweep.best
    entries = [("best", f"best, trial {best.number}")] if best else []
    entries += [
        (state.lower(), words)
        for state, words in STATES.items()
        if any(one.state == state and one is not best for one in told)
    ]
    keys = [
        node("li", {}, node("span", {"class": f"key {kind}", "aria-hidden": "true"}), words)
        for kind, words in entries
    ]
    return node("ul", {"class": "legend"}, *keys)


def _figure(drawn: Node) -> Node:
    return node("figure", {}, drawn)


def _words(text: str) -> Node:
    return node("p", {}, text)
