"""What finals say: each finalist's mean, whether the winner is really better, what to deploy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from raymlc.metric import higher_is_better, score_of
from raymlc.search.finals import Final, read_finals
from raymlc.search.study import METRICS

_LEVEL = 0.95


@dataclass(frozen=True)
class Finalist:
    """A trial of the sweep and its finals.

    swept: its score in the sweep. whole: the sweep trained it to its end; otherwise its finals are
    longer than it was, and do not only have other seeds. finals: those that did not fail, by seed.
    """

    trial: int
    swept: float
    whole: bool
    finals: tuple[Final, ...]

    @property
    def scores(self) -> list[float]:
        """Of its finals, in their order."""
        return [final.score for final in self.finals]

    @property
    def mean(self) -> float:
        """Of the scores; NaN without any."""
        return statistics.fmean(self.scores) if self.finals else math.nan

    @property
    def deviation(self) -> float:
        """The sample's standard deviation of the scores; NaN of fewer than two."""
        return statistics.stdev(self.scores) if len(self.finals) > 1 else math.nan


@dataclass(frozen=True)
class Comparison:
    """The winner against another finalist, over the seeds that both finished.

    seeds: how many. difference: of the means, above 0 where the winner is better, whatever the
    metric's direction; NaN without a common seed. low, high: Student's t interval of it; NaN where
    the differences have no spread (fewer than two, or all alike). pairs: of finalists, for all of
    which together the intervals hold.
    """

    winner: int
    other: int
    seeds: int
    difference: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True)
class Outcome:
    """How the finals went.

    finalists: those with the best mean first, those without a finished final last. comparisons: of
    the first with every other one that has a mean. failed: finals that failed, by number.

    The means tell how far the sweep's scores were luck. The first one's was the best of these in
    turn, so it is a little too good still; the mean over all finalists is not. Both are of the
    validation rows that every epoch's checkpoint was chosen on.
    """

    metric: str
    finalists: tuple[Finalist, ...]
    comparisons: tuple[Comparison, ...]
    failed: tuple[Final, ...]

    @property
    def winner(self) -> Finalist | None:
        """The finalist with the best mean; None if every final failed, or there was none."""
        return self.finalists[0] if self.finalists and self.finalists[0].finals else None

    @property
    def deployed(self) -> Final | None:
        """The final whose checkpoint is to be used: of the winner, the one with the median score.

        Not the best one: its score would be chosen for its luck again, and promise more than the
        mean does. Of an even number it is the worse of the two in the middle.
        """
        if self.winner is None:
            return None
        sign = -1 if higher_is_better(self.metric) else 1
        ranked = sorted(self.winner.finals, key=lambda final: (sign * final.score, final.number))
        return ranked[len(ranked) // 2]


def judge(study: optuna.Study, metric: str) -> Outcome:
    """What the finals say that have ended so far."""
    finals = read_finals(study, metric)
    trials = study.get_trials(deepcopy=False)
    finalists = [
        Finalist(
            trial=number,
            swept=score_of(trials[number].user_attrs[METRICS], metric),
            whole=trials[number].state == TrialState.COMPLETE,
            finals=tuple(
                sorted(
                    (final for final in finals if final.trial == number and not final.reason),
                    key=lambda final: final.seed,
                )
            ),
        )
        for number in dict.fromkeys(final.trial for final in finals)
    ]
    sign = -1 if higher_is_better(metric) else 1
    judged = sorted(
        (finalist for finalist in finalists if finalist.finals),
        key=lambda finalist: (sign * finalist.mean, finalist.trial),
    )
    unjudged = [finalist for finalist in finalists if not finalist.finals]
    pairs = math.comb(len(judged), 2)
    return Outcome(
        metric=metric,
        finalists=(*judged, *unjudged),
        comparisons=tuple(compare(judged[0], other, -sign, pairs) for other in judged[1:]),
        failed=tuple(final for final in finals if final.reason),
    )


def compare(winner: Finalist, other: Finalist, sign: int, pairs: int) -> Comparison:
    """The paired difference of two finalists, with its interval.

    sign: 1 where a higher score is better, -1 where a lower one is. pairs: of finalists that might
    have been compared. The winner is known only when all are, so that one of many would pass at
    95 % by luck; each interval is taken at 1 - 0.05 / pairs (Bonferroni's bound), which makes 95 %
    the least chance that all hold. They speak of other seeds, not of other validation images.
    """
    scores = {final.seed: final.score for final in other.finals}
    # Rounded, such that equal differences of rounded numbers have no spread.
    differences = [
        round(sign * (final.score - scores[final.seed]), 12)
        for final in winner.finals
        if final.seed in scores
    ]
    difference, low, high = _interval(differences, 1 - (1 - _LEVEL) / max(1, pairs))
    return Comparison(winner.trial, other.trial, len(differences), difference, low, high, pairs)


def student_t(level: float, freedom: int) -> float:
    """The t that |T| stays below with chance `level`, T of Student's with `freedom` >= 1 degrees.

    From the finite series for whole degrees of freedom: Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(freedom)
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (low, angle) if _within(angle, freedom) > level else (angle, high)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    odd = freedom % 2
    sine, cosine = math.sin(angle), math.cos(angle)
    term, total = cosine if odd else 1.0, 0.0
    for factor in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * cosine * factor / (factor + 1)
    return (angle + sine * total) * 2 / math.pi if odd else sine * total


def _interval(differences: Sequence[float], level: float) -> tuple[float, float, float]:
    if not differences:
        return math.nan, math.nan, math.nan
    mean, count = statistics.fmean(differences), len(differences)
    deviation = statistics.stdev(differences) if count > 1 else 0.0
    if deviation == 0.0:
        return mean, math.nan, math.nan
    half = student_t(level, count - 1) * deviation / math.sqrt(count)
    return mean, mean - half, mean + half
