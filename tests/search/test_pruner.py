"""A trial is stopped at a share of its own run if it is not among the best that came so far."""

from typing import Literal

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from raymlc.search.pruner import RungPruner
from raymlc.search.rungs import CONFIG, REASON


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
