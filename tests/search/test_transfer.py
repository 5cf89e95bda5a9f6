"""A study takes over the trials that its space could have given, and says why not of others."""

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import BaseTrial, TrialState

from raymlc.search.choice import PrunerName
from raymlc.search.space import Space
from raymlc.search.storage import open_study
from raymlc.search.study import StudyBook
from raymlc.search.transfer import (
    Unfit,
    answers,
    enqueue,
    enqueue_best,
    newest,
    respaced,
    take_over,
)
from raymlc.trial import TrialConfig

ACCURACY = "val/accuracy"


def space(function: Callable[[BaseTrial], TrialConfig], **fixed: object) -> Space:
    return Space(Path("mine.py"), function, fixed)


def old(trial: BaseTrial) -> TrialConfig:
    return TrialConfig(
        lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True),
        gc=trial.suggest_categorical("gc", [False, True]),
        epochs=4,
    )


def wider(trial: BaseTrial) -> TrialConfig:
    return TrialConfig(
        lr=trial.suggest_float("lr", 1e-5, 1.0, log=True),
        gc=trial.suggest_categorical("gc", [False, True]),
        smoothing=trial.suggest_float("smoothing", 0.0, 0.2),
        epochs=4,
    )


def without_gc(trial: BaseTrial) -> TrialConfig:
    return TrialConfig(lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True), epochs=4)


def conditional(trial: BaseTrial) -> TrialConfig:
    optimizer = trial.suggest_categorical("optimizer", ["adamp", "sgd"])
    momentum = trial.suggest_float("momentum", 0.8, 0.99) if optimizer == "sgd" else 0.9
    return TrialConfig(
        optimizer=optimizer, momentum=momentum, lr=trial.suggest_float("lr", 1e-4, 1.0)
    )


def per_head(trial: BaseTrial) -> TrialConfig:
    return TrialConfig(head_weights={"color": trial.suggest_float("head_weights/color", 0.5, 4.0)})


@pytest.mark.parametrize(
    ("function", "config", "params"),
    [
        (old, TrialConfig(lr=0.01, gc=True, epochs=4), {"lr": 0.01, "gc": True}),
        (old, TrialConfig(lr=0.01, gc=True, epochs=4, seed=9), {"lr": 0.01, "gc": True}),
        (
            conditional,
            TrialConfig(optimizer="sgd", momentum=0.95, lr=0.5),
            {"optimizer": "sgd", "momentum": 0.95, "lr": 0.5},
        ),
        (conditional, TrialConfig(lr=0.5), {"optimizer": "adamp", "lr": 0.5}),
        (per_head, TrialConfig(head_weights={"color": 2.0}), {"head_weights/color": 2.0}),
    ],
)
def test_a_space_is_answered_with_a_trials_values(
    function: Callable[[BaseTrial], TrialConfig], config: TrialConfig, params: dict[str, object]
) -> None:
    fit = answers(space(function), config)
    assert fit.params == params
    assert fit.distributions.keys() == params.keys()


@pytest.mark.parametrize(
    ("function", "config", "reason"),
    [
        (old, TrialConfig(lr=0.5, epochs=4), "lr is 0.5, which 0.0001 to 0.1 does not hold"),
        (old, TrialConfig(lr=0.01), "epochs is 10, but the space gives 4"),
        (
            without_gc,
            TrialConfig(lr=0.01, gc=True, epochs=4),
            "gc is True, but the space gives False",
        ),
        (conditional, TrialConfig(optimizer="lion", lr=0.5), "mine.py: ValueError: 'lion' not in"),
        (per_head, TrialConfig(), "mine.py: ValueError: The value of the parameter"),
        (per_head, TrialConfig(head_weights={"color": 9.0}), "head_weights/color is 9.0"),
    ],
)
def test_a_trial_that_a_space_cannot_give_is_told_why(
    function: Callable[[BaseTrial], TrialConfig], config: TrialConfig, reason: str
) -> None:
    with pytest.raises(Unfit) as refused:
        answers(space(function), config)
    assert str(refused.value).startswith(reason)


def study_of(journal: Path, function: Callable[[BaseTrial], TrialConfig]) -> optuna.Study:
    """Three trials: complete, pruned and running."""
    study = open_study(journal, ACCURACY, "random", "asha", 0, 4)
    book = StudyBook(study, space(function), ACCURACY, 3)
    for number, score in enumerate((0.9, 0.1, 0.5)):
        assert book.next() is not None
        book.report(number, {"epoch": 1.0, ACCURACY: score})
    book.end(0, {ACCURACY: 0.9})
    book.end(1, {ACCURACY: 0.1})
    return study


def described(study: optuna.Study) -> list[tuple[TrialState, dict[int, float], dict[str, object]]]:
    return [(trial.state, trial.intermediate_values, trial.params) for trial in study.trials]


def test_the_same_space_keeps_the_study_as_it_is(tmp_path: Path) -> None:
    study = study_of(tmp_path / "journal", old)
    same, unfit = respaced(study, space(old))
    assert same is study
    assert unfit == {}


def test_a_wider_space_with_one_name_more_knows_all_old_trials(tmp_path: Path) -> None:
    study = study_of(tmp_path / "journal", old)
    before = described(study)
    other, unfit = respaced(study, space(wider))
    assert unfit == {}
    assert described(other) == [
        (state, values, params | {"smoothing": 0.0 + TrialConfig().smoothing})
        for state, values, params in before
    ]
    assert other.user_attrs["metric"] == ACCURACY
    book = StudyBook(other, space(wider), ACCURACY, 4)
    first, second = book.next(), book.next()
    assert first is not None
    assert second is not None
    assert (first.number, first.epochs, second.number) == (2, 1, 3)  # the running one goes on
    assert book.params(3).keys() == {"lr", "gc", "smoothing"}


def test_trials_that_a_new_space_cannot_give_stay_beside_the_search(tmp_path: Path) -> None:
    study = study_of(tmp_path / "journal", old)
    gc = [trial.params["gc"] for trial in study.trials]
    other, unfit = respaced(study, space(without_gc))
    assert set(unfit) == {number for number, value in enumerate(gc) if value}
    for trial in other.trials:
        assert ("aside" in trial.user_attrs) == gc[trial.number]
        assert trial.params.keys() == (set() if gc[trial.number] else {"lr"})
    book = StudyBook(other, space(without_gc), ACCURACY, 4)
    rows = {row.number: row for row in book.rows()}
    assert rows[0].score == 0.9  # all of them are shown as before, with their values
    assert all(rows[number].params["lr"] == study.trials[number].params["lr"] for number in rows)


@pytest.mark.parametrize("pruner", ["rungs", "promote", "one-epoch"])
def test_no_trial_is_compared_with_those_beside_the_search(
    tmp_path: Path, pruner: PrunerName
) -> None:
    others = study_of(tmp_path / "other", old).trials
    study = open_study(tmp_path / "mine", ACCURACY, "rungs", pruner, 0, 4)
    take_over(study, space(old), others * 9, "runs/other")  # all of them as good as can be
    book = StudyBook(study, space(old), ACCURACY, 1)
    assignment = book.next()
    assert assignment is not None
    number = assignment.number
    halted = book.report(number, {"epoch": 1.0, ACCURACY: 0.1})
    assert halted == (pruner != "rungs")  # these let nobody pass before they have seen some
    if halted:
        assert book.end(number, {ACCURACY: 0.1}) == TrialState.RUNNING
        again = book.next()
        assert again is not None
        assert again.number == number


def test_the_newest_whole_copy_is_the_study_of_the_sweep(tmp_path: Path) -> None:
    study = study_of(tmp_path / "journal", old)
    storage = study._storage
    assert newest(storage, "raymlc") == "raymlc"
    second, _ = respaced(study, space(wider))
    assert newest(storage, "raymlc") == second.study_name == "raymlc#2"
    optuna.create_study(storage=storage, study_name="raymlc#3")  # its copying was cut short
    assert newest(storage, "raymlc") == "raymlc#2"
    fourth, _ = respaced(second, space(old))
    assert newest(storage, "raymlc") == fourth.study_name == "raymlc#4"
    assert newest(storage, "another") == "another"


def test_another_sweeps_finished_trials_inform_the_sampler_and_are_no_trials_of_this_one(
    tmp_path: Path,
) -> None:
    others = study_of(tmp_path / "other", old).trials
    study = open_study(tmp_path / "mine", ACCURACY, "tpe", "asha", 0, 4)
    assert take_over(study, space(wider), others, "runs/other") == [0]  # the complete one
    (taken,) = study.trials
    assert taken.value == 0.9
    assert taken.params == others[0].params | {"smoothing": TrialConfig().smoothing}
    assert taken.user_attrs["origin"] == "runs/other trial 0"
    book = StudyBook(study, space(wider), ACCURACY, 1)
    assert book.rows() == []
    assignment = book.next()
    assert assignment is not None
    assert assignment.number == 1
    assert book.next() is None
    assert [row.number for row in book.rows()] == [1]


def test_the_best_of_another_sweep_is_tried_first(tmp_path: Path) -> None:
    others = study_of(tmp_path / "other", old).trials
    study = open_study(tmp_path / "mine", ACCURACY, "random", "asha", 0, 8)

    def longer(trial: BaseTrial) -> TrialConfig:
        return wider(trial).replace({"epochs": 8})

    assert enqueue_best(study, space(longer), others) == 0
    book = StudyBook(study, space(longer), ACCURACY, 2)
    assignment = book.next()
    assert assignment is not None
    assert assignment.config.lr == others[0].params["lr"]
    assert assignment.config.epochs == 8
    assert enqueue_best(study, space(conditional), []) is None


def test_a_given_trial_is_tried_first_as_it_is_and_teaches_the_search_if_it_can(
    tmp_path: Path,
) -> None:
    study = open_study(tmp_path / "journal", ACCURACY, "random", "asha", 0, 4)
    inside = TrialConfig(lr=0.02, gc=True, epochs=4, seed=5)
    outside = TrialConfig(lr=0.5, epochs=7)
    assert enqueue(study, space(old), inside) == ""
    assert enqueue(study, space(old), outside) == "lr is 0.5, which 0.0001 to 0.1 does not hold"
    book = StudyBook(study, space(old), ACCURACY, 3)
    given = [book.next(), book.next(), book.next()]
    assert [one.config for one in given if one][:2] == [inside, outside]
    assert [book.params(number) for number in (0, 1)] == [{"lr": 0.02, "gc": True}, {}]
    rows = {row.number: row for row in book.rows()}
    assert rows[1].params == {"lr": 0.5, "gc": False}
