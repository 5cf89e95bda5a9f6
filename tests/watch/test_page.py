"""A report tells what the study has, of any kind of sweep, and neither runs nor loads anything."""

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest

from raymlc.search.finals import FinalsBook
from raymlc.search.space import Space
from raymlc.search.transfer import take_over
from raymlc.trial import TrialConfig
from raymlc.watch.confusion import Confusion, confusions, read_confusion
from raymlc.watch.figures import Axis, name_axis, number_axis
from raymlc.watch.findings import LEAST, cost_of, sentences
from raymlc.watch.markup import html_of, node
from raymlc.watch.page import page
from raymlc.watch.standing import duration
from tests.watch.made import ACCURACY, EPOCHS, Made, Page, ask

ALWAYS = [
    "summary", "leaderboard", "curves", "importance", "coordinates", "slices", "front", "cost",
    "confusion", "reproduce",
]  # fmt: skip


def shown(made: Made) -> Page:
    return Page(page(made.sweep()))


@pytest.fixture
def mixed(tmp_path: Path) -> Made:
    """Four trials to the end, two stopped early, one failed, one that runs."""
    made = Made(tmp_path / "mixed", 9)
    for score in (0.5, 0.75, 0.625):
        made.run(score)
    made.prune(0.25, 2)
    made.prune(0.375, 4)
    made.fail("ran out of memory")
    made.run(0.5625)
    made.train(made.begin(), 0.3, 3)
    return made


def test_every_section_is_there_once_and_linked(mixed: Made) -> None:
    it = shown(mixed)
    assert it.ids == [*ALWAYS[:-1], "failures", "reproduce"]
    assert it.links == [f"#{name}" for name in it.ids[1:]]
    assert it.tags.count("h1") == 1


def test_the_leaderboard_has_the_studys_numbers_in_the_order_of_its_rows(mixed: Made) -> None:
    header, *rows = shown(mixed).table("All trials, the best first")
    assert header[:6] == ["trial", "state", "epochs", ACCURACY, "color", "shape"]
    assert header[6:] == ["lr", "randaug_ops", "gc", "time"]
    assert [int(row[0]) for row in rows] == [row.number for row in mixed.book.rows()]
    assert [row[:6] for row in rows[:2]] == [
        ["1", "complete", "8 of 8", "0.7500", "0.7600", "0.7400"],
        ["2", "complete", "8 of 8", "0.6250", "0.6350", "0.6150"],
    ]
    by_number = {int(row[0]): row for row in rows}
    assert by_number[4][:4] == ["4", "stopped early", "4 of 8", "0.3750"]
    assert by_number[5][1:4] == ["failed", "0 of 8", ""]
    assert by_number[7][1:4] == ["not ended", "3 of 8", "so far 0.3000"]
    params = mixed.book.params(1)
    assert rows[0][6:9] == [f"{params['lr']:.4g}", str(params["randaug_ops"]), str(params["gc"])]


def test_the_summary_says_what_was_searched_the_best_and_what_stopping_saved(mixed: Made) -> None:
    lines = sentences(mixed.sweep())
    assert lines[0] == (
        "lr, randaug_ops and gc of efficientnet_b0 were searched for the highest val/accuracy, with"
        " rungs proposing and none stopped early: 8 trials of 9, 4 complete, 2 stopped early, 1"
        " failed and 1 not ended."
    )
    assert "had not ended" in lines[1]
    assert lines[1].endswith("saw 4,100 images in 41 epochs.")
    assert lines[2] == "The best is trial 1 with val/accuracy 0.7500, of epoch 8 of 8."
    assert lines[3].startswith("What the most common answer would get is not known: the data")
    # Two trials of 8 epochs were left after 2 and 4; 4 complete ones took 32.
    assert lines[4].startswith("Early stopping saved 10 of 48 epochs (21%), about ")
    assert lines[4].endswith("of training and 1,000 images.")
    assert lines[5] == "What mattered most cannot be told from 4 complete trials: it takes 10."


def test_cost_adds_up_by_how_trials_ended(mixed: Made) -> None:
    _, *rows = shown(mixed).table("Cost")
    assert [row[:4] for row in rows] == [
        ["complete", "4", "32", "3,200"],
        ["stopped early", "2", "6", "600"],
        ["failed", "1", "0", "0"],
        ["not ended", "1", "3", "300"],
        ["all", "8", "41", "4,100"],
    ]
    told = mixed.sweep().told
    cost = cost_of(told)
    rest = {3: 3.0, 4: 1.0}  # of the epochs that they had
    seconds = {one.number: one.seconds for one in told}
    assert cost.saved_seconds == pytest.approx(sum(rest[n] * seconds[n] for n in rest))
    assert (cost.saved_epochs, cost.saved_images, cost.whole) == (10, 1000.0, 48)


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        (0.5, "That is 2.00 GPU hours, at 2 × 0.5 GPU a trial."),
        (0.0, "That is 4.00 hours of workers on CPUs, at 2 a trial."),
        (None, "That is 4.00 hours of workers, at 2 a trial: GPU hours where each had a GPU,"),
    ],
)
def test_hours_are_of_all_workers(gpus: float | None, words: str, mixed: Made) -> None:
    sweep = mixed.sweep()
    told = [replace(one, seconds=0.0) for one in sweep.told]
    told[0] = replace(told[0], seconds=7200.0)
    told[-1] = replace(told[-1], seconds=math.nan)
    it = Page(page(replace(sweep, told=told, workers=2, gpus_per_worker=gpus)))
    assert words in it.text
    assert it.table("Cost")[-1][-1] == "2 h 0 min"


def test_a_trial_at_a_rung_waits_and_one_that_was_halted_has_its_score(mixed: Made) -> None:
    last = mixed.book.study.trials[-1]
    trial = optuna.Trial(mixed.book.study, last._trial_id)
    trial.set_user_attr("metrics", mixed.metrics(3, 0.3))
    rows = {row[0]: row for row in shown(mixed).table("All trials, the best first")}
    assert rows["7"][1:4] == ["not ended", "3 of 8", "0.3000"]
    trial.set_user_attr("paused", True)
    it = shown(mixed)
    rows = {row[0]: row for row in it.table("All trials, the best first")}
    assert rows["7"][1:4] == ["waiting at a rung", "3 of 8", "0.3000"]
    assert "1 failed and 1 waiting at a rung" in it.text


def test_failures_are_grouped_by_reason(tmp_path: Path) -> None:
    made = Made(tmp_path / "failed", 3)
    for reason in ("broken pipe", "out of memory", "broken pipe"):
        made.fail(reason)
    it = shown(made)
    assert it.table("Failures by reason")[1:] == [
        ["broken pipe", "2", "0, 2"],
        ["out of memory", "1", "1"],
    ]
    assert it.ids == [*ALWAYS[:-1], "failures", "reproduce"]
    assert "No trial has stored a checkpoint with a score yet." in it.text
    assert "There is no winner yet." in it.text


def test_a_sweep_that_has_not_begun_has_a_page(tmp_path: Path) -> None:
    it = shown(Made(tmp_path / "new", 5))
    assert it.ids == ALWAYS
    assert "has not begun" in it.text
    assert it.pictures == []


def test_a_trial_in_its_first_epoch_has_a_page(tmp_path: Path) -> None:
    made = Made(tmp_path / "first", 5)
    made.begin()
    it = shown(made)
    assert it.ids == ALWAYS
    assert "No trial has finished an epoch yet." in it.text
    assert it.table("All trials, the best first")[1][:4] == ["0", "not ended", "0 of 8", ""]


def test_one_trial_is_enough_for_every_figure_of_it(tmp_path: Path) -> None:
    made = Made(tmp_path / "one", 1, heads=("color",))
    made.run(0.5)
    it = shown(made)
    assert it.ids == ALWAYS
    assert len(it.pictures) == 1 + 1 + 3  # curves, coordinates, a slice for each parameter
    assert "nothing is traded off" in it.text


def test_several_objectives_have_curves_and_a_front_of_their_own(tmp_path: Path) -> None:
    names = "val/accuracy/color,val/loss/shape"
    made = Made(tmp_path / "several", 4, metric=names)
    for score in (0.5, 0.75, 0.625):
        made.run(score)
    it = shown(made)
    header, *rows = it.table("All trials, the best first")
    assert header[3:7] == ["score (mean)", "val/accuracy/color", "val/loss/shape", "shape"]
    # (0.76 - 0.26) / 2, in which the loss counts negative
    assert rows[0][:1] + rows[0][3:7] == ["1", "0.2500", "0.7600", "0.2600", "0.7400"]
    assert it.table("The front") == [
        ["trial", "val/accuracy/color", "val/loss/shape"],
        ["1", "0.7600", "0.2600"],
    ]
    says = [str(picture["aria-label"]) for picture in it.pictures]
    assert sum(one.startswith("Learning curves") for one in says) == 2
    assert "the best of val/accuracy/color and val/loss/shape at once" in it.text


def test_the_front_of_one_objective_is_over_the_heads(tmp_path: Path) -> None:
    made = Made(tmp_path / "front", 3)
    for first, second in ((0.9, 0.1), (0.5, 0.5), (0.4, 0.4)):
        number = made.begin()
        stored = made.metrics(EPOCHS, (first + second) / 2)
        stored |= {"val/accuracy/color": first, "val/accuracy/shape": second}
        made.book.report(number, stored)
        made.book.end(number, stored)
    text = page(made.sweep())
    assert re.findall(r'<td class="first">([^<]*)</td>', text) == ["0.9000", "0.5000"]
    rows = Page(text).table("The front")[1:]
    assert rows == [["0", "0.9000", "0.1000"], ["1", "0.5000", "0.5000"]]


def test_every_figure_says_what_is_to_be_seen(mixed: Made) -> None:
    pictures = shown(mixed).pictures
    assert len(pictures) == 2 + 1 + 3 + 1
    for picture in pictures:
        assert picture["role"] == "img"
        assert len(str(picture["aria-label"])) > 20


def test_pruned_curves_are_faded_and_the_best_is_drawn_last(mixed: Made) -> None:
    text = page(mixed.sweep())
    curves = text[text.index('id="curves"') : text.index('id="importance"')]
    lines = re.findall(r'<polyline points="([^"]*)" class="line ([^"]*)" data-t="(\d+)"', curves)
    kinds = {int(trial): kind for _, kind, trial in lines[:7]}
    assert kinds == {
        0: "complete", 1: "complete best", 2: "complete", 3: "pruned", 4: "pruned",
        6: "complete", 7: "open",
    }  # fmt: skip
    assert [int(trial) for _, _, trial in lines[:7]] == [7, 3, 4, 0, 6, 2, 1]
    assert len(lines[6][0].split()) == EPOCHS


def important(folder: Path, count: int) -> Made:
    """Trials whose score is their lr's alone."""
    made = Made(folder, count + 3)
    for _ in range(count):
        number = made.begin()
        score = (math.log10(made.book.params(number)["lr"]) + 4) / 3
        made.run_on(number, score)
    for _ in range(3):
        made.prune(0.1, 1)
    return made


def test_importance_reads_complete_trials_only_and_says_how_many(tmp_path: Path) -> None:
    made = important(tmp_path / "enough", 24)
    sweep = made.sweep()
    names = [ACCURACY, "val/accuracy/color", "val/accuracy/shape"]
    assert [(one.metric, one.trials) for one in sweep.importances] == [(n, 24) for n in names]
    for one in sweep.importances:
        assert next(iter(one.shares)) == "lr"
        assert one.shares["lr"] > 0.6
        assert sum(one.shares.values()) == pytest.approx(1)
    it = Page(page(sweep))
    header, first, *_ = it.table("Importance of 3 parameters for the score and by head")
    assert header == ["parameter", ACCURACY, "color", "shape"]
    assert first == ["lr", *(f"{one.shares['lr']:.0%}" for one in sweep.importances)]
    assert "24 of 27 here, and none that was stopped early" in it.text
    assert f"What mattered most for {ACCURACY}: lr (" in it.text


def test_importance_is_not_told_of_fewer_trials_than_it_takes(tmp_path: Path) -> None:
    assert important(tmp_path / "few", LEAST - 1).sweep().importances[0].shares == {}
    assert important(tmp_path / "as many", LEAST).sweep().importances[0].shares != {}


def test_importance_is_not_told_where_all_did_equally_well(tmp_path: Path) -> None:
    made = Made(tmp_path / "alike", LEAST + 2)
    for _ in range(LEAST + 2):
        made.run(0.5)
    assert made.sweep().importances[0].shares == {}
    assert "all did equally well" in shown(made).text


def test_trials_of_another_sweep_are_no_part_of_it(tmp_path: Path) -> None:
    other = important(tmp_path / "other", 12)
    made = Made(tmp_path / "mine", 2)
    space = Space(Path("mine.py"), ask, {})
    assert len(take_over(made.book.study, space, other.book.study.trials, "other")) == 12
    made.run(0.5)
    sweep = made.sweep()
    assert [one.number for one in sweep.told] == [12]
    assert sweep.importances[0].trials == 1


@pytest.mark.parametrize("metric", [ACCURACY, "val/loss"])
def test_importance_is_for_being_good_whichever_way_that_is(metric: str, tmp_path: Path) -> None:
    made = Made(tmp_path / "good", 40, metric=metric)
    for at in range(40):
        number = made.begin()
        params = made.book.params(number)
        good, bad = params["lr"] > 3e-2, params["randaug_ops"] == 3
        made.run_on(number, 0.6 + 0.3 * good - 0.6 * bad + at / 1000)
    sweep = made.sweep()
    assert sweep.importances[0].shares["lr"] > 0.8  # of being bad it is randaug_ops
    assert sweep.best is not None
    scores = [one.score for one in sweep.told]
    assert sweep.best.score == (max(scores) if metric == ACCURACY else min(scores))
    way = "highest" if metric == ACCURACY else "lowest"
    assert f"for the {way} {metric}" in sentences(sweep)[0]


def test_finals_stand_with_what_they_say_and_the_winner_is_one_of_them(tmp_path: Path) -> None:
    made = Made(tmp_path / "finals", 2)
    made.run(0.5)
    made.run(0.75)
    finals = FinalsBook(made.book.study, ACCURACY, 2, 2)
    for score in (0.5, 0.625, 0.5, 0.75):  # a repeat of both, then another
        final = finals.next()
        assert final is not None
        finals.report(final.number, made.metrics(EPOCHS, score))
        finals.end(final.number, made.metrics(EPOCHS, score))
    it = shown(made)
    assert it.ids == [*ALWAYS[:-1], "finals", "reproduce"]
    assert it.table("Finals, the best mean first")[1:] == [
        ["0", "2", "0.6875", "0.0884", "0.5000", "complete", "0.6250, 0.7500"],
        ["1", "2", "0.5000", "0.0000", "0.7500", "complete", "0.5000, 0.5000"],
    ]
    assert "Trained again under new seeds, trial 0 comes to 0.6875 (mean of 2 seeds)" in it.text
    assert f"{made.folder / 'finals' / 'trials' / '0001' / 'best'}" in it.text
    trial, _ = json.JSONDecoder().raw_decode(it.text[it.text.index("{\n") :])
    assert trial == made.book.study.trials[0].user_attrs["config"] | {"seed": 1000}


def test_the_winner_can_be_trained_from_the_page(mixed: Made) -> None:
    text = shown(mixed).text
    trial, _ = json.JSONDecoder().raw_decode(text[text.index("{\n") :])
    assert trial == mixed.book.study.trials[1].user_attrs["config"]
    TrialConfig.from_dict(trial)
    assert "python -m raymlc.train --name mixed-winner --trial trial.json" in text
    assert f"--data '{mixed.folder / 'no data'}' --metric val/accuracy" in text
    assert f"python -m raymlc.validate {mixed.folder / 'trials' / '0001' / 'best'}" in text


EVIL = "<script>alert(1)</script>"


def evil(folder: Path) -> Made:
    """A sweep whose heads, classes, reasons and hosts try to be HTML."""
    made = Made(folder / "a<b>&'\"", 3, heads=(EVIL, '" onload="alert(1)'))
    made.run(0.5)
    made.fail(f"{EVIL}</table></html>")
    best = made.folder / "trials" / "0000" / "best"
    best.mkdir(parents=True)
    matrix = {"true": [EVIL, "b"], "predicted": [EVIL, "b"], "counts": [[3, 1], [0, 2]]}
    hot = {"classes": [f"</script>{EVIL}"], "counts": [[[1, 2], [3, 4]]]}
    (best / "confusion.json").write_text(json.dumps({EVIL: matrix, "</style>": hot}))
    return made


def test_whatever_a_table_or_a_study_holds_is_text_on_the_page(tmp_path: Path) -> None:
    made = evil(tmp_path)
    text = page(made.sweep())
    it = Page(text)
    assert it.tags.count("script") == it.tags.count("style") == 1
    assert it.handlers == []
    assert "<script>alert" not in text
    assert it.text.count(EVIL) > 5
    assert f"{EVIL}</table></html>" in it.text
    assert it.ids == [*ALWAYS[:-1], "failures", "reproduce"]


def test_nothing_is_fetched(tmp_path: Path, mixed: Made) -> None:
    for made in (evil(tmp_path), mixed):
        text = page(made.sweep())
        it = Page(text)
        assert it.fetched == ["data:,"]  # no icon is asked for
        assert not {"img", "iframe", "object", "embed", "video", "audio"} & set(it.tags)
        assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|https?:", text)
        assert "default-src 'none'" in text


def test_a_large_sweep_is_a_page_of_fair_size(mixed: Made) -> None:
    sweep = mixed.sweep()
    curve = {epoch: [math.sqrt(epoch) / 10] for epoch in range(1, 101)}
    told = [replace(sweep.told[0], number=n, curve=curve) for n in range(2000)]
    text = page(replace(sweep, told=told))
    assert len(text) < 5_000_000
    lines = re.findall(r'<polyline points="([^"]*)"', text)
    assert sum(len(line.split()) for line in lines[:2000]) < 50_000
    assert {line.split()[-1] for line in lines[:2000]} == {lines[0].split()[-1]}  # its last epoch


def test_text_and_elements_stay_in_their_order() -> None:
    it = node("p", {"title": '"'}, "1 < ", node("b", {}, "2"), " < 3", " & 4")
    assert html_of(it) == '<p title="&quot;">1 &lt; <b>2</b> &lt; 3 &amp; 4</p>'


def test_a_matrix_is_shown_whole_with_what_was_found() -> None:
    one = Confusion(("a", "b", "new"), ("a", "b"), np.array([[3, 1], [0, 4], [2, 0]]))
    it = Page(html_of(node("main", {}, *confusions({"head": one}))))
    assert it.table("Confusion matrix of head: rows are true, columns what the network said") == [
        ["true ↓ said →", "a", "b", "found"],
        ["a", "3", "1", "75.0%"],
        ["b", "·", "4", "100.0%"],
        ["new", "2", "·", "0.0%"],
    ]


def test_of_many_classes_the_most_confused_pairs_and_the_largest_are_shown() -> None:
    names = tuple(f"c{at}" for at in range(40))
    counts = np.diag(np.arange(40)) * 10
    counts[7, 9], counts[39, 0], counts[3, 4] = 5, 8, 1
    it = Page(html_of(node("main", {}, *confusions({"head": Confusion(names, names, counts)}))))
    assert it.table("The most confused pairs of classes of head")[1:] == [
        ["c39", "c0", "8", "2.0%"],
        ["c7", "c9", "5", "6.7%"],
        ["c3", "c4", "1", "3.2%"],
    ]
    largest = it.table("The largest classes of head")[1:]
    assert largest[:2] == [["c39", "398", "98.0%"], ["c38", "380", "100.0%"]]
    assert len(largest) == 20


def test_a_multi_hot_head_has_recall_and_precision_by_class() -> None:
    one = Confusion(("dot", "bar"), (), np.array([[[5, 1], [1, 3]], [[2, 0], [6, 2]]]))
    it = Page(html_of(node("main", {}, *confusions({"marks": one}))))
    assert it.table("The classes of marks, each by itself")[1:] == [
        ["bar", "8", "2", "25.0%", "100.0%"],
        ["dot", "4", "4", "75.0%", "75.0%"],
    ]


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", '{"h": 3}', '{"h": {"true": ["a"], "predicted": ["a"], "counts": [[1, 2]]}}',
        '{"h": {"classes": ["a"], "counts": [[1, 2]]}}', '{"h": {"counts": [[1]]}}',
        '{"h": {"true": ["a"], "predicted": ["a"], "counts": [["x"]]}}', "\x00",
    ],
)  # fmt: skip
def test_counts_that_cannot_be_read_are_left_out(text: str, tmp_path: Path) -> None:
    (tmp_path / "confusion.json").write_text(text)
    assert read_confusion(tmp_path) == {}
    assert read_confusion(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values", [[0.1, 0.9], [3e-4, 1e-2], [0.5], [1.0, 1.0], [12.0, 98765.0], [1e-9, 2e-9], [2, 3]]
)
def test_an_axis_holds_its_values_and_has_ticks_on_it(values: list[float], log: bool) -> None:
    axis = number_axis("x", values, log)
    places = [axis.place(value) for value in values]
    assert all(0 < place < 1 for place in places)
    assert 1 <= len(axis.ticks) <= 8
    for place, text in axis.ticks:
        assert place == pytest.approx(axis.place(float(text)), abs=1e-3)
        assert -1e-9 <= place <= 1 + 1e-9


def test_an_axis_of_whole_numbers_has_no_tick_between_them() -> None:
    assert [text for _, text in number_axis("epoch", [1, 2], whole=True).ticks] == ["1", "2"]


def test_an_axis_of_names_has_a_place_for_each() -> None:
    axis: Axis = name_axis("gc", ["False", "True"])
    assert [axis.place("False"), axis.place("True")] == [0.25, 0.75]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_time_is_said_as_people_do(seconds: float, said: str) -> None:
    assert duration(seconds) == said


BROWSERS = ("chromium", "google-chrome", "chromium-browser")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason=f"there is none of {', '.join(BROWSERS)}")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it_without_an_error_or_a_request(
    width: int, tmp_path: Path, mixed: Made
) -> None:
    best = mixed.folder / "trials" / "0001" / "best"
    best.mkdir(parents=True)
    matrix = {"true": [EVIL, "b"], "predicted": [EVIL, "b"], "counts": [[3, 1], [0, 2]]}
    (best / "confusion.json").write_text(json.dumps({"color": matrix}))
    text = page(mixed.sweep())
    errors, after, asked = opened(text, tmp_path, width)
    assert errors == []
    assert after.ids == Page(text).ids
    # The script has run: the columns of the leaderboard can be sorted by.
    assert after.tags.count("button") == len(after.table("All trials, the best first")[0])
    assert asked == []


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason=f"there is none of {', '.join(BROWSERS)}")
def test_a_browser_tells_of_errors_and_requests(tmp_path: Path) -> None:
    bad = '<script>throw Error("no")</script><img src="http://elsewhere.example/a.png">'
    errors, _, asked = opened(f"<!DOCTYPE html><title>bad</title>{bad}", tmp_path, 800)
    assert len(errors) == 1
    assert asked == ["http://elsewhere.example/a.png"]


def opened(text: str, folder: Path, width: int) -> tuple[list[str], Page, list[str]]:
    """A page in a browser without a network: what its console says, the page then, its requests."""
    file, log = folder / "report.html", folder / "net.json"
    file.write_text(text, encoding="utf-8")
    run = subprocess.run(
        [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions",
            "--disable-background-networking", "--no-first-run", "--enable-logging=stderr",
            "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}",
            f"--window-size={width},900", "--virtual-time-budget=3000", f"--log-net-log={log}",
            "--dump-dom", file.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    errors = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    asked = set()
    for line in log.read_text(encoding="utf-8").splitlines():
        if '"network_isolation_key"' in line:
            params = json.loads(line[: line.rindex("}") + 1])["params"]
            # What the browser asks for by itself is of no page.
            if params["network_isolation_key"].startswith("file:"):
                asked.add(params["url"])
    return errors, Page(run.stdout), sorted(asked)
