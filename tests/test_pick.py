"""A sweep's checkpoints are chosen by weights, from its folder alone."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raymlc.options import TuneOptions
from raymlc.pick import main
from raymlc.search.study import Row
from raymlc.training.run import BEST, SUMMARY
from raymlc.watch.progress import write_summary
from raymlc.watch.recorder import trial_folder

SWEEP = "sweep.json"
# gender, article, loss: 0 and 1 are on the front of the accuracies, 2 is dominated by 1; 3 failed
# at once and 4 has no article.
TRIALS = {
    0: {"val/accuracy/gender": 0.9, "val/accuracy/article": 0.5, "val/loss": 0.3},
    1: {"val/accuracy/gender": 0.7, "val/accuracy/article": 0.8, "val/loss": 0.2},
    2: {"val/accuracy/gender": 0.6, "val/accuracy/article": 0.8, "val/loss": 0.1},
    3: {},
    4: {"val/accuracy/gender": 0.95, "val/accuracy/article": math.nan, "val/loss": 9.0},
}
BOTH = "val/accuracy/gender,val/accuracy/article"


def write(folder: Path, metric: str = BOTH, trials: dict[int, dict[str, float]] = TRIALS) -> Path:
    """A sweep's folder as `raymlc.tune` leaves it, without the checkpoints themselves."""
    folder.mkdir()
    TuneOptions(metric=metric).save(folder / SWEEP)
    rows = [
        Row(
            number=number,
            state="COMPLETE" if metrics else "FAIL",
            epochs=7,
            score=math.nan,
            metrics={"epoch": 7.0, "lr": 0.1, "train/loss": 1.0, **metrics} if metrics else {},
            params={"lr": 0.5, "optimizer": "sgd", "head_weights/gender": 2.0},
            reason="" if metrics else 'it burst,\nall of "it"',
            seconds=3.0,
        )
        for number, metrics in trials.items()
    ]
    write_summary(folder / SUMMARY, rows)
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep of two objectives, each a head's accuracy."""
    return write(tmp_path / "sweep")


def say(capsys: pytest.CaptureFixture[str], *arguments: Any) -> list[str]:
    """The lines of a command that goes well."""
    assert main([str(argument) for argument in arguments]) == 0
    read = capsys.readouterr()
    assert read.err == ""
    return [line.rstrip() for line in read.out.splitlines()]


def table(lines: list[str]) -> list[list[str]]:
    """The cells of the printed table, its header first."""
    rows = [line.split() for line in lines]
    start = next(at for at, row in enumerate(rows) if row[:1] == ["trial"])
    return [rows[start], *(row for row in rows[start + 2 :] if row and row[0].isdigit())][
        : next((at for at, row in enumerate(rows[start + 2 :]) if not row), 0) + 1
    ]


def test_the_front_stands_in_a_table_the_best_by_weight_first(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = ["val/accuracy/gender=1", "val/accuracy/article=2"]
    lines = say(capsys, sweep, "--weights", *weights)
    assert table(lines) == [
        ["trial", "state", "epochs", *weights, "score"],
        ["1", "complete", "7", "0.7", "0.8", "0.6667"],
        ["0", "complete", "7", "0.9", "0.5", "0.3333"],
    ]
    assert lines[-4:] == [
        "2 of 5 trials are on the front",
        "2 have no checkpoint with all of these metrics",
        "best by weight: trial 1, 0.6667",
        f"checkpoint: {trial_folder(sweep, 1) / BEST}",
    ]


@pytest.mark.parametrize(
    ("weights", "number"),
    [
        (["gender=2", "article=1"], 0),
        (["gender=1", "article=2"], 1),
        (["article=1"], 1),  # as good as trial 2, whose number is higher
        (["gender=1"], 4),
        (["gender=1", "val/loss=1"], 0),
        (["gender=1", "val/loss=99"], 2),
        (["val/loss=1e-3"], 2),
        (["gender=0", "article=1"], 1),  # trial 2 is as good in article, but off the front
        ([], 0),
    ],
)
def test_any_metrics_are_weighed_and_a_head_may_be_named_short(
    sweep: Path, weights: list[str], number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = say(capsys, sweep, *(["--weights", *weights] if weights else []))
    assert lines[-1] == f"checkpoint: {trial_folder(sweep, number) / BEST}"


def test_trials_off_the_front_are_shown_for_the_asking(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = say(capsys, sweep, "--all")
    names = ["val/accuracy/gender=1", "val/accuracy/article=1"]
    assert table(lines) == [
        ["trial", "state", "epochs", "front", *names, "score"],
        ["0", "complete", "7", "yes", "0.9", "0.5", "0.5"],
        ["1", "complete", "7", "yes", "0.7", "0.8", "0.5"],
        ["2", "complete", "7", "no", "0.6", "0.8", "0.25"],
    ]


def test_a_sweep_of_one_objective_is_weighed_by_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "sweep", "val/loss", {0: TRIALS[0], 1: TRIALS[1], 2: TRIALS[2]})
    assert say(capsys, folder)[-1].endswith("trials/0002/best")
    lines = say(capsys, folder, "--weights", "val/accuracy/gender=9", "val/loss=1")
    assert lines[-1].endswith("trials/0000/best")
    assert lines[-3] == "3 of 3 trials are on the front"


def test_a_short_name_is_the_heads_own_objective_before_the_kind_of_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("val/accuracy/a", "val/loss/a", "val/loss/b", "val/accuracy/b", "val/accuracy/c=d")
    trials = {0: dict.fromkeys(names, 0.5)}
    folder = write(tmp_path / "sweep", "val/accuracy/a,val/loss/b", trials)
    header, _ = table(say(capsys, folder, "--weights", "a=1", "b=2", "c=d=3"))
    assert header[3:-1] == ["val/accuracy/a=1", "val/loss/b=2", "val/accuracy/c=d=3"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    read = capsys.readouterr()
    assert read.out == ""
    (line,) = read.err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (["gendre=1"], "but has 'gendre'; did you mean 'gender'?"),
        (["val/accuracy/gendre=1"], "did you mean 'val/accuracy/gender'"),
        (["zzz=1"], "they have val/accuracy/gender, val/accuracy/article, val/loss"),
        (["lr=1"], "but has 'lr'"),
        (["train/loss=1"], "but has 'train/loss'"),
        (["gender"], "must be written METRIC=WEIGHT with a number, but has 'gender'"),
        (["gender="], "but has 'gender='"),
        (["gender=much"], "such as val/accuracy/gender=1"),
        (["gender=nan"], "but has 'gender=nan'"),
        (["gender=1", "val/accuracy/gender=2"], "has another in 'val/accuracy/gender=2'"),
        (["gender=1", "val/loss=-1"], "at least 0, but that of val/loss is -1"),
        (["gender=inf"], "that of val/accuracy/gender is inf"),
        (["gender=0", "article=0"], "val/accuracy/gender and val/accuracy/article has 0"),
    ],
)
def test_wrong_weights_are_refused_in_a_line(
    sweep: Path, weights: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(capsys, sweep, "--weights", *weights)


def test_a_folder_that_is_no_ended_sweeps_is_refused_in_a_line(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"holds sweep.json, but {tmp_path} does not" in refused(capsys, tmp_path)
    assert "does not; name the folder of a sweep" in refused(capsys, tmp_path / "nowhere")
    (sweep / SUMMARY).unlink()
    assert "has none yet" in refused(capsys, sweep)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (SWEEP, "{"),
        (SWEEP, "{}"),
        (SWEEP, "[]"),
        (SWEEP, '{"metric": 3}'),
        (SUMMARY, "trial,state\n1,COMPLETE\n"),
        (SUMMARY, "trial,state,epochs,val/loss\none,COMPLETE,1,0.5\n"),
        (SUMMARY, "trial,state,epochs,val/loss\n1,COMPLETE,1,low\n"),
        (SUMMARY, "trial,state,epochs,val/loss\n1,COMPLETE,1,0.5,0.5\n"),
        (SUMMARY, "trial,state,epochs,val/loss\n1\n"),
        (SUMMARY, b"\xff\xfe\x00"),
    ],
)
def test_a_folder_with_broken_files_is_refused_in_a_line(
    sweep: Path, file: str, text: str | bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweep / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert "must be as the sweep left it" in refused(capsys, sweep)


def test_a_sweep_without_a_checkpoint_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "none", trials={0: {}, 1: {}})
    assert "has a checkpoint to choose" in refused(capsys, folder, "--weights", "gender=1")
    apart = {0: {"val/accuracy/gender": 1.0}, 1: {"val/accuracy/article": 1.0}}
    folder = write(tmp_path / "apart", trials=apart)
    line = refused(capsys, folder)
    assert "number for each of val/accuracy/gender, val/accuracy/article; leave one out" in line


def test_neither_torch_nor_ray_is_needed(sweep: Path) -> None:
    code = (
        f"import sys; from raymlc.pick import main; assert main([{str(sweep)!r}]) == 0;"
        " assert not {'torch', 'ray', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
