"""What finals say on the terminal, and their table."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from raymlc.search.verdict import Comparison, Finalist, Outcome
from raymlc.watch.progress import brief


def table_of_finals(outcome: Outcome, heads: Sequence[str]) -> Table:
    """The finalists, best mean first, with the mean accuracy of every head."""
    title = f"finals: means of {outcome.metric} and of the heads' accuracies"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("trial", "n", "mean", "sd", "sweep", "in the sweep", *heads):
        table.add_column(
            name, justify="left" if name == "in the sweep" else "right", overflow="fold"
        )
    for finalist in outcome.finalists:
        table.add_row(
            str(finalist.trial),
            str(len(finalist.finals)),
            brief(finalist.mean),
            brief(finalist.deviation),
            brief(finalist.swept),
            "complete" if finalist.whole else "stopped early",
            *(brief(_mean_of(finalist, f"val/accuracy/{head}")) for head in heads),
        )
    return table


def finals_lines(outcome: Outcome) -> list[str]:
    """What the finals say in plain words: failures, the winner, how sure that is, the optimism.

    None where no final has ended.
    """
    lines = [
        f"final {final.number} (trial {final.trial}, seed {final.seed}) failed: {final.reason}"
        for final in outcome.failed
    ]
    winner, deployed = outcome.winner, outcome.deployed
    if winner is None or deployed is None:
        return [*lines, "no final succeeded"] if lines else []
    lines.append(
        f"best trial by its finals: {winner.trial}, {outcome.metric} {_said(winner.mean)}"
        f" ({_spread(winner)})"
    )
    lines += [_compared(comparison) for comparison in outcome.comparisons]
    lines += _optimism(outcome, winner)
    if len(winner.finals) > 1:
        middle = "the median" if len(winner.finals) % 2 else "the worse of the two in the middle"
        lines.append(
            f"final {deployed.number} is the one to use: its {_said(deployed.score)} is {middle} of"
            f" trial {winner.trial}'s finals, where the best of them would be luck again"
        )
    return lines


def write_finals(path: Path, outcome: Outcome) -> None:
    """The finals that have ended as CSV, by number, with every metric of their checkpoints."""
    ended = [final for finalist in outcome.finalists for final in finalist.finals]
    finals = sorted([*ended, *outcome.failed], key=lambda final: final.number)
    metrics = list(dict.fromkeys(name for final in finals for name in final.metrics))
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(
            ["final", "trial", "seed", "score", "epochs", "seconds", "node", *metrics, "reason"]
        )
        for final in finals:
            lines.writerow(
                [
                    final.number,
                    final.trial,
                    final.seed,
                    final.score,
                    final.epochs,
                    final.seconds,
                    final.node,
                    *(final.metrics.get(name, "") for name in metrics),
                    final.reason,
                ]
            )


def _compared(comparison: Comparison) -> str:
    one, other = comparison.winner, comparison.other
    both = f"trials {one} and {other}"
    difference, low, high = comparison.difference, comparison.low, comparison.high
    if comparison.seeds == 0:
        return f"{both} cannot be compared: there is no seed that both finished"
    if comparison.seeds == 1:
        return (
            f"{both} differ by {_said(abs(difference))} in the one seed that both finished; one"
            " seed has no spread, so nobody can say whether that is luck: give more --repeats"
        )
    if math.isnan(low):
        apart = f"differ by {_said(abs(difference))}" if difference else "score the same"
        return (
            f"{both} {apart} in each of {comparison.seeds} seeds; without a spread, no interval can"
            " be given"
        )
    if difference < 0:  # of two that did not finish the same seeds
        one, other, difference, low, high = other, one, -difference, -high, -low
    together = f", {comparison.pairs} pairs together" if comparison.pairs > 1 else ""
    interval = (
        f"{_said(difference)} [{_said(low)}, {_said(high)}]"
        f" (95 %{together}, {comparison.seeds} seeds, paired)"
    )
    if low > 0:
        return f"trial {one} is better than trial {other} by {interval}"
    return (
        f"{both} cannot be told apart: {one} is ahead by {interval}; as far as these seeds tell,"
        " the simpler or cheaper one is as good a choice"
    )


def _optimism(outcome: Outcome, winner: Finalist) -> list[str]:
    said = (
        f"the sweep said {_said(winner.swept)} of trial {winner.trial}, its finals say"
        f" {_said(winner.mean)} ({_seeds(winner)})"
    )
    if winner.whole:
        lines = [f"{said}: the sweep's number was {_gap(winner.swept - winner.mean)}"]
    else:
        lines = [f"{said}; the sweep stopped it early, and its finals are of full length"]
    whole = [one for one in outcome.finalists if one.whole and one.finals]
    if whole and whole != [winner]:
        gap = statistics.fmean(one.swept - one.mean for one in whole)
        who = f"{len(whole)} finalists" if len(whole) > 1 else "one finalist"
        lines.append(
            f"of the {who} that the sweep trained to the end, its numbers were {_gap(gap)}"
            + (" in the mean" if len(whole) > 1 else "")
        )
    return lines


def _gap(gap: float) -> str:
    if _said(gap) == _said(0.0):
        return "right"
    return f"{_said(abs(gap))} too {'high' if gap > 0 else 'low'}"


def _spread(finalist: Finalist) -> str:
    if len(finalist.finals) == 1:
        return "one seed, so its spread is not known: give more --repeats"
    return f"mean of {len(finalist.finals)} seeds, standard deviation {_said(finalist.deviation)}"


def _seeds(finalist: Finalist) -> str:
    count = len(finalist.finals)
    return "one seed" if count == 1 else f"mean of {count} seeds"


def _mean_of(finalist: Finalist, name: str) -> float:
    values = [final.metrics.get(name, math.nan) for final in finalist.finals]
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def _said(value: float) -> str:
    return f"{value:z.4f}"
