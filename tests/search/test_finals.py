"""Finals stand in the study before they run, and no kill loses one or runs one twice."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from raymlc.search.finals import FinalsBook, read_finals
from raymlc.search.study import Assignment
from raymlc.trial import TrialConfig

ACCURACY = "val/accuracy"
EPOCHS = 3


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "study.journal"


def opened(journal: Path, direction: Literal["maximize", "minimize"] = "maximize") -> optuna.Study:
    """The study as a process has it that starts now."""
    storage = JournalStorage(JournalFileBackend(str(journal)))
    return optuna.create_study(
        study_name="raymlc", storage=storage, direction=direction, load_if_exists=True
    )


def add(
    study: optuna.Study,
    metrics: Mapping[str, float] | None,
    state: TrialState = TrialState.COMPLETE,
    **fields: Any,
) -> None:
    """A trial of the search: the metrics of its checkpoint, its end and its fields."""
    attributes: dict[str, Any] = {"config": TrialConfig(epochs=EPOCHS, **fields).to_dict()}
    if metrics is not None:
        attributes["metrics"] = dict(metrics)
    value = 0.5 if state == TrialState.COMPLETE else None
    study.add_trial(create_trial(state=state, value=value, user_attrs=attributes))


def searched(journal: Path, scores: Sequence[float]) -> optuna.Study:
    """A study whose trials ended with these accuracies; their lr is their number."""
    study = opened(journal)
    for number, score in enumerate(scores):
        add(study, {ACCURACY: score}, lr=0.001 * (number + 1))
    return study


def begin(book: FinalsBook) -> Assignment:
    assignment = book.next()
    assert assignment is not None
    return assignment


def finish(book: FinalsBook, number: int, score: float = 0.5, failure: str = "") -> TrialState:
    for epoch in range(1, EPOCHS + 1):
        assert book.report(number, {"epoch": float(epoch), ACCURACY: score}) is False
    return book.end(number, {ACCURACY: score}, failure)


def run_all(book: FinalsBook) -> list[tuple[int, int, int]]:
    """Run what is left; number, trial of the sweep and seed of each, in their order."""
    ran = []
    while (assignment := book.next()) is not None:
        params = book.params(assignment.number)
        ran.append((assignment.number, params["sweep_trial"], params["seed"]))
        finish(book, assignment.number)
    return ran


def test_the_best_trials_run_again_in_full_under_seeds_that_they_share(journal: Path) -> None:
    study = searched(journal, [0.2, 0.9, 0.5, 0.7])
    book = FinalsBook(study, ACCURACY, finalists=2, repeats=3)
    assert book.total == 6
    handed_out = [begin(book) for _ in range(6)]
    assert book.next() is None
    assert [one.number for one in handed_out] == list(range(6))
    assert [(one.config.lr, one.config.seed) for one in handed_out] == [
        (0.002, 1000),
        (0.004, 1000),
        (0.002, 1001),
        (0.004, 1001),
        (0.002, 1002),
        (0.004, 1002),
    ]
    assert handed_out[0].config == TrialConfig(epochs=EPOCHS, lr=0.002, seed=1000)
    assert book.params(3) == {"sweep_trial": 3, "seed": 1001}


def test_what_the_finals_are_stands_in_the_study_before_the_first_is_handed_out(
    journal: Path,
) -> None:
    FinalsBook(searched(journal, [0.2, 0.9]), ACCURACY, finalists=2, repeats=2)
    assert opened(journal).user_attrs["finals"] == [[1, 1000], [0, 1000], [1, 1001], [0, 1001]]


@pytest.mark.parametrize("metric", ["val/loss", "val/loss/color"])
def test_of_a_loss_the_lowest_are_finalists(journal: Path, metric: str) -> None:
    study = opened(journal, "minimize")
    for score in (0.9, 0.2, 0.5):
        add(study, {metric: score})
    book = FinalsBook(study, metric, finalists=2, repeats=1)
    assert [book.params(begin(book).number)["sweep_trial"] for _ in range(2)] == [1, 2]


def test_of_several_metrics_the_best_mean_is_a_finalist(journal: Path) -> None:
    study = opened(journal)
    for one, other in ((0.9, 0.1), (0.6, 0.7), (0.2, 0.8)):
        add(study, {"val/accuracy/shape": one, "val/accuracy/color": other})
    book = FinalsBook(study, "val/accuracy/shape,val/accuracy/color", finalists=1, repeats=1)
    assert book.params(begin(book).number)["sweep_trial"] == 1


@pytest.mark.parametrize(
    ("state", "metrics", "eligible"),
    [
        (TrialState.COMPLETE, {ACCURACY: 0.9}, True),
        (TrialState.PRUNED, {ACCURACY: 0.9}, True),
        (TrialState.RUNNING, {ACCURACY: 0.9}, True),  # halted, since the budget was spent
        (TrialState.FAIL, {ACCURACY: 0.9}, False),
        (TrialState.PRUNED, {}, False),
        (TrialState.PRUNED, None, False),
        (TrialState.PRUNED, {ACCURACY: math.nan}, False),
        (TrialState.COMPLETE, None, False),  # taken over from another sweep
    ],
)
def test_a_finalist_stored_a_checkpoint_and_did_not_fail(
    journal: Path, state: TrialState, metrics: dict[str, float] | None, eligible: bool
) -> None:
    study = searched(journal, [0.1])
    add(study, metrics, state)
    book = FinalsBook(study, ACCURACY, finalists=1, repeats=1)
    assert book.params(begin(book).number)["sweep_trial"] == (1 if eligible else 0)


def test_of_equal_scores_the_earlier_trial_is_the_finalist(journal: Path) -> None:
    book = FinalsBook(searched(journal, [0.1, 0.5, 0.5]), ACCURACY, finalists=1, repeats=1)
    assert run_all(book) == [(0, 1, 1000)]


@pytest.mark.parametrize(("scores", "total"), [([], 0), ([0.5], 2), ([0.5, 0.6], 4)])
def test_there_are_no_more_finalists_than_trials(
    journal: Path, scores: list[float], total: int
) -> None:
    book = FinalsBook(searched(journal, scores), ACCURACY, finalists=2, repeats=2)
    assert book.total == total
    assert len(run_all(book)) == total
    assert book.finished


@pytest.mark.parametrize(
    ("own", "first"),
    [((0, 0), 1000), ((7, 7), 1007), ((1000, 1001), 2001), ((2**31 - 1, 2**31 - 1), 999)],
)
def test_no_final_has_a_seed_of_the_search(journal: Path, own: tuple[int, ...], first: int) -> None:
    study = opened(journal)
    for seed in own:
        add(study, {ACCURACY: 0.5}, seed=seed)
    book = FinalsBook(study, ACCURACY, finalists=2, repeats=2)
    seeds = [begin(book).config.seed for _ in range(4)]
    assert seeds == [first, first, first + 1, first + 1]
    assert not set(seeds) & set(own)


def test_the_result_of_a_final_is_an_attribute_of_the_study_and_no_trial(journal: Path) -> None:
    study = searched(journal, [0.2, 0.9])
    before = study.trials
    book = FinalsBook(study, ACCURACY, finalists=2, repeats=1)
    begin(book), begin(book)
    book.report(1, {"epoch": 1.0, ACCURACY: 0.3}, "host-a")
    stored = {ACCURACY: 0.3, "val/accuracy/color": 0.25, "epoch": 1.0}
    assert book.end(1, stored, checkpoint="finals/trials/0001/best") == TrialState.COMPLETE
    again = opened(journal)
    assert again.trials == before
    assert "final/0000" not in again.user_attrs
    result = again.user_attrs["final/0001"]
    assert 0 <= result.pop("seconds") < 60
    assert result == {
        "trial": 0,
        "seed": 1000,
        "metrics": stored,
        "reason": "",
        "epochs": 1,
        "node": "host-a",
        "checkpoint": "finals/trials/0001/best",
    }
    (final,) = read_finals(again, ACCURACY)
    assert (final.number, final.trial, final.score, final.node) == (1, 0, 0.3, "host-a")


def test_a_final_that_fails_keeps_its_reason_and_is_not_run_again(journal: Path) -> None:
    book = FinalsBook(searched(journal, [0.9]), ACCURACY, finalists=1, repeats=2)
    begin(book)
    assert finish(book, 0, 0.7, "the loss of color was not finite") == TrialState.FAIL
    again = FinalsBook(opened(journal), ACCURACY, finalists=1, repeats=2)
    (row,) = again.rows()
    assert (row.state, row.reason) == ("FAIL", "the loss of color was not finite")
    assert [number for number, _, _ in run_all(again)] == [1]


def test_a_final_without_a_number_in_any_epoch_fails_and_says_so(journal: Path) -> None:
    book = FinalsBook(searched(journal, [0.9]), ACCURACY, finalists=1, repeats=1)
    begin(book)
    assert book.end(0, {}, checkpoint="not/there") == TrialState.FAIL
    (final,) = read_finals(opened(journal), ACCURACY)
    assert final.reason == "val/accuracy was not a number in any epoch"
    assert final.checkpoint == ""
    assert math.isnan(final.score)


def test_rows_begin_with_the_best_and_end_with_those_that_run(journal: Path) -> None:
    book = FinalsBook(searched(journal, [0.9]), ACCURACY, finalists=1, repeats=5)
    for _ in range(4):
        begin(book)
    finish(book, 0, 0.5)
    finish(book, 1, 0.8)
    book.end(2, {}, "it burst")
    book.report(3, {"epoch": 2.0, ACCURACY: 0.99})
    rows = book.rows()
    assert [(row.number, row.state, row.epochs) for row in rows] == [
        (1, "COMPLETE", 3),
        (0, "COMPLETE", 3),
        (2, "FAIL", 0),
        (3, "RUNNING", 2),
    ]
    assert rows[0].score == 0.8
    assert rows[0].metrics == {ACCURACY: 0.8}
    assert rows[0].params == {"sweep_trial": 0, "seed": 1001}
    assert all(math.isnan(row.score) for row in rows[2:])
    assert rows[2].reason == "it burst"


def test_rows_of_a_loss_begin_with_the_lowest(journal: Path) -> None:
    study = opened(journal, "minimize")
    add(study, {"val/loss": 1.0})
    book = FinalsBook(study, "val/loss", finalists=1, repeats=3)
    for score in (2.0, 0.5, 1.0):
        book.end(begin(book).number, {"val/loss": score})
    assert [row.score for row in book.rows()] == [0.5, 1.0, 2.0]


def test_nothing_waits_for_others_at_the_end(journal: Path) -> None:
    book = FinalsBook(searched(journal, [0.9]), ACCURACY, finalists=1, repeats=1)
    assert not book.finished
    begin(book)
    assert book.finished
    assert book.close() == []


CALLS = 4 * (2 + EPOCHS)  # of two finalists' two finals, one after another


@pytest.mark.parametrize("calls", range(CALLS + 1))
def test_a_kill_between_any_two_calls_loses_no_final_and_runs_none_twice(
    journal: Path, calls: int
) -> None:
    """Two finals run at a time; the process is killed after so many calls."""
    searched(journal, [0.2, 0.9, 0.5])
    handed_out: dict[int, TrialConfig] = {}
    ended: list[int] = []

    def run(left: int) -> None:
        book = FinalsBook(opened(journal), ACCURACY, finalists=2, repeats=2)
        running: dict[int, int] = {}  # epochs told of each
        while left:
            left -= 1
            assignment = book.next() if len(running) < 2 and not book.finished else None
            if assignment:
                assert assignment.number not in ended
                known = handed_out.setdefault(assignment.number, assignment.config)
                assert assignment.config == known
                running[assignment.number] = 0
                continue
            if not running:
                return
            number = min(running, key=lambda one: (running[one], one))
            if running[number] < EPOCHS:
                running[number] += 1
                assert not book.report(number, {"epoch": float(running[number]), ACCURACY: 0.5})
            else:
                book.end(number, {ACCURACY: 0.5 + number / 100})
                del running[number]
                ended.append(number)

    run(calls)
    before = read_finals(opened(journal), ACCURACY)
    assert [final.number for final in before] == sorted(ended)
    run(10 * CALLS)
    assert sorted(ended) == [0, 1, 2, 3]
    finals = read_finals(opened(journal), ACCURACY)
    assert [(final.trial, final.seed, final.score) for final in finals] == [
        (1, 1000, 0.5),
        (2, 1000, 0.51),
        (1, 1001, 0.52),
        (2, 1001, 0.53),
    ]
    assert [final for final in finals if final.number in [one.number for one in before]] == before
    run(10 * CALLS)
    assert len(ended) == 4


def test_a_resumed_run_goes_on_with_what_stands_in_the_study(journal: Path) -> None:
    book = FinalsBook(searched(journal, [0.9, 0.5]), ACCURACY, finalists=2, repeats=2)
    begin(book), begin(book), begin(book)
    finish(book, 1)
    again = FinalsBook(opened(journal), ACCURACY, finalists=2, repeats=2)
    assert again.total == 4
    assert run_all(again) == [(0, 0, 1000), (2, 0, 1001), (3, 1, 1001)]


@pytest.mark.parametrize(
    ("finalists", "repeats", "more"),
    [
        (2, 3, [(4, 0, 1002), (5, 1, 1002)]),
        (3, 2, [(4, 2, 1000), (5, 2, 1001)]),
        (3, 3, [(4, 2, 1000), (5, 2, 1001), (6, 0, 1002), (7, 1, 1002), (8, 2, 1002)]),
        (2, 2, []),
        (1, 1, []),
    ],
)
def test_more_finalists_or_repeats_add_those_that_are_missing(
    journal: Path, finalists: int, repeats: int, more: list[tuple[int, int, int]]
) -> None:
    run_all(FinalsBook(searched(journal, [0.9, 0.7, 0.5]), ACCURACY, finalists=2, repeats=2))
    book = FinalsBook(opened(journal), ACCURACY, finalists, repeats)
    assert book.total == 4 + len(more)
    assert run_all(book) == more
    assert len(read_finals(opened(journal), ACCURACY)) == 4 + len(more)


def test_with_fewer_what_is_left_over_is_not_run_and_what_was_finished_counts(
    journal: Path,
) -> None:
    book = FinalsBook(searched(journal, [0.9, 0.7, 0.5]), ACCURACY, finalists=3, repeats=2)
    begin(book), begin(book), begin(book)
    finish(book, 2)
    fewer = FinalsBook(opened(journal), ACCURACY, finalists=2, repeats=1)
    assert fewer.total == 3
    assert run_all(fewer) == [(0, 0, 1000), (1, 1, 1000)]
    assert [final.trial for final in read_finals(opened(journal), ACCURACY)] == [0, 1, 2]
    assert run_all(FinalsBook(opened(journal), ACCURACY, finalists=3, repeats=2)) == [
        (3, 0, 1001),
        (4, 1, 1001),
        (5, 2, 1001),
    ]


def test_a_search_that_went_on_brings_its_new_best_into_the_finals(journal: Path) -> None:
    run_all(FinalsBook(searched(journal, [0.9, 0.7]), ACCURACY, finalists=2, repeats=1))
    study = opened(journal)
    add(study, {ACCURACY: 0.8}, seed=5000)
    assert run_all(FinalsBook(study, ACCURACY, finalists=2, repeats=1)) == [(2, 2, 1000)]
