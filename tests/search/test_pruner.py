"""A trial goes on at a share of its own run if it is among the best, at once or later."""

from typing import Literal

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

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
            early = worth if foretell else float(rng.random())
            found.append(run(one, [early] * 2 + [worth] * 7))
        return found[100:]

    told, misled = stops(True), stops(False)
    assert 0.5 < told.count(1) / 200 < 0.7  # of those that halving would stop there: two thirds
    assert misled.count(1) / 200 < 0.35
    assert misled.count(3) / 200 > 0.25


class Sweep:
    """A study whose trials are halted and continued, as the book does it."""

    def __init__(
        self, pruner: Promoting, direction: Literal["minimize", "maximize"] = "minimize"
    ) -> None:
        self.study = optuna.create_study(direction=direction, pruner=pruner)
        self.pruner = pruner
        self.trials: list[optuna.Trial] = []
        self.paused: set[int] = set()

    def begin(self, epochs: int = 9) -> int:
        trial = self.study.ask()
        trial.set_user_attr(CONFIG, {"epochs": epochs})
        self.trials.append(trial)
        return trial.number

    def go(self, number: int, values: list[float], from_epoch: int = 1, epochs: int = 9) -> int:
        """Report values; the epoch at which the trial is halted, 0 for its end or not yet."""
        trial = self.trials[number]
        for epoch, value in enumerate(values, start=from_epoch):
            trial.report(value, epoch)
            if epoch == epochs:
                self.study.tell(trial, value)
            elif trial.should_prune():
                trial.set_user_attr(PAUSED, True)
                self.paused.add(number)
                return epoch
        return 0

    def run(self, values: list[float]) -> int:
        return self.go(self.begin(), values)

    def promote(self, all_asked: bool = False) -> int | None:
        number = self.pruner.promote(self.study, self.paused, all_asked)
        if number is not None:
            self.paused.remove(number)
            self.trials[number].set_user_attr(PAUSED, False)
        return number

    def fail(self, number: int) -> None:
        self.trials[number].set_user_attr(REASON, "the loss was not finite")
        self.study.tell(self.trials[number], state=TrialState.FAIL)


def promoting(direction: Literal["minimize", "maximize"] = "minimize") -> Sweep:
    return Sweep(PromotingPruner(9, first=1 / 9, factor=3), direction)


def test_a_promising_trial_that_came_early_is_continued_when_worse_ones_have_come() -> None:
    sweep = promoting()
    sweep.run([0.1])
    assert sweep.run([0.2]) == 1  # the second of two: halted
    assert sweep.promote() is None
    for loss in (0.6, 0.7):
        sweep.run([loss])
        assert sweep.promote() is None
    sweep.run([0.8])
    assert sweep.promote() == 1  # the second of five
    assert sweep.promote() is None
    assert {3, 4} <= sweep.paused


def test_higher_is_better_in_a_promotion_where_the_study_says_so() -> None:
    sweep = promoting("maximize")
    for value in (0.9, 0.8, 0.4, 0.3, 0.2):
        sweep.run([value])
    assert sweep.promote() == 1


def test_who_was_promoted_past_a_rung_is_not_halted_there_again_but_at_the_next() -> None:
    sweep = promoting()
    sweep.run([0.1] * 3)
    for loss in (0.2, 0.6, 0.7, 0.8):
        sweep.run([loss])
    assert sweep.promote() == 1
    assert sweep.go(1, [0.2, 0.2], from_epoch=2) == 3
    assert sweep.promote() is None


def test_the_highest_rung_is_served_first_and_there_the_best() -> None:
    sweep = promoting()
    sweep.run([0.1] * 3)
    late = [n for n in range(1, 40) if chance(n) < SPARED][:4]  # no early rung halts these
    for number in range(1, late[-1] + 1):
        sweep.run([0.5, 0.5, 0.2 + number / 100] if number in late else [0.9])
    assert sweep.paused >= set(late)
    assert sweep.promote() == late[0]
    promoted = [sweep.promote() for _ in range(3)]
    assert not set(promoted) & set(late)  # the best two of five have gone on


def test_the_share_that_is_promoted_counts_those_that_went_on_before() -> None:
    sweep = promoting()
    rng = np.random.default_rng(0)
    for loss in rng.permutation(60) / 60:
        sweep.run([float(loss)])
        while sweep.promote() is not None:
            pass
    gone_on = [n for n in range(60) if n not in sweep.paused]
    value = {t.number: t.intermediate_values[1] for t in sweep.study.trials}
    spared_ones = [n for n in gone_on if value[n] >= 1 / 3 + 0.05]
    assert all(n in gone_on for n in value if value[n] < 1 / 3 - 0.05)
    assert len(spared_ones) < 60 * (SPARED + 0.1)


def test_running_and_failed_trials_count_at_a_rung_from_which_others_are_promoted() -> None:
    sweep = promoting()
    sweep.run([0.1])
    assert sweep.run([0.2]) == 1
    for _ in range(3):
        sweep.fail(sweep.begin())
    assert sweep.promote() == 1


def test_one_trial_always_gets_to_its_end() -> None:
    sweep = promoting()
    halted = [sweep.run([loss] * 9) for loss in (0.5, 0.4, 0.3, 0.6, 0.7)]
    while (number := sweep.promote(all_asked=True)) is not None:
        first = max(sweep.study.trials[number].intermediate_values) + 1
        sweep.go(number, [sweep.study.trials[number].intermediate_values[1]] * 9, first)
    assert 0 in halted
    assert any(t.state == TrialState.COMPLETE for t in sweep.study.trials)


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
    assert sweep.study.trials[9].state == TrialState.COMPLETE


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
