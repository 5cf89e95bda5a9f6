"""Trials of any length and age are compared at the same share of their own run."""

import inspect
import math
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from raymlc.options import SearchOptions
from raymlc.search.rungs import (
    CONFIG,
    FACTOR,
    FIRST,
    REASON,
    SPARED,
    chance,
    fractions,
    losses,
    order,
    reached,
    rung_epoch,
    spared,
    trust,
)


def trial(
    number: int,
    values: dict[int, float],
    state: TrialState = TrialState.PRUNED,
    epochs: int = 9,
    value: float | None = None,
    attributes: dict[str, object] | None = None,
) -> FrozenTrial:
    """A trial as a study hands it out."""
    one = create_trial(
        state=state,
        value=value,
        intermediate_values=values,
        user_attrs={CONFIG: {"epochs": epochs}, **(attributes or {})},
    )
    one.number = number
    return one


@pytest.mark.parametrize(
    ("first", "factor", "expected"),
    [(1 / 27, 3, [1 / 27, 1 / 9, 1 / 3, 1]), (1 / 4, 2, [1 / 4, 1 / 2, 1]), (0.3, 3, [1 / 3, 1])],
)
def test_rungs_are_a_factor_apart_and_end_with_the_full_run(
    first: float, factor: float, expected: list[float]
) -> None:
    assert fractions(first, factor) == pytest.approx(expected)


def test_the_help_of_pruner_and_its_page_name_the_rungs_that_are_the_default() -> None:
    early = [round(1 / fraction) for fraction in fractions(FIRST, FACTOR)[:-1]]
    page = (Path(__file__).parents[2] / "docs" / "deciding.md").read_text(encoding="utf-8")
    named = " and ".join([", ".join(f"1/{part}" for part in early[:-1]), f"1/{early[-1]}"])
    assert f"{named} of its own epochs" in inspect.getsource(SearchOptions)
    assert f"{named}, and the whole of a trial's own epochs" in page


@pytest.mark.parametrize(
    ("fraction", "epochs", "epoch"),
    [(1 / 3, 9, 3), (1 / 3, 10, 4), (1 / 27, 10, 1), (1, 10, 10), (1 / 9, 9, 1), (1 / 3, 1, 1)],
)
def test_a_rung_is_reached_with_the_epoch_that_completes_its_fraction(
    fraction: float, epochs: int, epoch: int
) -> None:
    assert rung_epoch(fraction, epochs) == epoch


def test_an_epoch_that_was_not_a_number_is_stood_for_by_the_next() -> None:
    values = {1: 0.5, 4: 0.4, 3: 0.3}
    assert [reached(values, epoch) for epoch in (1, 2, 3, 4, 5)] == [0.5, 0.3, 0.3, 0.4, None]


def test_a_trial_stands_on_every_rung_that_it_reached_with_its_loss_there() -> None:
    trials = [
        trial(0, {1: 0.9, 3: 0.5, 9: 0.2}, TrialState.COMPLETE, value=0.1),
        trial(1, {1: 0.8, 2: 0.7}),
        trial(2, {1: 0.7, 2: 0.6}, epochs=18),
        trial(3, {}, TrialState.RUNNING),
    ]
    at = [1 / 9, 1 / 3, 1]
    assert losses(trials, at, 9, StudyDirection.MINIMIZE) == [
        {0: 0.9, 1: 0.8, 2: 0.6},
        {0: 0.5},
        {0: 0.2},
    ]
    assert losses(trials, at, 9, StudyDirection.MAXIMIZE)[0] == {0: -0.9, 1: -0.8, 2: -0.6}


def test_a_failed_trial_is_the_worst_of_the_first_rung_that_it_did_not_reach() -> None:
    failed = trial(0, {1: 0.1, 2: 0.1}, TrialState.FAIL, attributes={REASON: "it burst"})
    at_once = trial(1, {}, TrialState.FAIL, attributes={REASON: "it burst"})
    never_handed_out = trial(2, {}, TrialState.FAIL)
    assert losses([failed, at_once, never_handed_out], [1 / 9, 1 / 3, 1], 9, minimize()) == [
        {0: 0.1, 1: math.inf},
        {0: math.inf},
        {},
    ]


def test_a_complete_trial_without_epochs_counts_with_its_value() -> None:
    one = trial(0, {}, TrialState.COMPLETE, value=0.3)
    assert losses([one], [1 / 3, 1], 9, minimize()) == [{0: 0.3}, {0: 0.3}]


def test_a_study_that_does_not_say_how_long_trials_are_has_the_longest() -> None:
    one = create_trial(state=TrialState.PRUNED, intermediate_values={1: 0.5, 2: 0.4, 3: 0.3})
    assert losses([one], [1 / 3, 1], 9, minimize()) == [{-1: 0.3}, {}]


@pytest.mark.parametrize(
    ("rungs", "expected"),
    [
        ([{0: 0.3, 1: 0.1, 2: 0.2}], [1, 2, 0]),
        # 1 and 2 hold the first two places, and share them out by what they became.
        ([{0: 0.3, 1: 0.1, 2: 0.2}, {1: 9.0, 2: 8.0}], [2, 1, 0]),
        # 0 came far, and stays behind 1, which was not seen there.
        ([{0: 0.3, 1: 0.1, 2: 0.2}, {0: 0.0, 2: 5.0}], [1, 0, 2]),
        ([{0: 1.0, 1: 1.0, 2: 1.0}, {2: 1.0, 0: 2.0}, {0: 0.5}], [2, 1, 0]),
        ([{0: math.inf, 1: 0.5}], [1, 0]),
        ([{}], []),
    ],
)
def test_trials_are_ranked_by_the_latest_rung_at_which_they_can_be_compared(
    rungs: list[dict[int, float]], expected: list[int]
) -> None:
    assert order(rungs) == expected


def test_any_stretch_of_trials_has_its_share_of_lots() -> None:
    for first in (0, 1000, 12345):
        drawn = [chance(number) for number in range(first, first + 40)]
        assert abs(sum(lot < SPARED for lot in drawn) / 40 - SPARED) < 0.06


def told(last: Callable[[float, int], float], count: int = 600) -> float:
    """Trust in a low rung of evenly spread losses, from which the last one follows."""
    low = {number: chance(3 * number + 1) for number in range(count)}
    spared_ones = [number for number in low if chance(number) < SPARED]
    return trust([low, {number: last(low[number], number) for number in spared_ones}])


def test_early_rungs_are_trusted_as_far_as_those_chosen_there_came_out_ahead() -> None:
    assert told(lambda loss, number: loss) > 0.95
    assert told(lambda loss, number: -loss) == 0
    assert told(lambda loss, number: chance(7 * number + 3)) < 0.5
    # Where all but a few are as bad as chance, order among the many does not count.
    noise = 0.001
    assert told(lambda loss, n: 0.1 if loss < 0.1 else 0.7 + noise * chance(7 * n)) > 0.9
    assert told(lambda loss, n: 0.1 if loss > 0.9 else 0.7 + noise * chance(7 * n)) < 0.1
    # One that exploded is no worse than the median.
    assert told(lambda loss, n: 1e30 if loss < 0.02 else loss) > 0.8


def test_early_rungs_are_trusted_at_first_and_no_trial_speaks_that_passed_by_its_worth() -> None:
    first = trust([{}, {}])
    assert first == trust([{0: 0.1}, {}]) > 0.5
    chosen = [number for number in range(40) if chance(number) >= SPARED]
    assert trust([{n: float(n) for n in chosen}, {n: -float(n) for n in chosen}]) == first
    failed = {number: math.inf for number in range(40) if chance(number) < SPARED}
    assert trust([failed, failed]) == first


def test_the_less_early_rungs_are_trusted_the_more_trials_are_spared_them() -> None:
    shares = [spared(trusted) for trusted in (0.0, 0.5, 0.6, 1.0)]
    assert shares == [1.0, 0.25, pytest.approx(0.16), SPARED]


def minimize() -> StudyDirection:
    """The direction of a loss."""
    return optuna.study.StudyDirection.MINIMIZE
