"""Trials of several objectives: fronts as Optuna finds them, rungs by rank, and a pick by weights.

Shapes: N trials, M objectives.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import optuna
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from optuna.samplers.nsgaii._elite_population_selection_strategy import _calc_crowding_distance
from optuna.study import StudyDirection
from optuna.study._multi_objective import _fast_non_domination_rank
from optuna.trial import TrialState, create_trial

from raymlc.errors import UserError
from raymlc.search.front import (
    front,
    halted,
    losses_at,
    pick,
    places,
    prune_by_rank,
    ranks,
    tell_vector,
)
from raymlc.search.rungs import CONFIG, REASON

Rows = list[tuple[float, ...]]
INF, NAN = math.inf, math.nan


def table(values: st.SearchStrategy[float], least: int = 0) -> st.SearchStrategy[Rows]:
    """Any number of rows of one to four values; few different ones give many ties."""
    return st.integers(1, 4).flatmap(
        lambda width: st.lists(st.tuples(*[values] * width), min_size=least, max_size=14)
    )


FEW = st.integers(-2, 2).map(float)
MANY = st.floats(-1e6, 1e6).map(lambda value: round(value, 6))
ODD = st.sampled_from([-1.0, -0.0, 0.0, 1.0, 2.0, INF, -INF, NAN])


def array(rows: Sequence[Sequence[float]], width: int = 2) -> NDArray[np.float64]:
    return np.array(rows, np.float64).reshape(len(rows), -1 if rows else width)


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def ranks_by_hand(rows: Sequence[Sequence[float]]) -> list[int]:
    """Front after front taken off; what is not finite comes last."""
    rank: dict[int, int] = {}
    left = {at for at, row in enumerate(rows) if all(map(math.isfinite, row))}
    number = 0
    while left:
        best = {at for at in left if not any(dominates(rows[other], rows[at]) for other in left)}
        rank |= dict.fromkeys(best, number)
        left -= best
        number += 1
    return [rank.get(at, number) for at in range(len(rows))]


@given(table(FEW) | table(MANY) | table(ODD))
def test_ranks_are_those_of_fronts_taken_off_one_after_another(rows: Rows) -> None:
    assert ranks(array(rows)).tolist() == ranks_by_hand(rows)


@given(table(FEW, least=1) | table(MANY, least=1))
def test_ranks_are_those_of_optuna(rows: Rows) -> None:
    losses_NM = array(rows)
    np.testing.assert_array_equal(ranks(losses_NM), _fast_non_domination_rank(losses_NM))


def test_thousands_of_fronts_of_one_trial_each_are_ranked_in_a_moment() -> None:
    losses_NM = np.arange(3000.0).repeat(3).reshape(3000, 3)
    assert ranks(losses_NM).tolist() == list(range(3000))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], []),
        ([(1, 2)], [0]),
        ([(1, 2), (2, 1)], [0, 0]),
        ([(1, 2), (1, 3), (1, 2)], [0, 1, 0]),
        ([(2, 2), (1, 1), (3, 3)], [1, 0, 2]),
        ([(INF, 0), (5, 5), (0, NAN), (-INF, 9)], [1, 0, 1, 1]),
        ([(INF, 0), (NAN, 1)], [0, 0]),
    ],
)
def test_equal_rows_share_a_rank_and_the_last_is_of_those_that_are_not_finite(
    rows: Rows, expected: list[int]
) -> None:
    assert ranks(array(rows)).tolist() == expected


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], []),
        ([(0, 0)], [0]),
        ([(2.0,), (1.0,), (3.0,), (1.0,)], [2, 0, 3, 0]),
        # On one front the ends are first, then who has the most room.
        ([(0, 9), (1, 8), (2, 7), (5, 4), (9, 0)], [0, 4, 3, 2, 0]),
        ([(0, 9), (9, 0), (1, 9), (9, 1)], [0, 0, 2, 2]),
        # A copy takes nobody's room: both have the place that one alone would have.
        ([(0, 9), (5, 4), (5, 4), (6, 3), (9, 0)], [0, 2, 2, 4, 0]),
        ([(INF, 0), (1, 1), (NAN, NAN)], [1, 0, 1]),
        ([(INF, 0), (INF, 5), (INF, 9), (9, 9)], [1, 1, 1, 0]),
    ],
)
def test_places_go_by_rank_and_then_by_room(rows: Rows, expected: list[int]) -> None:
    assert places(array(rows)).tolist() == expected


@given(st.lists(st.tuples(MANY, MANY, MANY), min_size=1, max_size=12))
def test_room_is_the_crowding_distance_of_optunas_nsga_ii(rows: Rows) -> None:
    distinct = [row for row, rank in zip(rows, ranks_by_hand(rows), strict=True) if rank == 0]
    distinct = list(dict.fromkeys(distinct))
    # With equal values in one objective the neighbour of a row is anybody's choice.
    assume(all(len(set(column)) == len(distinct) for column in zip(*distinct, strict=True)))
    population = [create_trial(values=list(row), state=TrialState.COMPLETE) for row in distinct]
    for number, trial in enumerate(population):
        trial.number = number
    room = _calc_crowding_distance(list(population))
    place = places(array(distinct))
    for one in range(len(distinct)):
        for other in range(len(distinct)):
            if room[one] > room[other]:
                assert place[one] < place[other]


@given(table(FEW, least=1), st.randoms())
def test_places_are_a_trials_own_whatever_the_order_of_the_trials(rows: Rows, random: Any) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    place = places(array(rows)).tolist()
    assert places(array(rows)[order]).tolist() == [place[at] for at in order]
    for at, row in enumerate(rows):
        for other, another in enumerate(rows):
            assert not dominates(row, another) or place[at] < place[other]
            assert row != another or place[at] == place[other]


ACCURACIES = ("val/accuracy/a", "val/accuracy/b")


def stored(
    rows: Sequence[Sequence[float]], names: Sequence[str] = ACCURACIES
) -> dict[int, dict[str, float]]:
    return {at: dict(zip(names, row, strict=True)) for at, row in enumerate(rows)}


@given(
    st.lists(st.tuples(FEW, FEW, FEW), max_size=12),
    st.tuples(*[st.sampled_from(["val/accuracy/a", "val/loss/a"])] * 3),
)
def test_the_front_is_that_of_an_optuna_study(rows: Rows, kinds: tuple[str, ...]) -> None:
    names = tuple(f"{kind}{at}" for at, kind in enumerate(kinds))
    study = optuna.create_study(
        directions=["minimize" if name.startswith("val/loss") else "maximize" for name in names]
    )
    study.add_trials([create_trial(values=list(row)) for row in rows])
    assert front(stored(rows, names), names) == sorted(one.number for one in study.best_trials)


def test_a_trial_without_a_finite_number_is_on_no_front() -> None:
    metrics = stored([(0.1, 0.2), (0.9, NAN), (INF, 0.1)]) | {7: {}, 9: {"val/accuracy/a": 0.9}}
    assert front(metrics, ACCURACIES) == [0]
    assert front(metrics, ("val/accuracy/a",)) == [1, 9]
    assert front({3: {}}, ACCURACIES) == []
    assert front({}, ACCURACIES) == []


@given(
    st.dictionaries(st.integers(0, 20), st.tuples(FEW, FEW), min_size=1),
    st.sampled_from([1.5, 2.0, 3.0, 4.0]),
)
def test_a_trial_goes_on_if_fewer_than_a_share_of_the_others_are_before_it(
    losses: dict[int, tuple[float, float]], factor: float
) -> None:
    place = dict(zip(losses, places(array(list(losses.values()))), strict=True))
    for number in losses:
        goes_on = len(losses) == 1 or place[number] < (len(losses) - 1) / factor
        assert halted(losses, number, factor) is not goes_on


@given(st.dictionaries(st.integers(0, 30), FEW, min_size=2), st.sampled_from([2, 3, 4]))
def test_with_one_objective_it_is_plain_successive_halving(
    losses: dict[int, float], factor: int
) -> None:
    vectors = {number: [loss] for number, loss in losses.items()}
    for number, mine in losses.items():
        ahead = sum(loss < mine for loss in losses.values())
        assert halted(vectors, number, factor) is (ahead > max(0, (len(losses) - 2) / factor))


def test_the_cut_front_keeps_its_ends_and_whoever_has_room() -> None:
    losses = {at: (x, 9 - x) for at, x in enumerate([0.0, 0.5, 1.0, 4.0, 8.5, 9.0])}
    assert [halted(losses, at, 2) for at in losses] == [False, True, True, False, True, False]


def test_all_that_failed_are_alike() -> None:
    assert not halted({0: [INF, INF], 1: [INF, INF]}, 1, 3)
    assert halted({0: [1.0, 1.0], 1: [INF, INF]}, 1, 3)


class Sweep:
    """A study of two objectives whose trials report their vectors, in memory."""

    def __init__(self, *directions: Literal["minimize", "maximize"], longest: int = 9) -> None:
        self.study = optuna.create_study(directions=directions or ("minimize", "minimize"))
        self.longest = longest

    def begin(self, epochs: int = 9) -> optuna.Trial:
        trial = self.study.ask()
        trial.set_user_attr(CONFIG, {"epochs": epochs})
        return trial

    def report(self, trial: optuna.Trial, epoch: int, values: Sequence[float]) -> bool:
        tell_vector(trial, epoch, values)
        return self.prunes(trial)

    def prunes(self, trial: optuna.Trial) -> bool:
        frozen = self.study.get_trials(deepcopy=False)[trial.number]
        return prune_by_rank(self.study, frozen, self.longest, 1 / 9, 3)

    def run(self, vectors: Sequence[Sequence[float]], epochs: int = 9) -> int:
        """The epoch at which a trial of these vectors is stopped; 0 for never."""
        trial = self.begin(epochs)
        for epoch, values in enumerate(vectors, start=1):
            if self.report(trial, epoch, values):
                self.study.tell(trial, state=TrialState.PRUNED)
                return epoch
        self.study.tell(trial, list(vectors[-1]))
        return 0


def test_the_first_trial_runs_to_its_end_and_one_that_it_dominates_stops_at_the_first_rung() -> (
    None
):
    sweep = Sweep()
    assert sweep.run([(0.5, 0.5)] * 9) == 0
    assert sweep.run([(0.6, 0.5)] * 9) == 1
    assert sweep.run([(0.5, 0.5)] * 9) == 0


def test_a_trial_that_is_best_in_one_objective_goes_on_however_bad_it_is_in_another() -> None:
    sweep = Sweep()
    for value in (0.3, 0.2, 0.1):
        assert sweep.run([(value, value)]) == 0
    assert sweep.run([(0.05, 9.0)]) == 0
    assert sweep.run([(9.0, 0.05)]) == 0
    assert sweep.run([(0.15, 0.15)]) == 1


def test_directions_are_the_studys() -> None:
    sweep = Sweep("maximize", "minimize")
    vectors = [(0.1, 0.3), (0.2, 0.2), (0.3, 0.1), (0.2, 0.3)]
    assert [sweep.run([values]) for values in vectors] == [0, 0, 0, 1]


def test_epochs_between_rungs_stop_nothing() -> None:
    sweep = Sweep()
    sweep.run([(0.5, 0.5)] * 9)
    good, bad = (0.5, 0.5), (0.9, 0.9)
    assert sweep.run([good, bad, good, bad, bad, bad, bad, bad, bad]) == 0
    assert sweep.run([good, bad, bad]) == 3


def test_rungs_are_shares_of_a_trials_own_run() -> None:
    sweep = Sweep(longest=27)
    assert sweep.run([(0.5, 0.5)] * 9, epochs=9) == 0
    assert sweep.run([(0.5, 0.5)] * 8 + [(0.9, 0.9)], epochs=27) == 9
    assert sweep.run([(0.5, 0.5)] * 2 + [(0.9, 0.9)], epochs=9) == 3


def test_a_trial_that_does_not_say_how_long_it_is_has_the_longest() -> None:
    sweep = Sweep(longest=27)
    sweep.run([(0.5, 0.5)] * 9, epochs=9)
    trial = sweep.study.ask()
    assert [sweep.report(trial, epoch, (0.9, 0.9)) for epoch in (1, 2, 3, 4)] == [
        False, False, True, False,
    ]  # fmt: skip


def test_a_rung_that_was_no_number_is_made_up_for_at_the_next_epoch() -> None:
    sweep = Sweep()
    sweep.run([(0.1, 0.1)] * 9)
    trial = sweep.begin()
    assert not sweep.prunes(trial)
    assert not sweep.report(trial, 1, (0.1, 0.1))
    assert not sweep.report(trial, 2, (0.1, 0.1))
    assert not sweep.report(trial, 3, (0.0, NAN))
    assert sweep.report(trial, 4, (0.5, 0.5))
    assert sweep.prunes(trial)  # asked again, it says the same


def test_a_trial_at_a_rung_is_compared_with_those_that_run_as_well() -> None:
    sweep = Sweep()
    sweep.report(sweep.begin(), 1, (0.1, 0.1))
    assert sweep.run([(0.2, 0.2)]) == 1


def test_failed_trials_count_as_the_worst_and_spare_no_other() -> None:
    sweep = Sweep()
    for _ in range(6):
        failed = sweep.begin()
        failed.set_user_attr(REASON, "the loss was not finite")
        sweep.study.tell(failed, state=TrialState.FAIL)
    assert sweep.run([(0.5, 0.5)]) == 0
    assert sweep.run([(0.6, 0.6)]) == 0  # among the best third of seven
    assert [sweep.run([(loss, loss)]) for loss in (0.55, 0.9)] == [0, 1]


def test_where_a_short_trial_passes_two_rungs_in_one_epoch_the_higher_one_counts() -> None:
    sweep = Sweep()
    sweep.run([(0.5, 0.5)] * 2 + [(0.1, 0.1)] * 7)
    assert sweep.run([(0.3, 0.3)] * 9) == 3
    assert sweep.run([(0.3, 0.3)] * 2, epochs=2) == 1


def test_a_trial_stands_on_every_rung_that_it_reached_or_on_the_first_that_it_failed_to_reach() -> (
    None
):
    def trial(number: int, state: TrialState, told: dict[str, list[float]], **more: Any) -> Any:
        vectors = {f"vector/{epoch}": values for epoch, values in told.items()}
        one = create_trial(
            state=state,
            values=more.pop("values", None),
            user_attrs={CONFIG: {"epochs": 9}, **vectors, **more},
        )
        one.number = number
        return one

    trials = [
        trial(0, TrialState.COMPLETE, {"1": [1, 2], "3": [3, 4], "9": [NAN, 0]}, values=[5, 6]),
        trial(1, TrialState.PRUNED, {"2": [7, 8]}),
        trial(2, TrialState.FAIL, {"1": [1, 1]}, **{REASON: "it burst"}),
        trial(3, TrialState.FAIL, {}, **{REASON: "it burst"}),
        trial(4, TrialState.FAIL, {"9": [0, 0]}),  # never handed out
        trial(5, TrialState.RUNNING, {}),
        trial(6, TrialState.COMPLETE, {}, values=[9, 9]),
        trial(7, TrialState.RUNNING, {"2": [3, 3], "10": [4, 4]}),
    ]
    directions = [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]
    assert losses_at(trials, [1 / 9, 1 / 3, 1], 9, directions) == [
        {0: [1, -2], 1: [7, -8], 2: [1, -1], 3: [INF, INF], 6: [9, -9], 7: [3, -3]},
        {0: [3, -4], 2: [INF, INF], 6: [9, -9], 7: [4, -4]},
        {0: [5, -6], 6: [9, -9], 7: [4, -4]},
    ]


def picked(rows: Sequence[Sequence[float]], *weights: float) -> list[tuple[int, Any, bool]]:
    found = pick(stored(rows), dict(zip(ACCURACIES, weights, strict=True)))
    return [(one.number, pytest.approx(one.score), one.rank == 0) for one in found]


@pytest.mark.parametrize(
    ("weights", "order"),
    [
        ((1, 0), [(2, 1, True), (1, 0.75, True), (0, 0, True), (3, 0, False)]),
        ((0, 1), [(0, 1, True), (1, 0.5, True), (2, 0, True), (3, -1, False)]),
        ((1, 1), [(1, 0.625, True), (0, 0.5, True), (2, 0.5, True), (3, -0.5, False)]),
        ((8, 4), [(1, 2 / 3, True), (2, 2 / 3, True), (0, 1 / 3, True), (3, -1 / 3, False)]),
    ],
)
def test_scores_are_weighted_means_of_shares_of_the_fronts_span(
    weights: tuple[float, float], order: list[tuple[int, float, bool]]
) -> None:
    rows = [(0.5, 0.75), (0.875, 0.5), (1.0, 0.25), (0.5, -0.25)]
    assert picked(rows, *weights) == order


def test_a_loss_counts_the_more_the_lower_it_is() -> None:
    names = ("val/accuracy", "val/loss")
    metrics = stored([(0.9, 3.0), (0.8, 1.0)], names)
    assert [one.number for one in pick(metrics, dict(zip(names, (1, 9), strict=True)))] == [1, 0]
    assert [one.number for one in pick(metrics, dict(zip(names, (9, 1), strict=True)))] == [0, 1]


def test_of_one_metric_the_best_has_1_and_others_lose_the_difference() -> None:
    found = pick(stored([(0.75,), (0.5,), (0.75,)], ["val/accuracy"]), {"val/accuracy": 3})
    assert [(one.number, one.score, one.rank == 0) for one in found] == [
        (0, 1.0, True), (2, 1.0, True), (1, 0.75, False),
    ]  # fmt: skip


@given(
    st.lists(st.tuples(FEW | MANY, FEW | MANY), min_size=1, max_size=10),
    st.tuples(st.floats(0, 1e3), st.floats(0, 1e3)).filter(any),
)
def test_the_first_is_on_the_front_and_what_a_trial_dominates_comes_after_it(
    rows: Rows, weights: tuple[float, float]
) -> None:
    found = picked(rows, *weights)
    order = [number for number, _, _ in found]
    assert sorted(order) == list(range(len(rows)))
    assert found[0][2]
    losses = [tuple(-value for value in row) for row in rows]
    for at, number in enumerate(order):
        assert not any(dominates(losses[later], losses[number]) for later in order[at + 1 :])


def test_trials_without_a_number_are_not_picked() -> None:
    metrics = stored([(0.1, NAN), (0.1, 0.1)]) | {5: {}}
    assert [one.number for one in pick(metrics, dict.fromkeys(ACCURACIES, 1.0))] == [1]
    assert pick({5: {}}, dict.fromkeys(ACCURACIES, 1.0)) == []


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ((1, -0.5), "that of val/accuracy/b is -0.5"),
        ((INF, 1), "that of val/accuracy/a is inf"),
        ((NAN, 1), "that of val/accuracy/a is nan"),
        ((0, 0), "val/accuracy/a and val/accuracy/b has 0"),
    ],
)
def test_weights_are_finite_and_none_is_below_0_and_one_is_above(
    weights: tuple[float, float], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        picked([(0.1, 0.2)], *weights)
