"""A trial goes on at a share of its own run if it is among the best, at once or later."""

from typing import Literal

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from raymlc.search.pruner import OneEpochPruner, Promoting, PromotingPruner, RungPruner
from raymlc.search.rungs import CONFIG, PAUSED, REASON, SPARED, chance


def study(
    direction: Literal["minimize", "maximize"] = "minimize", longest: int = 9
) -> optuna.Study:
    return optuna.create_study(
        direction=direction, pruner=RungPruner(longest, first=1 / 9, factor=3)
    )


def run(one: optuna.Study, values: list[float], epochs: int = 9) -> int:
    """Report values epoch by epoch; the epoch at which the pruner stops the trial, 0 for never."""
    trial = one.ask()
    trial.set_user_attr(CONFIG, {"epochs": epochs})
    for epoch, value in enumerate(values, start=1):
        trial.report(value, epoch)
        if trial.should_prune():
            one.tell(trial, state=TrialState.PRUNED)
            return epoch
    one.tell(trial, values[-1])
    return 0


def test_the_first_trial_runs_to_its_end() -> None:
    assert run(study(), [9.0] * 8) == 0


@pytest.mark.parametrize(
    ("loss", "stopped_at"), [(0.05, 0), (0.15, 0), (0.25, 0), (0.35, 1), (0.75, 1)]
)
def test_only_the_best_third_of_those_before_goes_on(loss: float, stopped_at: int) -> None:
    one = study()
    before = [0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]  # each is the best so far, so all go on
    for value in before:
        assert run(one, [value]) == 0
    assert run(one, [loss]) == stopped_at


def test_higher_is_better_where_the_study_says_so() -> None:
    one = study("maximize")
    assert [run(one, [value]) for value in (0.1, 0.2, 0.3, 0.05)] == [0, 0, 0, 1]


def test_rungs_are_shares_of_a_trials_own_run() -> None:
    one = study(longest=27)
    assert run(one, [0.5] * 9, epochs=9) == 0
    # A third of 27 epochs is the ninth: there it is compared with the third of 9.
    assert run(one, [0.5] * 8 + [0.9], epochs=27) == 9
    assert run(one, [0.5] * 2 + [0.9], epochs=9) == 3


def test_epochs_between_rungs_stop_nothing() -> None:
    one = study()
    run(one, [0.5] * 9)
    assert run(one, [0.5, 0.9, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9]) == 0


def test_trials_that_are_as_good_as_the_best_go_on() -> None:
    one = study()
    assert [run(one, [0.001]) for _ in range(9)] == [0] * 9


def test_a_trial_at_a_rung_is_compared_with_those_that_run_as_well() -> None:
    one = study()
    running = one.ask()
    running.set_user_attr(CONFIG, {"epochs": 9})
    running.report(0.1, 1)
    assert run(one, [0.2]) == 1


def test_failed_trials_count_as_the_worst_and_spare_no_other() -> None:
    one = study()
    for _ in range(6):
        failed = one.ask()
        failed.set_user_attr(CONFIG, {"epochs": 9})
        failed.set_user_attr(REASON, "the loss was not finite")
        one.tell(failed, state=TrialState.FAIL)
    assert run(one, [0.5]) == 0
    assert run(one, [0.6]) == 0  # among the best third of seven
    assert [run(one, [loss]) for loss in (0.55, 0.9)] == [0, 1]


def test_a_trial_without_a_value_goes_on() -> None:
    one = study()
    run(one, [0.1] * 9)
    trial = one.ask()
    assert not trial.should_prune()


def test_a_rung_that_was_no_number_is_made_up_for_at_the_next_epoch() -> None:
    one = study()
    run(one, [0.1] * 9)
    trial = one.ask()
    trial.set_user_attr(CONFIG, {"epochs": 9})
    trial.report(0.1, 1)
    trial.report(0.1, 2)
    trial.report(0.5, 4)  # the third epoch's value was NaN, which a study does not take
    assert trial.should_prune()
    assert trial.should_prune()  # asked again, it says the same


def test_both_rungs_of_a_short_trial_in_one_epoch_count() -> None:
    one = study()
    for value in (0.5, 0.4, 0.3):
        assert run(one, [value], epochs=2) == 0
    assert run(one, [0.45], epochs=2) == 1


def test_some_trials_are_spared_until_the_last_rung_and_more_where_early_rungs_mislead() -> None:
    def stops(foretell: bool) -> list[int]:
        one = study()
        rng = np.random.default_rng(0)
        found = []
        for _ in range(300):
            worth = float(rng.random())
            early = worth if foretell else 1 - worth
            found.append(run(one, [early] * 2 + [worth] * 7))
        return found[100:]

    told, misled = stops(True), stops(False)
    assert 0.5 < told.count(1) / 200 < 0.67  # halving would stop two thirds there
    assert misled.count(1) / 200 < 0.3
    assert misled.count(3) / 200 > 0.4


class Sweep:
    """A study whose trials are halted and continued, as the book does it, counted from 0.

    Numbers whose lot would spare them a rung are left out: they are failed without a reason.
    """

    def __init__(
        self, pruner: Promoting, direction: Literal["minimize", "maximize"] = "minimize"
    ) -> None:
        self.study = optuna.create_study(direction=direction, pruner=pruner)
        self.pruner = pruner
        self.trials: list[optuna.Trial] = []
        self.paused: set[int] = set()

    def begin(self) -> int:
        trial = self.study.ask()
        while chance(trial.number) < SPARED:
            self.study.tell(trial, state=TrialState.FAIL)
            trial = self.study.ask()
        trial.set_user_attr(CONFIG, {"epochs": 9})
        self.trials.append(trial)
        return len(self.trials) - 1

    def go(self, at: int, values: list[float], from_epoch: int = 1) -> int:
        """Report values; the epoch at which the trial is halted, 0 for its end or not yet."""
        trial = self.trials[at]
        for epoch, value in enumerate(values, start=from_epoch):
            trial.report(value, epoch)
            if epoch == 9:
                self.study.tell(trial, value)
            elif trial.should_prune():
                trial.set_user_attr(PAUSED, True)
                self.paused.add(at)
                return epoch
        return 0

    def run(self, values: list[float]) -> int:
        return self.go(self.begin(), values)

    def promote(self, all_asked: bool = False) -> int | None:
        numbers = [trial.number for trial in self.trials]
        halted = [numbers[at] for at in self.paused]
        number = self.pruner.promote(self.study, halted, all_asked)
        if number is None:
            return None
        at = numbers.index(number)
        self.paused.remove(at)
        self.trials[at].set_user_attr(PAUSED, False)
        return at

    def fail(self, at: int) -> None:
        self.trials[at].set_user_attr(REASON, "the loss was not finite")
        self.study.tell(self.trials[at], state=TrialState.FAIL)

    def frozen(self, at: int) -> FrozenTrial:
        return self.study.trials[self.trials[at].number]


def promoting(direction: Literal["minimize", "maximize"] = "minimize") -> Sweep:
    return Sweep(PromotingPruner(9, first=1 / 9, factor=3), direction)


def test_a_promising_trial_that_came_early_is_continued_when_worse_ones_have_come() -> None:
    sweep = promoting()
    for loss in (0.1, 0.2, 0.6, 0.7, 0.8):
        assert sweep.run([loss]) == 1
        promoted = [sweep.promote(), sweep.promote()]
        # The best of three goes on with the third, the second with the sixth.
        assert promoted == [0 if len(sweep.trials) == 3 else None, None]
    assert sweep.run([0.9]) == 1
    assert sweep.promote() == 1
    assert sweep.promote() is None
    assert sweep.paused == {2, 3, 4, 5}


def test_who_is_among_the_best_third_with_the_trials_before_goes_on_at_once() -> None:
    sweep = promoting()
    assert [sweep.run([loss]) for loss in (0.3, 0.2, 0.1, 0.4, 0.5, 0.15)] == [1, 1, 0, 1, 1, 0]


def test_higher_is_better_in_a_promotion_where_the_study_says_so() -> None:
    sweep = promoting("maximize")
    for value in (0.9, 0.8, 0.4):
        sweep.run([value])
    assert sweep.promote() == 0


def test_who_was_promoted_past_a_rung_is_not_halted_there_again_but_at_the_next() -> None:
    sweep = promoting()
    for loss in (0.2, 0.6, 0.7):
        sweep.run([loss])
    assert sweep.promote() == 0
    assert sweep.go(0, [0.9, 0.9, 0.9], from_epoch=2) == 3
    assert sweep.promote() is None


def test_the_highest_rung_is_served_first_and_there_the_best() -> None:
    sweep = promoting()
    later = []
    for loss in (0.3, 0.2, 0.1, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.35, 0.45, 0.55):
        sweep.run([loss])
    for _ in range(3):
        number = sweep.promote()
        assert number is not None
        later.append(number)
    assert later == [1, 0, 9]  # trial 2 went on at once
    for number, loss in ((1, 0.6), (0, 0.5), (9, 0.8)):
        assert sweep.go(number, [loss, loss], from_epoch=2) == 3
    for loss in (0.91, 0.92, 0.93):
        sweep.run([loss])
    assert [sweep.promote() for _ in range(3)] == [0, 3, None]


def test_whatever_the_order_of_arrival_the_best_third_goes_on() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        sweep = promoting()
        losses = rng.permutation(60) / 60
        for loss in losses:
            sweep.run([float(loss)])
            while sweep.promote() is not None:
                pass
        gone_on = set(range(60)) - sweep.paused
        assert gone_on >= set(np.argsort(losses)[:20].tolist())
        assert len(gone_on) < 35  # and some that were among the best when they came


def test_what_a_pruner_remembers_of_trials_changes_no_decision() -> None:
    rng = np.random.default_rng(0)
    sweep = promoting()
    promoted, fresh = [], []
    for _ in range(40):
        at = sweep.begin()
        if rng.random() < 0.1:
            sweep.fail(at)
        else:
            sweep.go(at, [float(rng.random())])
        new = PromotingPruner(9, first=1 / 9, factor=3)
        numbers = [trial.number for trial in sweep.trials]
        fresh.append(new.promote(sweep.study, [numbers[at] for at in sweep.paused], False))
        at_once = sweep.promote()
        promoted.append(None if at_once is None else numbers[at_once])
        if at_once is not None:
            first = max(sweep.frozen(at_once).intermediate_values) + 1
            if not sweep.go(at_once, [float(rng.random())] * 2, first):
                sweep.fail(at_once)
    assert promoted == fresh
    assert len(set(promoted)) > 5


def test_running_and_failed_trials_count_at_a_rung_from_which_others_are_promoted() -> None:
    sweep = promoting()
    assert sweep.run([0.2]) == 1
    sweep.go(sweep.begin(), [0.3])
    assert sweep.promote() is None
    sweep.fail(sweep.begin())
    assert sweep.promote() == 0


def test_a_promoted_trial_that_fails_leaves_its_place_to_the_next() -> None:
    sweep = promoting()
    for loss in (0.1, 0.2, 0.3):
        sweep.run([loss])
    assert [sweep.promote(), sweep.promote()] == [0, None]
    sweep.fail(0)
    assert [sweep.promote(), sweep.promote()] == [1, None]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_of_few_trials_one_still_gets_to_its_end(count: int) -> None:
    sweep = promoting()
    for number in range(count):
        sweep.run([0.5 - number / 10] * 9)
    for _ in range(2 * count):
        promoted = sweep.promote(all_asked=True)
        if promoted is not None:
            first = max(sweep.frozen(promoted).intermediate_values) + 1
            sweep.go(promoted, [0.5 - promoted / 10] * (10 - first), first)
    complete = [n for n in range(count) if sweep.frozen(n).state == TrialState.COMPLETE]
    assert complete == [count - 1]


@pytest.mark.parametrize(("count", "going_on"), [(1, 1), (3, 1), (4, 2), (6, 2), (7, 3)])
def test_when_no_trial_will_be_begun_any_more_the_share_is_rounded_up(
    count: int, going_on: int
) -> None:
    sweep = promoting()
    for number in range(count):
        sweep.run([0.1 + number / 10])
    promoted = []
    while (at := sweep.promote()) is not None:
        promoted.append(at)
    assert promoted == list(range(count // 3))
    while (at := sweep.promote(all_asked=True)) is not None:
        promoted.append(at)
    assert promoted == list(range(going_on))


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_every_trial_gets_one_epoch_and_then_the_best_tenth_the_rest(
    direction: Literal["minimize", "maximize"],
) -> None:
    sweep = Sweep(OneEpochPruner(), direction)
    sign = 1 if direction == "minimize" else -1
    values = [5, 4, 9, 1, 8, 2, 7, 3, 6, 0, *range(10, 20)]
    for value in values[:-1]:
        assert sweep.run([sign * value]) == 1
        assert sweep.promote() is None
    last = sweep.begin()
    assert sweep.promote(all_asked=True) is None  # one is still in its first epoch
    assert sweep.go(last, [sign * values[-1]]) == 1
    assert [sweep.promote(all_asked=True) for _ in range(3)] == [9, 3, None]
    assert sweep.go(9, [99.0 * sign] * 8, from_epoch=2) == 0
    assert sweep.frozen(9).state == TrialState.COMPLETE


def test_at_least_one_of_few_goes_on_after_its_one_epoch_and_another_in_place_of_a_failed() -> None:
    sweep = Sweep(OneEpochPruner())
    for value in (0.3, 0.1, 0.2):
        sweep.run([value])
    assert [sweep.promote(all_asked=True) for _ in range(2)] == [1, None]
    sweep.fail(1)
    assert [sweep.promote(all_asked=True) for _ in range(2)] == [2, None]


def test_with_no_trial_there_is_none_to_promote() -> None:
    assert promoting().promote(all_asked=True) is None
    assert Sweep(OneEpochPruner()).promote(all_asked=True) is None
