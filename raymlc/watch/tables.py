"""The sections of a report that are tables: the trials, what mattered, what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raymlc.metric import higher_is_better, objectives, score_of
from raymlc.search.read import OPEN, Told
from raymlc.watch.findings import LEAST, STATES, TOP, Sweep, cost_of, kind_of, why_none
from raymlc.watch.markup import Node, header, node, note, row, table
from raymlc.watch.progress import brief
from raymlc.watch.standing import duration


def leaderboard(sweep: Sweep) -> list[Node]:
    """Every trial, the best first."""
    names = objectives(sweep.metric)
    several = names if len(names) > 1 else ()
    heads = {head: name for head, name in sweep.head_metrics.items() if name not in several}
    score = "score (mean)" if several else names[0]
    top = header("trial", "state", "epochs", score, *several, *heads, *sweep.searched, "time")
    rows = []
    for one in sweep.told:
        line = row(
            str(one.number),
            STATES[one.state],
            f"{one.epochs} of {one.length}",
            _score(one, sweep.metric),
            *(number(one.metrics.get(name, math.nan)) for name in (*several, *heads.values())),
            *(brief(one.params[name]) if name in one.params else "" for name in sweep.searched),
            _time(one.seconds),
        )
        line.set("data-t", str(one.number))
        line.set("class", one.state.lower() + (" best" if one is sweep.best else ""))
        rows.append(line)
    words = (
        f"Of each trial's stored checkpoint on the validation rows; the heads' columns are"
        f" {kind_of(sweep.metric)}. Point at a trial, or tap it, to find it in every figure."
    )
    return [table("All trials, the best first", top, rows, "sortable", tall=True), note(words)]


def importance(sweep: Sweep) -> list[Node]:
    """A bar for each parameter, for the score and for each head."""
    shown = [one for one in sweep.importances if one.shares]
    read = sweep.importances[0].trials if sweep.importances else 0
    reads = note(
        f"By PED-ANOVA, of Optuna: what sets the best {TOP:.0%} apart. It reads the trials that"
        f" ran to their end, {read} of {len(sweep.told)} here, and none that was stopped early;"
        f" of fewer than {LEAST} it is not told. Of few trials, take it for a hint; and what early"
        " stopping has weeded out already is not seen to matter."
    )
    if not shown:
        why = why_none(sweep.importances[0] if sweep.importances else None)
        return [node("p", {}, f"{why[0].upper()}{why[1:]}."), reads]
    heads = {name: head for head, name in sweep.head_metrics.items()}
    names = ["score" if "," in one.metric else heads.get(one.metric, one.metric) for one in shown]
    top = header("parameter", *names)
    rows = []
    for name in shown[0].shares:
        shares = [one.shares.get(name, 0.0) for one in shown]
        bars = (
            node("td", {"class": "bar", "style": f"--s:{share:.3f}"}, f"{share:.0%}")
            for share in shares
        )
        rows.append(row(name, *bars))
    says = f"Importance of {len(rows)} parameters for the score and by head"
    return [reads, table(says, top, rows, "bars")]


def cost(sweep: Sweep) -> list[Node]:
    """Epochs, images and time, by how trials ended and by host, and what stopping saved."""
    by_state = {
        words: [one for one in sweep.told if one.state == state] for state, words in STATES.items()
    }
    rows = [_cost_row(words, those) for words, those in by_state.items() if those]
    rows.append(_cost_row("all", sweep.told))
    finals = [final for one in sweep.outcome.finalists for final in one.finals]
    finals += sweep.outcome.failed
    if finals:
        epochs, seconds = sum(one.epochs for one in finals), sum(one.seconds for one in finals)
        rows.append(row("finals", f"{len(finals)}", f"{epochs:,}", "", duration(seconds)))
    total = cost_of(sweep.told)
    parts = [
        table("Cost", header("trials", "count", "epochs", "images", "time"), rows),
        node("p", {}, _hours(sweep, total.seconds)),
    ]
    if total.saved_epochs:
        words = (
            f"Without early stopping it would have been {total.whole:,} epochs; it saved"
            f" {total.saved_epochs:,} of them, {total.saved_images:,.0f} images and about"
            f" {duration(total.saved_seconds)}, at the pace of each trial that was stopped."
        )
        parts.append(node("p", {}, words))
    nodes = {
        one.node: [other for other in sweep.told if other.node == one.node] for one in sweep.told
    }
    nodes.pop("", None)
    if len(nodes) > 1:
        top = header("last on host", "count", "epochs", "images", "time")
        parts.append(table("Cost by host", top, [_cost_row(*item) for item in nodes.items()]))
    return parts


def _hours(sweep: Sweep, seconds: float) -> str:
    hours, gpus = seconds * sweep.workers / 3600, sweep.gpus_per_worker
    if gpus:
        return f"That is {hours * gpus:,.2f} GPU hours, at {sweep.workers} × {gpus:g} GPU a trial."
    if gpus == 0:
        return f"That is {hours:,.2f} hours of workers on CPUs, at {sweep.workers} a trial."
    return (
        f"That is {hours:,.2f} hours of workers, at {sweep.workers} a trial: GPU hours where each"
        " had a GPU, else CPU hours."
    )


def _cost_row(name: str, those: Sequence[Told]) -> Node:
    its = cost_of(those)
    return row(
        name, f"{len(those):,}", f"{its.epochs:,}", f"{its.images:,.0f}", duration(its.seconds)
    )


def number(value: float) -> str:
    """A score in four digits; nothing for NaN."""
    return "" if math.isnan(value) else f"{value:.4f}"


def _time(seconds: float) -> Node:
    if math.isnan(seconds):
        return node("td")
    return node("td", {"data-v": f"{seconds:.1f}"}, duration(seconds))  # to be sorted by


def _score(one: Told, metric: str) -> str:
    if not math.isnan(one.score):
        return number(one.score)
    best = _so_far(one, metric)
    return f"so far {number(best)}" if one.state == OPEN and not math.isnan(best) else ""


def _so_far(one: Told, metric: str) -> float:
    """The best score among the epochs that the study has of a trial; NaN without any."""
    names = objectives(metric)
    scores = [score_of(dict(zip(names, told, strict=True)), metric) for told in one.curve.values()]
    known = [score for score in scores if not math.isnan(score)]
    return (max if higher_is_better(metric) else min)(known, default=math.nan)
