"""The verdict is textbook statistics, and claims no difference that seeds alone would make."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from raymlc.search.finals import Final
from raymlc.search.verdict import Finalist, compare, judge, student_t

ACCURACY = "val/accuracy"


def finalist(trial: int, scores: Mapping[int, float], metric: str = ACCURACY) -> Finalist:
    """A finalist with these scores, by seed."""
    finals = tuple(
        Final(10 * trial + seed, trial, seed, score, {metric: score}, "", 3, 1.0, "", "")
        for seed, score in scores.items()
    )
    return Finalist(trial, 0.5, True, finals)


def study_of(
    swept: Sequence[float], finals: Sequence[tuple[int, int, float, str]], metric: str = ACCURACY
) -> optuna.Study:
    """A study with trials and, by number, finals: trial, seed, score and reason."""
    study = optuna.create_study()
    for score in swept:
        study.add_trial(create_trial(value=score, user_attrs={"metrics": {metric: score}}))
    study.set_user_attr("finals", [[trial, seed] for trial, seed, _, _ in finals])
    for number, (trial, seed, score, reason) in enumerate(finals):
        result: dict[str, Any] = {"trial": trial, "seed": seed, "reason": reason, "epochs": 3}
        result |= {"metrics": {} if math.isnan(score) else {metric: score}}
        result |= {"seconds": 1.0, "node": "", "checkpoint": ""}
        study.set_user_attr(f"final/{number:04}", result)
    return study


@pytest.mark.parametrize(
    ("level", "freedom", "t"),
    [
        (0.95, 1, 12.706),
        (0.95, 2, 4.303),
        (0.95, 3, 3.182),
        (0.95, 4, 2.776),
        (0.95, 9, 2.262),
        (0.95, 30, 2.042),
        (0.90, 5, 2.015),
        (0.99, 2, 9.925),
        (0.99, 10, 3.169),
        (0.999, 1, 636.619),
    ],
)
def test_t_is_that_of_the_printed_tables(level: float, freedom: int, t: float) -> None:
    assert student_t(level, freedom) == pytest.approx(t, abs=6e-4)


def test_t_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in (*range(1, 41), 99, 1000):
        for level in (0.5, 0.95, 0.99, 1 - 0.05 / 45):
            expected = stats.t.ppf((1 + level) / 2, freedom)
            assert student_t(level, freedom) == pytest.approx(expected, rel=1e-9)


def test_mean_and_spread_are_the_samples() -> None:
    scores = [0.81, 0.85, 0.86, 0.79]
    one = finalist(5, dict(enumerate(scores)))
    assert one.mean == pytest.approx(np.mean(scores))
    assert one.deviation == pytest.approx(np.std(scores, ddof=1))
    assert math.isnan(finalist(5, {0: 0.8}).deviation)
    assert math.isnan(finalist(5, {}).mean)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("pairs", [1, 3, 10])
def test_the_interval_is_that_of_the_paired_t_test_at_bonferronis_level(
    sign: int, pairs: int
) -> None:
    stats = pytest.importorskip("scipy.stats")
    draws = np.random.default_rng(0).normal(0.8, 0.05, (2, 5))
    one, other = (finalist(number, dict(enumerate(map(float, draws[number])))) for number in (0, 1))
    test = stats.ttest_rel(sign * draws[0], sign * draws[1])
    expected = test.confidence_interval(1 - 0.05 / pairs)
    got = compare(one, other, sign, pairs)
    assert (got.winner, got.other, got.seeds, got.pairs) == (0, 1, 5, pairs)
    assert got.difference == pytest.approx(sign * (draws[0] - draws[1]).mean())
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high))


def test_an_interval_by_hand() -> None:
    # Differences 0.01, 0.02, 0.03: mean 0.02, deviation 0.01, t(2) = 4.303.
    one, other = finalist(1, {1: 0.81, 2: 0.92, 3: 0.73}), finalist(2, {1: 0.8, 2: 0.9, 3: 0.7})
    got = compare(one, other, 1, 1)
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert (got.difference, got.low, got.high) == pytest.approx((0.02, 0.02 - half, 0.02 + half))


def test_only_seeds_that_both_finished_are_compared() -> None:
    one, other = finalist(1, {1: 0.9, 2: 0.8, 4: 0.1}), finalist(2, {2: 0.7, 3: 0.9, 1: 0.6})
    got = compare(one, other, 1, 1)
    assert got.seeds == 2
    assert got.difference == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("other", "seeds", "difference"),
    [
        ({7: 0.8}, 0, math.nan),
        ({1: 0.8}, 1, 0.1),
        ({1: 0.8, 2: 0.75, 3: 0.6}, 3, 0.1),  # always the same, but not to the last bit
        ({1: 0.9, 2: 0.85, 3: 0.7}, 3, 0.0),
    ],
)
def test_without_a_spread_of_the_differences_there_is_no_interval(
    other: dict[int, float], seeds: int, difference: float
) -> None:
    got = compare(finalist(1, {1: 0.9, 2: 0.85, 3: 0.7}), finalist(2, other), 1, 1)
    assert got.seeds == seeds
    assert got.difference == pytest.approx(difference, nan_ok=True)
    assert math.isnan(got.low)
    assert math.isnan(got.high)


def test_of_equal_trials_the_winner_is_rarely_called_better() -> None:
    draws = np.random.default_rng(0).normal(0.8, 0.02, (1500, 5, 3))
    claims = uncorrected = 0
    for scores in draws:
        all_ = [finalist(n, dict(enumerate(map(float, row)))) for n, row in enumerate(scores)]
        winner, *others = sorted(all_, key=lambda one: -one.mean)
        claims += any(compare(winner, other, 1, 10).low > 0 for other in others)
        uncorrected += any(compare(winner, other, 1, 1).low > 0 for other in others)
    assert claims / len(draws) < 0.05
    assert uncorrected / len(draws) > 0.2  # what five comparisons would do, each at 95 %


@pytest.mark.parametrize(("metric", "order"), [(ACCURACY, [1, 2, 0]), ("val/loss", [0, 2, 1])])
def test_the_winner_has_the_best_mean_whatever_the_sweep_said(
    metric: str, order: list[int]
) -> None:
    scores = {0: (0.1, 0.2), 1: (0.8, 0.6), 2: (0.9, 0.3)}
    finals = [(trial, seed, scores[trial][seed], "") for seed in (0, 1) for trial in (0, 1, 2)]
    outcome = judge(study_of([0.9, 0.8, 0.7], finals, metric), metric)
    assert [one.trial for one in outcome.finalists] == order
    assert outcome.winner is outcome.finalists[0]
    assert [one.swept for one in outcome.finalists] == [[0.9, 0.8, 0.7][n] for n in order]
    compared = [(one.winner, one.other, one.pairs) for one in outcome.comparisons]
    assert compared == [(order[0], order[1], 3), (order[0], order[2], 3)]
    assert all(one.difference > 0 for one in outcome.comparisons)


def test_a_finalist_is_judged_on_its_finished_finals() -> None:
    finals = [
        (0, 1, 0.9, ""),
        (1, 1, 0.8, ""),
        (0, 2, math.nan, "it burst"),
        (1, 2, 0.99, "its process was lost three times"),
        (2, 1, math.nan, "it burst"),
    ]
    outcome = judge(study_of([0.5, 0.6, 0.7], finals), ACCURACY)
    assert [(one.trial, one.scores) for one in outcome.finalists] == [
        (0, [0.9]),
        (1, [0.8]),
        (2, []),
    ]
    assert [final.number for final in outcome.failed] == [2, 3, 4]
    assert [(one.other, one.pairs) for one in outcome.comparisons] == [(1, 1)]


@pytest.mark.parametrize(
    ("metric", "scores", "number"),
    [
        (ACCURACY, [0.7, 0.9, 0.8], 2),
        (ACCURACY, [0.9, 0.7], 1),  # of two the worse
        (ACCURACY, [0.9, 0.6, 0.8, 0.7], 3),  # the worse of the two in the middle
        (ACCURACY, [0.7, 0.9, 0.9], 2),
        (ACCURACY, [0.7], 0),
        ("val/loss", [0.7, 0.9, 0.8], 2),
        ("val/loss", [0.9, 0.7], 0),
        ("val/loss", [0.9, 0.6, 0.8, 0.7], 2),
    ],
)
def test_the_winners_median_final_is_deployed(
    metric: str, scores: list[float], number: int
) -> None:
    finals = [(0, seed, score, "") for seed, score in enumerate(scores)]
    outcome = judge(study_of([0.5], finals, metric), metric)
    assert outcome.deployed is not None
    assert outcome.deployed.number == number


@pytest.mark.parametrize("finals", [[], [(0, 1, math.nan, "it burst")]])
def test_without_a_finished_final_there_is_no_winner(
    finals: list[tuple[int, int, float, str]],
) -> None:
    outcome = judge(study_of([0.5], finals), ACCURACY)
    assert outcome.winner is None
    assert outcome.deployed is None


@pytest.mark.parametrize(
    ("state", "whole"),
    [(TrialState.COMPLETE, True), (TrialState.PRUNED, False), (TrialState.RUNNING, False)],
)
def test_it_is_known_whether_the_sweep_trained_a_finalist_to_its_end(
    state: TrialState, whole: bool
) -> None:
    study = study_of([0.5], [(1, 1, 0.6, "")])
    value = 0.5 if whole else None
    study.add_trial(create_trial(state=state, value=value, user_attrs={"metrics": {ACCURACY: 0.5}}))
    assert judge(study, ACCURACY).finalists[0].whole is whole
