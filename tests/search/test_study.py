"""The study says how each trial went, to whoever opens it, whatever was killed in between."""

import itertools
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import BaseTrial, FrozenTrial, TrialState

from raymlc.errors import UserError
from raymlc.search.budget import Budget
from raymlc.search.choice import (
    PrunerName,
    SamplerName,
    check_objectives,
    chosen,
    make_sampler,
)
from raymlc.search.space import Space
from raymlc.search.storage import open_study
from raymlc.search.study import Assignment, StudyBook
from raymlc.trial import TrialConfig

ACCURACY = "val/accuracy"
EPOCHS = 10


def ask(trial: BaseTrial) -> TrialConfig:
    return TrialConfig(
        lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True),
        gc=trial.suggest_categorical("gc", [False, True]),
        epochs=EPOCHS,
    )


SPACE = Space(Path("mine.py"), ask, {})
SAMPLERS = ("rungs", "random", "tpe", "nsga2")  # that need nothing but Optuna


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "not" / "there" / "yet" / "study.journal"


def book(
    journal: Path,
    trials: int = 4,
    metric: str = ACCURACY,
    sampler: SamplerName = "random",
    pruner: PrunerName = "none",
    seed: int = 0,
) -> StudyBook:
    """A book over the study in the journal, as a process has it that starts now."""
    study = open_study(journal, metric, sampler, pruner, seed, EPOCHS)
    return StudyBook(study, SPACE, metric, trials)


def stored_trials(journal: Path) -> list[FrozenTrial]:
    """The trials as Optuna itself reads them."""
    storage = JournalStorage(JournalFileBackend(str(journal)))
    return optuna.load_study(study_name="raymlc", storage=storage).trials


def begin(one: StudyBook) -> Assignment:
    assignment = one.next()
    assert assignment is not None
    return assignment


def report(one: StudyBook, number: int, values: Sequence[float], first: int = 1) -> list[bool]:
    """Report epochs with these accuracies; what the book answers to each."""
    return [
        one.report(number, {"epoch": float(epoch), one.metric: value, "lr": 0.1})
        for epoch, value in enumerate(values, start=first)
    ]


def test_a_trial_is_handed_out_with_what_the_space_asked_for(journal: Path) -> None:
    one = book(journal)
    assignment = begin(one)
    assert assignment.number == 0
    assert one.params(0) == {"lr": assignment.config.lr, "gc": assignment.config.gc}
    (trial,) = stored_trials(journal)
    assert trial.state == TrialState.RUNNING
    assert trial.params == one.params(0)
    assert TrialConfig.from_dict(trial.user_attrs["config"]) == assignment.config


def test_there_are_as_many_trials_as_asked_and_failed_ones_count(journal: Path) -> None:
    one = book(journal, trials=3)
    numbers = [begin(one).number for _ in range(3)]
    assert numbers == [0, 1, 2]
    assert one.next() is None
    one.end(1, {}, "it burst")
    assert one.next() is None
    assert begin(book(journal, trials=4)).number == 0  # interrupted ones first
    assert StudyBook(one.study, SPACE, ACCURACY, trials=3).study is one.study


def test_a_trial_that_ends_is_complete_with_the_stored_score_and_not_its_last(
    journal: Path,
) -> None:
    one = book(journal)
    begin(one)
    assert report(one, 0, [0.2, 0.9, 0.5]) == [False] * 3
    stored = {ACCURACY: 0.9, "val/loss": 0.3, "val/accuracy/color": math.nan, "epoch": 2.0}
    assert one.end(0, stored) == TrialState.COMPLETE
    (trial,) = stored_trials(journal)
    assert trial.state == TrialState.COMPLETE
    assert trial.value == 0.9
    assert trial.intermediate_values == {1: 0.2, 2: 0.9, 3: 0.5}


def test_a_trial_that_the_pruner_stops_is_pruned_with_its_intermediate_values(
    journal: Path,
) -> None:
    one = book(journal, pruner="asha")
    begin(one)
    begin(one)
    assert not any(report(one, 0, [0.5, 0.6, 0.7]))
    assert report(one, 1, [0.1, 0.2]) == [False, True]  # the first rung is a fifth of the epochs
    assert one.end(1, {ACCURACY: 0.2}) == TrialState.PRUNED
    trial = stored_trials(journal)[1]
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {1: 0.1, 2: 0.2}
    assert trial.value == 0.2


@pytest.mark.parametrize(
    ("pruner", "stopped_after"),
    [("rungs", 1), ("asha", 2), ("median", None), ("wilcoxon", None), ("none", None)],
)
def test_halving_stops_the_worse_of_two_trials_and_the_others_do_not(
    journal: Path, pruner: PrunerName, stopped_after: int | None
) -> None:
    one = book(journal, pruner=pruner)
    begin(one)
    begin(one)
    report(one, 0, [0.9] * EPOCHS)
    answers = report(one, 1, [0.1] * EPOCHS)
    assert (answers.index(True) + 1 if True in answers else None) == stopped_after


def test_halving_has_its_rungs_at_a_fifth_of_the_epochs_and_each_doubling(journal: Path) -> None:
    one = book(journal, pruner="asha")
    begin(one)
    begin(one)
    report(one, 0, [0.5] * EPOCHS)
    # Better until epoch 2, worse from epoch 3 on: found at the next rung.
    answers = report(one, 1, [0.6, 0.6, 0.1, 0.1])
    assert answers == [False, False, False, True]


def test_the_median_stops_a_trial_below_the_median_of_four_that_ended(journal: Path) -> None:
    one = book(journal, trials=6, pruner="median")
    for number in range(4):
        begin(one)
        report(one, number, [0.8] * EPOCHS)
        one.end(number, {ACCURACY: 0.8})
    begin(one)
    assert report(one, 4, [0.1]) == [True]


def test_a_lower_loss_survives_the_pruner(journal: Path) -> None:
    one = book(journal, metric="val/loss", pruner="asha")
    begin(one)
    begin(one)
    report(one, 0, [3.0, 3.0])
    assert report(one, 1, [1.0, 1.0]) == [False, False]
    assert begin(one).number == 2
    assert report(one, 2, [2.0, 2.0]) == [False, True]


def test_the_last_epoch_is_never_pruned(journal: Path) -> None:
    one = book(journal, pruner="asha")
    begin(one)
    begin(one)
    report(one, 0, [0.9] * EPOCHS)
    assert one.report(1, {"epoch": float(EPOCHS), ACCURACY: 0.1}) is False
    assert one.end(1, {ACCURACY: 0.1}) == TrialState.COMPLETE


def test_a_trial_that_fails_keeps_its_reason_and_its_epochs(journal: Path) -> None:
    one = book(journal)
    begin(one)
    report(one, 0, [0.3])
    assert one.end(0, {ACCURACY: 0.3}, "the loss of color was not finite") == TrialState.FAIL
    (trial,) = stored_trials(journal)
    assert trial.state == TrialState.FAIL
    assert trial.intermediate_values == {1: 0.3}
    row = one.rows()[0]
    assert (row.state, row.reason, row.epochs, row.score) == (
        "FAIL",
        "the loss of color was not finite",
        1,
        0.3,
    )


def test_a_failure_outweighs_the_pruner(journal: Path) -> None:
    one = book(journal, pruner="asha")
    begin(one)
    begin(one)
    report(one, 0, [0.9, 0.9])
    assert report(one, 1, [0.1, 0.1])[-1]
    assert one.end(1, {ACCURACY: 0.1}, "it burst") == TrialState.FAIL


def test_a_trial_without_a_number_in_any_epoch_fails_and_says_so(journal: Path) -> None:
    one = book(journal, pruner="asha")
    begin(one)
    assert report(one, 0, [math.nan] * 3) == [False] * 3
    assert one.end(0, {}) == TrialState.FAIL
    (trial,) = stored_trials(journal)
    assert trial.intermediate_values == {}
    assert one.rows()[0].reason == "val/accuracy was not a number in any epoch"


def test_epochs_that_are_reported_again_are_passed_over(journal: Path) -> None:
    one = book(journal, pruner="asha")
    begin(one)
    begin(one)
    report(one, 0, [0.5, 0.6])
    assert report(one, 0, [0.1, 0.1]) == [False, False]
    assert report(one, 0, [0.7], first=3) == [False]
    assert stored_trials(journal)[0].intermediate_values == {1: 0.5, 2: 0.6, 3: 0.7}


def test_an_interrupted_trial_is_handed_out_again_under_its_number(journal: Path) -> None:
    one = book(journal)
    before = [begin(one) for _ in range(3)]
    report(one, 0, [0.5, 0.6])
    report(one, 1, [0.9])
    one.end(1, {ACCURACY: 0.9})

    again = book(journal)
    assert begin(again) == replace(before[0], epochs=2)
    assert begin(again) == before[2]
    assert report(again, 0, [0.5, 0.6, 0.7]) == [False] * 3
    again.end(0, {ACCURACY: 0.7})
    again.end(2, {}, "it burst")
    assert begin(again).number == 3
    assert again.next() is None
    trials = stored_trials(journal)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "FAIL", "RUNNING"]
    assert trials[0].intermediate_values == {1: 0.5, 2: 0.6, 3: 0.7}


def test_an_interrupted_trial_can_still_be_pruned(journal: Path) -> None:
    one = book(journal, pruner="asha")
    begin(one)
    begin(one)
    report(one, 0, [0.9] * 5)
    report(one, 1, [0.1])
    again = book(journal, pruner="asha")
    begin(again), begin(again)
    assert report(again, 1, [0.1, 0.1]) == [False, True]
    assert again.end(1, {ACCURACY: 0.1}) == TrialState.PRUNED


def test_a_trial_that_was_asked_but_never_handed_out_has_failed(journal: Path) -> None:
    one = book(journal)
    begin(one)
    one.study.ask()
    again = book(journal)
    assert [trial.state.name for trial in stored_trials(journal)] == ["RUNNING", "FAIL"]
    assert [begin(again).number, begin(again).number] == [0, 2]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_reopened_study_does_not_repeat_its_proposals(
    journal: Path, sampler: SamplerName
) -> None:
    proposed = []
    for round_ in range(3):
        one = book(journal, trials=12, sampler=sampler)
        for number in range(4 * round_, 4 * round_ + 4):
            assignment = begin(one)
            assert assignment.number == number
            proposed.append((assignment.config.lr, assignment.config.gc))
            one.end(number, {ACCURACY: 0.5})
    assert len(set(proposed)) == 12


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_seed_proposes_the_same_trials_and_another_seed_others(
    tmp_path: Path, sampler: SamplerName
) -> None:
    proposed = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        one = book(tmp_path / name, sampler=sampler, seed=seed)
        proposed.append([begin(one).config.lr for _ in range(3)])
    assert proposed[0] == proposed[1]
    assert proposed[0] != proposed[2]


def test_rows_begin_with_the_best_score_and_end_with_those_without(journal: Path) -> None:
    one = book(journal, trials=6)
    scores: list[float | None] = [0.2, 0.9, None, 0.5, 0.9, None]
    for number, score in enumerate(scores):
        begin(one)
        one.end(number, {} if score is None else {ACCURACY: score, "val/loss": 1.0})
    rows = one.rows()
    assert [row.number for row in rows] == [1, 4, 3, 0, 2, 5]
    assert [repr(one.row(row.number)) for row in rows] == [repr(row) for row in rows]
    assert [row.score for row in rows[:4]] == [0.9, 0.9, 0.5, 0.2]
    assert all(math.isnan(row.score) and row.metrics == {} for row in rows[4:])
    best = rows[0]
    assert best.state == "COMPLETE"
    assert best.metrics == {ACCURACY: 0.9, "val/loss": 1.0}
    assert best.params == one.params(1)
    assert best.reason == ""
    assert 0 <= best.seconds < 60


def test_trials_share_the_names_of_their_values_in_memory(journal: Path) -> None:
    one = book(journal)
    begin(one)
    begin(one)
    names = [list(trial.user_attrs["config"]) for trial in one.study.get_trials(deepcopy=False)]
    assert len(names[0]) > 50
    assert all(first is second for first, second in zip(*names, strict=True))


def test_rows_of_a_loss_begin_with_the_lowest(journal: Path) -> None:
    one = book(journal, metric="val/loss/color")
    for number, score in enumerate([2.0, 0.5, 1.0]):
        begin(one)
        one.end(number, {"val/loss/color": score})
    assert [row.score for row in one.rows()] == [0.5, 1.0, 2.0]


def test_rows_of_running_trials_have_their_epochs_and_no_score(journal: Path) -> None:
    one = book(journal)
    begin(one)
    report(one, 0, [0.5, 0.6])
    (row,) = book(journal).rows()
    assert (row.state, row.epochs, row.metrics) == ("HALTED", 2, {})
    assert one.rows()[0].state == "RUNNING"
    assert math.isnan(row.score)
    assert math.isnan(row.seconds)


@pytest.mark.parametrize("metric", ["val/loss", "val/balanced_accuracy", "val/accuracy/color"])
def test_a_study_of_another_metric_is_refused(journal: Path, metric: str) -> None:
    book(journal)
    with pytest.raises(UserError) as refused:
        book(journal, metric=metric)
    assert str(refused.value) == (
        f"a sweep keeps its metric, but {journal} ranks by val/accuracy and --metric is {metric}"
    )
    book(journal)


def test_half_a_line_at_the_end_of_the_journal_is_taken_off(journal: Path) -> None:
    one = book(journal)
    before = begin(one)
    whole = journal.read_bytes()
    with journal.open("ab") as file:
        file.write(b'{"op_code": 6, "worker_id": "')
    again = book(journal)
    assert journal.read_bytes().startswith(whole)
    assert begin(again) == before
    assert report(again, 0, [0.5]) == [False]
    assert stored_trials(journal)[0].intermediate_values == {1: 0.5}


def test_a_journal_that_was_cut_in_its_first_line_begins_anew(journal: Path) -> None:
    journal.parent.mkdir(parents=True)
    journal.write_bytes(b'{"op_code": 0, "wor')
    assert begin(book(journal)).number == 0
    assert len(stored_trials(journal)) == 1


@pytest.mark.parametrize("sampler", get_args(SamplerName))
@pytest.mark.parametrize("pruner", get_args(PrunerName))
def test_every_sampler_and_pruner_takes_a_sweep_to_its_end(
    journal: Path, sampler: SamplerName, pruner: PrunerName
) -> None:
    for package in ("scipy", "cmaes"):
        if sampler in {"scipy": ("qmc", "gp"), "cmaes": ("cmaes",)}[package]:
            pytest.importorskip(package)
    one = book(journal, trials=12, sampler=sampler, pruner=pruner)
    while (assignment := one.next()) is not None:
        score = -abs(math.log10(assignment.config.lr) + 2)
        for epoch in range(1, EPOCHS + 1):
            if one.report(assignment.number, {"epoch": float(epoch), ACCURACY: score}):
                break
        one.end(assignment.number, {ACCURACY: score})
    one.close()
    states = [trial.state for trial in stored_trials(journal)]
    assert len(states) == 12
    assert set(states) <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert TrialState.COMPLETE in states


def test_a_sampler_whose_package_is_missing_says_what_to_install(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as refused:
        make_sampler("cmaes", 0, EPOCHS)
    assert str(refused.value) == (
        "--sampler cmaes needs cmaes, which is not installed: pip install cmaes"
    )


@pytest.mark.parametrize("pruner", ["promote", "one-epoch"])
def test_a_trial_that_waits_at_a_rung_goes_on_where_it_was_and_is_pruned_at_the_end_if_not(
    journal: Path, pruner: PrunerName
) -> None:
    one = book(journal, trials=9, pruner=pruner)
    trained: dict[int, int] = {}  # epochs of each trial, none of which is trained twice
    handed_out: list[int] = []
    while (assignment := one.next()) is not None:
        number = assignment.number
        handed_out.append(number)
        assert assignment.epochs == trained.get(number, 0)
        for epoch in range(assignment.epochs + 1, EPOCHS + 1):
            trained[number] = epoch
            if one.report(number, {"epoch": float(epoch), ACCURACY: 1 - number / 10}):
                break
        state = one.end(number, {ACCURACY: 1 - number / 10})
        waits = trained[number] < EPOCHS
        assert state == (TrialState.RUNNING if waits else TrialState.COMPLETE)
        assert ("PAUSED" in {row.state for row in one.rows() if row.number == number}) == waits
    assert one.finished
    assert len(set(handed_out)) == 9 < len(handed_out)
    waiting = sorted(number for number, epochs in trained.items() if epochs < EPOCHS)
    assert one.close() == waiting
    states = {trial.number: trial.state for trial in stored_trials(journal)}
    assert trained[0] == EPOCHS
    assert states == {
        number: TrialState.COMPLETE if epochs == EPOCHS else TrialState.PRUNED
        for number, epochs in trained.items()
    }


def test_a_trial_that_waits_still_waits_after_a_kill(journal: Path) -> None:
    one = book(journal, trials=3, pruner="one-epoch")
    begin(one)
    begin(one)
    assert report(one, 0, [0.9]) == [True]  # and then a kill, before the trial is closed
    assert report(one, 1, [0.1]) == [True]
    one.end(1, {ACCURACY: 0.1})
    again = book(journal, trials=3, pruner="one-epoch")
    assert begin(again).number == 2
    assert again.next() is None
    assert not again.finished  # trial 2 has not had its epoch
    assert report(again, 2, [0.5]) == [True]
    again.end(2, {ACCURACY: 0.5})
    assert begin(again) == Assignment(0, begin_config(journal, 0), epochs=1)


def begin_config(journal: Path, number: int) -> TrialConfig:
    """The trial as the study has it."""
    return TrialConfig.from_dict(stored_trials(journal)[number].user_attrs["config"])


def test_a_budget_of_epochs_stops_all_trials_and_more_of_it_goes_on_with_them(
    journal: Path,
) -> None:
    study = open_study(journal, ACCURACY, "random", "none", 0, EPOCHS)
    one = StudyBook(study, SPACE, ACCURACY, 4, Budget(epochs=5))
    begin(one)
    begin(one)
    assert report(one, 0, [0.1, 0.2, 0.3]) == [False] * 3
    assert report(one, 1, [0.1, 0.2]) == [False, True]
    assert report(one, 0, [0.4], first=4) == [True]  # it was in its epoch then
    assert [one.end(number, {ACCURACY: 0.3}) for number in (0, 1)] == [TrialState.RUNNING] * 2
    assert one.next() is None
    assert one.finished
    assert one.close() == []
    assert {row.state for row in one.rows()} == {"HALTED"}

    spent = StudyBook(study, SPACE, ACCURACY, 4, Budget(epochs=6))
    assert spent.next() is None
    more = StudyBook(study, SPACE, ACCURACY, 4, Budget(epochs=9))
    assert [begin(more).epochs, begin(more).epochs] == [4, 2]
    assert report(more, 0, [0.5], first=5) == [False]


def test_a_budget_of_time_begins_with_the_first_trial_and_lets_the_last_epoch_be_told(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("raymlc.search.study.time.monotonic", lambda: now)
    study = open_study(journal, ACCURACY, "random", "none", 0, EPOCHS)
    one = StudyBook(study, SPACE, ACCURACY, 4, Budget(seconds=60))
    now += 1000
    begin(one)
    begin(one)
    now += 59
    assert report(one, 0, [0.5]) == [False]
    now += 1
    assert one.next() is None
    assert report(one, 1, [0.5]) == [True]
    assert one.report(0, {"epoch": float(EPOCHS), ACCURACY: 0.9}) is False
    assert one.end(0, {ACCURACY: 0.9}) == TrialState.COMPLETE
    assert one.end(1, {ACCURACY: 0.5}) == TrialState.RUNNING


def test_what_a_trial_cost_and_where_it_lies_are_attributes_that_add_up(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("raymlc.search.study.time.monotonic", lambda: now)
    study = open_study(journal, ACCURACY, "random", "none", 0, EPOCHS)
    for epoch, node in ((1, "here"), (2, "there")):
        one = StudyBook(study, SPACE, ACCURACY, 1, Budget(epochs=epoch))
        begin(one)
        now += 10
        told = {"epoch": float(epoch), ACCURACY: 0.5, "images": 64.0 * epoch}
        assert one.report(0, told, node) is True
        one.end(0, {ACCURACY: 0.5}, checkpoint="trials/0000/best")
    attributes = stored_trials(journal)[0].user_attrs
    assert attributes["seconds"] == 20
    assert attributes["images"] == 128
    assert attributes["node"] == "there"
    assert attributes["checkpoint"] == "trials/0000/best"


@pytest.mark.parametrize("step", [-86400.0, 86400.0])
def test_a_clock_that_jumps_changes_neither_budget_nor_cost(
    journal: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    times = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 1.8e9 + step * next(times))
    study = open_study(journal, ACCURACY, "random", "none", 0, EPOCHS)
    one = StudyBook(study, SPACE, ACCURACY, 1, Budget(seconds=3600))
    begin(one)
    assert report(one, 0, [0.5] * EPOCHS) == [False] * EPOCHS
    assert not one.spent
    assert one.end(0, {ACCURACY: 0.5}) == TrialState.COMPLETE
    assert 0 <= stored_trials(journal)[0].user_attrs["seconds"] < 60


def test_nothing_decides_by_a_clock_that_may_jump() -> None:
    sources = (Path(__file__).parents[2] / "raymlc").rglob("*.py")
    asking = {
        path.name
        for path in sources
        if re.search(r"\btime\.time\(|\bdatetime\.(now|today)\(|utcnow", path.read_text())
    }
    # Which write down when things happen, and compare the times of files.
    assert asking <= {"cache.py", "finish.py", "log.py", "report.py"}


BOTH = "val/accuracy/color,val/loss/shape"


def tell(one: StudyBook, number: int, epoch: int, color: float, shape: float) -> bool:
    told = {"epoch": float(epoch), "val/accuracy/color": color, "val/loss/shape": shape}
    return one.report(number, told)


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_of_several_metrics_a_trial_that_others_dominate_stops_at_a_rung(
    journal: Path, sampler: SamplerName
) -> None:
    one = book(journal, trials=12, metric=BOTH, sampler=sampler, pruner="asha")
    values = [(0.9, 1.0), (0.5, 0.2), (0.4, 1.5), (0.95, 0.9)]
    stopped: list[int | None] = []
    for color, shape in values:
        number = begin(one).number
        answers = [tell(one, number, epoch, color, shape) for epoch in (1, 2, 3)]
        stopped.append(answers.index(True) + 1 if True in answers else None)
        for epoch in range(4, EPOCHS + 1):
            if not answers[2]:
                assert not tell(one, number, epoch, color, shape)
        one.end(number, {"val/accuracy/color": color, "val/loss/shape": shape})
    assert stopped == [None, None, 3, None]  # a quarter of the epochs
    states = [trial.state.name for trial in stored_trials(journal)]
    assert states == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    study = book(journal, metric=BOTH, sampler=sampler, pruner="asha").study
    assert {trial.number for trial in study.best_trials} == {1, 3}
    assert {row.number: round(row.score, 3) for row in one.rows()} == {
        1: 0.15, 3: 0.025, 0: -0.05, 2: -0.55,
    }  # fmt: skip
    for number in range(4, 12):  # the sampler goes on with all of them
        assert begin(one).number == number
        one.end(number, {"val/accuracy/color": 0.5, "val/loss/shape": 1.0})


def test_of_several_metrics_an_interrupted_trial_goes_on_where_it_was(journal: Path) -> None:
    one = book(journal, metric=BOTH)
    begin(one)
    assert not tell(one, 0, 1, 0.5, 1.0)
    assert not tell(one, 0, 2, 0.6, 0.9)
    again = book(journal, metric=BOTH)
    assert begin(again).epochs == 2
    assert not any(tell(again, 0, epoch, 0.6, 0.9) for epoch in (1, 2, 3))
    again.end(0, {"val/accuracy/color": 0.6})
    assert again.rows()[0].reason == f"{BOTH} was not a number in any epoch"


@pytest.mark.parametrize(
    ("sampler", "pruner", "refused"),
    [("cmaes", "asha", "--sampler"), ("rungs", "none", "--sampler"), ("tpe", "median", "--pruner")],
)
def test_what_takes_one_metric_is_refused_for_several(
    journal: Path, sampler: SamplerName, pruner: PrunerName, refused: str
) -> None:
    with pytest.raises(UserError, match=f"of several metrics {refused} must be one of"):
        book(journal, metric=BOTH, sampler=sampler, pruner=pruner)


# Reports an epoch, and is killed while it writes the next one: it has the lock.
WRITER = """
import os, sys, time
from pathlib import Path
from raymlc.search.space import load_space
from raymlc.search.storage import open_study
from raymlc.search.study import StudyBook
study = open_study(Path(sys.argv[1]), "val/accuracy", "random", "none", 0, 10)
book = StudyBook(study, load_space(Path(sys.argv[2]), {}), "val/accuracy", 4)
number = book.next().number
book.report(number, {"epoch": 1.0, "val/accuracy": 0.5})
def stuck(_file):
    print("stuck", flush=True)
    time.sleep(600)
os.fsync = stuck
book.report(number, {"epoch": 2.0, "val/accuracy": 0.6})
"""


def test_a_study_whose_process_was_killed_while_it_wrote_goes_on(
    journal: Path, tmp_path: Path
) -> None:
    space = tmp_path / "mine.py"
    space.write_text(
        "from raymlc.trial import TrialConfig\n"
        "def space(trial):\n"
        "    return TrialConfig(lr=trial.suggest_float('lr', 0.1, 1))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(journal), str(space)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "stuck"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    lock = journal.with_name(journal.name + ".lock")
    assert os.path.lexists(lock)
    with journal.open("rb+") as file:  # half of what it wrote has come to the disk
        file.truncate(journal.stat().st_size - 20)

    began = time.monotonic()
    again = book(journal)
    assert time.monotonic() - began < 20  # Optuna by itself waits 30 s for a lock that nobody has
    assert not os.path.lexists(lock)
    assert begin(again).number == 0
    assert report(again, 0, [0.5, 0.6]) == [False, False]
    again.end(0, {ACCURACY: 0.6})
    (trial,) = stored_trials(journal)
    assert trial.state == TrialState.COMPLETE
    assert trial.intermediate_values == {1: 0.5, 2: 0.6}


@pytest.mark.parametrize(
    "content", [b"no\njournal\n", b"[]\n", b'{"a": 1}\n', b"\xff\xfe\n", b"3\n{}\n"]
)
def test_a_file_that_is_no_journal_is_refused_by_its_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "study.journal"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"the study {path} cannot be read: "):
        book(path)
    assert path.read_bytes() == content


def test_a_place_that_cannot_be_written_is_refused_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=f"the study must be writable, but {tmp_path}/file/x is not"
    ):
        book(tmp_path / "file" / "x")


@pytest.mark.parametrize(
    ("given", "count", "both"),
    [
        ((None, None), 1, ("rungs", "promote")),
        ((None, None), 2, ("tpe", "asha")),
        (("random", None), 1, ("random", "promote")),
        ((None, "none"), 2, ("tpe", "none")),
        (("gp", "median"), 1, ("gp", "median")),
    ],
)
def test_what_is_not_chosen_is_what_suits_the_number_of_metrics(
    given: tuple[SamplerName | None, PrunerName | None],
    count: int,
    both: tuple[SamplerName, PrunerName],
) -> None:
    assert chosen(*given, count) == both
    check_objectives(count, *both)
