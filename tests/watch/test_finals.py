"""What is said of finals is what they show, in plain words and in the metric's own direction."""

import csv
import math
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

import optuna
import pytest
from optuna.trial import create_trial
from rich.console import Console

from raymlc.search.finals import Final, FinalsBook
from raymlc.search.verdict import Finalist, Outcome, compare, judge
from raymlc.trial import TrialConfig
from raymlc.watch.finals import finals_lines, table_of_finals, write_finals
from raymlc.watch.recorder import Recorder

ACCURACY = "val/accuracy"


def final(number: int, trial: int, seed: int, score: float, reason: str = "") -> Final:
    metrics = {ACCURACY: score, "val/accuracy/color": score - 0.1}
    return Final(number, trial, seed, score, metrics, reason, 3, 1.5, "host-a", "")


def finalist(
    trial: int, scores: Mapping[int, float], swept: float = 0.5, whole: bool = True
) -> Finalist:
    finals = (final(10 * trial + seed, trial, seed, score) for seed, score in scores.items())
    return Finalist(trial, swept, whole, tuple(finals))


def outcome_of(*finalists: Finalist, sign: int = 1, failed: tuple[Final, ...] = ()) -> Outcome:
    """The outcome with the finalists in this order."""
    judged = [one for one in finalists if one.finals]
    pairs = math.comb(len(judged), 2)
    comparisons = tuple(compare(judged[0], other, sign, pairs) for other in judged[1:])
    return Outcome(ACCURACY if sign > 0 else "val/loss", finalists, comparisons, failed)


BETTER = {1: 0.861, 2: 0.872, 3: 0.851}
WORSE = {1: 0.850, 2: 0.859, 3: 0.839}
LIKE = {1: 0.871, 2: 0.852, 3: 0.849}


@pytest.mark.parametrize(
    ("winner", "other", "said"),
    [
        (
            BETTER,
            WORSE,
            "trial 5 is better than trial 10 by 0.0120 [0.0095, 0.0145] (95 %, 3 seeds, paired)",
        ),
        (
            BETTER,
            LIKE,
            "trials 5 and 10 cannot be told apart: 5 is ahead by 0.0040 [-0.0335, 0.0415]"
            " (95 %, 3 seeds, paired); as far as these seeds tell, the simpler or cheaper one is"
            " as good a choice",
        ),
        (
            # The best mean, but over a seed that the other has not.
            {1: 0.5, 2: 0.5, 3: 0.51, 4: 0.99},
            {1: 0.51, 2: 0.51, 3: 0.5201},
            "trial 10 is better than trial 5 by 0.0100 [0.0099, 0.0102] (95 %, 3 seeds, paired)",
        ),
        (
            {1: 0.5, 2: 0.5, 4: 0.99},
            {1: 0.51, 2: 0.50},
            "trials 5 and 10 cannot be told apart: 10 is ahead by 0.0050 [-0.0585, 0.0685]"
            " (95 %, 2 seeds, paired); as far as these seeds tell, the simpler or cheaper one is"
            " as good a choice",
        ),
        (
            {1: 0.8},
            {1: 0.7},
            "trials 5 and 10 differ by 0.1000 in the one seed that both finished; one seed has no"
            " spread, so nobody can say whether that is luck: give more --repeats",
        ),
        (
            {1: 0.8},
            {2: 0.7},
            "trials 5 and 10 cannot be compared: there is no seed that both finished",
        ),
        (
            {1: 0.8, 2: 0.9},
            {1: 0.7, 2: 0.8},
            "trials 5 and 10 differ by 0.1000 in each of 2 seeds; without a spread, no interval"
            " can be given",
        ),
        (
            {1: 0.8, 2: 0.9},
            {1: 0.8, 2: 0.9},
            "trials 5 and 10 score the same in each of 2 seeds; without a spread, no interval can"
            " be given",
        ),
    ],
)
def test_the_winner_is_called_better_only_where_it_is(
    winner: dict[int, float], other: dict[int, float], said: str
) -> None:
    lines = finals_lines(outcome_of(finalist(5, winner), finalist(10, other)))
    assert said in lines


def test_of_a_loss_the_lower_one_is_better() -> None:
    lines = finals_lines(outcome_of(finalist(5, WORSE), finalist(10, BETTER), sign=-1))
    assert (
        "trial 5 is better than trial 10 by 0.0120 [0.0095, 0.0145] (95 %, 3 seeds, paired)"
        in lines
    )


def test_intervals_of_three_finalists_hold_together_and_say_so() -> None:
    third = finalist(7, {1: 0.7, 2: 0.72, 3: 0.69})
    lines = finals_lines(outcome_of(finalist(5, BETTER), finalist(10, WORSE), third))
    # t(2) at 1 - 0.05 / 3 is 7.649, times 0.001 / sqrt(3).
    assert (
        "trial 5 is better than trial 10 by 0.0120 [0.0076, 0.0164]"
        " (95 %, 3 pairs together, 3 seeds, paired)" in lines
    )
    assert any(line.startswith("trial 5 is better than trial 7 by 0.1580") for line in lines)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (
            BETTER,
            "best trial by its finals: 5, val/accuracy 0.8613 (mean of 3 seeds, standard deviation"
            " 0.0105)",
        ),
        (
            {1: 0.8},
            "best trial by its finals: 5, val/accuracy 0.8000 (one seed, so its spread is not"
            " known: give more --repeats)",
        ),
    ],
)
def test_the_winner_is_said_with_its_spread(scores: dict[int, float], said: str) -> None:
    assert said in finals_lines(outcome_of(finalist(5, scores)))


TWO = {1: 0.85, 2: 0.87}


@pytest.mark.parametrize(
    ("finalists", "said"),
    [
        (
            [finalist(5, TWO, 0.8788)],
            [
                "the sweep said 0.8788 of trial 5, its finals say 0.8600 (mean of 2 seeds): the"
                " sweep's number was 0.0188 too high"
            ],
        ),
        (
            [finalist(5, {1: 0.85}, 0.8)],
            [
                "the sweep said 0.8000 of trial 5, its finals say 0.8500 (one seed): the sweep's"
                " number was 0.0500 too low"
            ],
        ),
        (
            [finalist(5, TWO, 0.86003)],
            [
                "the sweep said 0.8600 of trial 5, its finals say 0.8600 (mean of 2 seeds): the"
                " sweep's number was right"
            ],
        ),
        (
            [finalist(5, TWO, 0.88), finalist(6, TWO, 0.90)],
            [
                "the sweep said 0.8800 of trial 5, its finals say 0.8600 (mean of 2 seeds): the"
                " sweep's number was 0.0200 too high",
                "of the 2 finalists that the sweep trained to the end, its numbers were 0.0300 too"
                " high in the mean",
            ],
        ),
        (
            [finalist(5, TWO, 0.88), finalist(6, TWO, 0.5, whole=False), finalist(7, {}, 0.9)],
            [
                "the sweep said 0.8800 of trial 5, its finals say 0.8600 (mean of 2 seeds): the"
                " sweep's number was 0.0200 too high",
            ],
        ),
        (
            [finalist(5, TWO, 0.5, whole=False), finalist(6, TWO, 0.87)],
            [
                "the sweep said 0.5000 of trial 5, its finals say 0.8600 (mean of 2 seeds); the"
                " sweep stopped it early, and its finals are of full length",
                "of the one finalist that the sweep trained to the end, its numbers were 0.0100 too"
                " high",
            ],
        ),
    ],
)
def test_the_optimism_of_the_sweep_is_said_where_the_lengths_are_the_same(
    finalists: list[Finalist], said: list[str]
) -> None:
    lines = finals_lines(outcome_of(*finalists))
    assert [line for line in lines if "sweep" in line] == said


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (BETTER, "final 51 is the one to use: its 0.8610 is the median"),
        (TWO, "final 51 is the one to use: its 0.8500 is the worse of the two in the middle"),
    ],
)
def test_which_final_is_to_be_used_is_said_and_why(scores: dict[int, float], said: str) -> None:
    lines = finals_lines(outcome_of(finalist(5, scores)))
    assert lines[-1] == f"{said} of trial 5's finals, where the best of them would be luck again"


def test_of_a_single_final_nothing_is_said_of_a_median() -> None:
    assert not any("median" in line for line in finals_lines(outcome_of(finalist(5, {1: 0.8}))))


def test_a_bound_that_rounds_to_nothing_has_no_sign() -> None:
    # Differences 0.01 and 0.011712: half their interval, 0.01088, is just more than their mean.
    other = {1: 0.79, 2: 0.788288}
    lines = finals_lines(outcome_of(finalist(5, {1: 0.8, 2: 0.8}), finalist(10, other)))
    assert any("ahead by 0.0109 [0.0000, 0.0217] (95 %" in line for line in lines)


def test_failed_finals_are_said_with_their_reasons() -> None:
    failed = (final(3, 10, 1001, math.nan, "the loss of color was not finite"),)
    told = "final 3 (trial 10, seed 1001) failed: the loss of color was not finite"
    assert finals_lines(outcome_of(finalist(5, TWO), failed=failed))[0] == told
    assert finals_lines(outcome_of(finalist(10, {}), failed=failed)) == [
        told,
        "no final succeeded",
    ]


def test_without_finals_nothing_is_said() -> None:
    assert finals_lines(outcome_of()) == []


def test_the_table_has_means_and_leaves_out_what_is_not_known() -> None:
    text = StringIO()
    console = Console(file=text, width=120)
    outcome = outcome_of(
        finalist(5, TWO, 0.88), finalist(10, {1: 0.8}, 0.7, whole=False), finalist(7, {}, 0.6)
    )
    console.print(table_of_finals(outcome, ("color", "tags")))
    lines = [line.split() for line in text.getvalue().splitlines() if line.strip()]
    assert " ".join(lines[0]) == "finals: means of val/accuracy and of the heads' accuracies"
    assert lines[1] == ["trial", "n", "mean", "sd", "sweep", "in", "the", "sweep", "color", "tags"]
    assert lines[3:] == [
        ["5", "2", "0.86", "0.01414", "0.88", "complete", "0.76"],
        ["10", "1", "0.8", "0.7", "stopped", "early", "0.7"],
        ["7", "0", "0.6", "complete"],
    ]


def test_the_csv_has_a_row_for_each_final_with_every_metric(tmp_path: Path) -> None:
    failed = final(52, 5, 2, 0.1, 'it "burst", twice')
    outcome = outcome_of(finalist(5, {1: 0.9, 3: 0.8}), finalist(4, {1: 0.7}), failed=(failed,))
    write_finals(tmp_path / "finals.csv", outcome)
    with (tmp_path / "finals.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["final"] for row in rows] == ["41", "51", "52", "53"]
    assert [row["trial"] for row in rows] == ["4", "5", "5", "5"]
    assert [row["reason"] for row in rows] == ["", "", 'it "burst", twice', ""]
    assert rows[1]["score"] == rows[1][ACCURACY] == "0.9"
    assert float(rows[1]["val/accuracy/color"]) == pytest.approx(0.8)
    assert (rows[1]["seed"], rows[1]["epochs"], rows[1]["seconds"]) == ("1", "3", "1.5")
    assert rows[1]["node"] == "host-a"


def test_the_recorder_of_a_sweep_runs_its_finals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = optuna.create_study(direction="maximize")
    attributes = {"config": TrialConfig(epochs=1).to_dict(), "metrics": {ACCURACY: 0.9}}
    study.add_trial(create_trial(value=0.9, user_attrs=attributes))
    book = FinalsBook(study, ACCURACY, finalists=1, repeats=2)
    text = StringIO()
    recorder = Recorder(book, tmp_path / "finals", ("color",), book.total, Console(file=text))
    scores = iter([{ACCURACY: 0.7, "epoch": 1.0}, {ACCURACY: 0.8, "epoch": 1.0}])
    monkeypatch.setattr("raymlc.watch.recorder.read_score", lambda folder: next(scores))
    while assignment := recorder.next():
        epoch = {"epoch": 1.0, ACCURACY: 0.7, "images_per_second": 1.0}
        assert recorder.epoch(assignment.number, epoch) is False
        recorder.end(assignment.number)
    recorder.close()
    assert "trial 0 starts, up to 1 epoch: sweep_trial=0, seed=1000" in text.getvalue()
    assert "best 0.8000 of trial 1; 2 of 2 trials" in " ".join(text.getvalue().split())
    for number in (0, 1):
        assert list((tmp_path / "finals" / "trials" / f"{number:04}").glob("events.*"))
    outcome = judge(study, ACCURACY)
    assert outcome.winner is not None
    assert outcome.winner.scores == [0.7, 0.8]
    assert outcome.deployed is not None
    assert outcome.deployed.checkpoint == str(tmp_path / "finals" / "trials" / "0000" / "best")
