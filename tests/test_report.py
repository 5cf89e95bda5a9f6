"""python -m raymlc.report: reads any sweep, at any time, and changes nothing but its own page."""

import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from raymlc.data.table import read_table
from raymlc.options import TuneOptions
from raymlc.report import main, read_sweep
from raymlc.search.read import read_study
from raymlc.search.space import Space
from raymlc.search.storage import open_study
from raymlc.search.study import StudyBook
from raymlc.search.transfer import respaced
from raymlc.training.metrics import majority_accuracy
from raymlc.trial import TrialConfig
from raymlc.watch.page import BEGINNING
from tests.watch.made import ACCURACY, EPOCHS, Made, Page, ask


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A sweep with a trial that has ended and one that runs."""
    one = Made(tmp_path / "runs" / "mine", 3)
    one.run(0.75)
    one.train(one.begin(), 0.5, 2)
    return one


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    read = capsys.readouterr()
    assert read.out == ""
    (line,) = read.err.splitlines()
    assert line.startswith("error: ")
    return line


def everything(folder: Path) -> dict[Path, tuple[bytes, float]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_the_page_stands_in_the_sweeps_folder_and_nothing_else_is_changed(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(made.folder)
    assert main([str(made.folder)]) == 0
    report = made.folder / "report.html"
    read = capsys.readouterr()
    assert (read.out, read.err) == (f"report: {report}\n", "")
    after = everything(made.folder)
    assert Page(after.pop(report)[0].decode()).ids[0] == "summary"
    assert after == before


def test_a_page_is_replaced_as_the_sweep_goes_on(
    made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "page.html"
    for trials in (2, 3):
        assert len(made.book.rows()) == trials
        assert main([str(made.folder), "--output", str(output)]) == 0
        assert output.read_text().startswith(BEGINNING)
        rows = Page(output.read_text()).table("All trials, the best first")[1:]
        assert len(rows) == trials
        if trials == 2:
            made.begin()
    assert not (made.folder / "report.html").exists()


def test_what_is_no_report_is_not_replaced(
    made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = tmp_path / "train.csv"
    other.write_text("<!DOCTYPE html>\n")
    assert "replaces older reports only" in refused(capsys, made.folder, "--output", other)
    assert other.read_text() == "<!DOCTYPE html>\n"
    assert "is a folder" in refused(capsys, made.folder, "--output", tmp_path)
    nowhere = tmp_path / "not" / "there.html"
    assert "must be a file to write" in refused(capsys, made.folder, "--output", nowhere)


def test_a_folder_that_is_no_sweeps_is_refused_in_a_line(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"holds sweep.json, but {tmp_path} does not" in refused(capsys, tmp_path)
    (made.folder / "study.journal").unlink()
    assert "must be where it was kept" in refused(capsys, made.folder)
    assert not (made.folder / "study.journal").exists()
    (made.folder / "study.journal").write_text("no journal at all")
    assert "cannot be read" in refused(capsys, made.folder)
    (made.folder / "sweep.json").write_text("{")
    assert "must hold a run's options" in refused(capsys, made.folder)


def test_a_study_is_read_while_it_is_written(made: Made) -> None:
    journal = made.folder / "study.journal"
    whole = journal.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    journal.write_bytes(whole[: last + 20])  # a line that is half written yet
    assert read_sweep(made.folder).told[0].epochs == EPOCHS
    assert journal.read_bytes() == whole[: last + 20]
    journal.write_bytes(whole)
    assert [one.state for one in read_sweep(made.folder).told] == ["COMPLETE", "OPEN"]
    assert made.book.rows()[1].state == "RUNNING"


def test_a_study_in_a_database_is_found_by_its_folders_name(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("other", "mine"):
        study = open_study(url, ACCURACY, "random", "none", 0, EPOCHS, tmp_path / name)
        book = StudyBook(study, Space(Path("mine.py"), ask, {}), ACCURACY, 3)
        for _ in range(2 if name == "mine" else 1):
            book.next()
    TuneOptions(study=url, trials="3").save(folder / "sweep.json")
    assert len(read_sweep(folder).told) == 2


def test_a_study_that_is_not_there_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, missing = tmp_path / "there.db", tmp_path / "missing.db"
    open_study(f"sqlite:///{there}", ACCURACY, "random", "none", 0, EPOCHS, tmp_path / "other")
    folder = tmp_path / "mine"
    folder.mkdir()
    TuneOptions(study=f"sqlite:///{missing}").save(folder / "sweep.json")
    assert "there is no sqlite:///" in refused(capsys, folder)
    assert not missing.exists()
    TuneOptions(study=f"sqlite:///{there}").save(folder / "sweep.json")
    line = refused(capsys, folder)
    assert "has no 'mine' (it has other)" in line
    assert optuna.get_all_study_names(f"sqlite:///{there}") == ["other"]


def test_the_study_of_a_changed_space_is_the_newest(made: Made) -> None:
    def other(trial: optuna.trial.BaseTrial) -> TrialConfig:
        return TrialConfig(lr=trial.suggest_float("lr", 1.0, 2.0), epochs=EPOCHS)

    respaced(made.book.study, Space(Path("other.py"), other, {}))
    study = read_study(made.folder / "study.journal", "raymlc")
    assert study.study_name == "raymlc#2"
    # Its trials are beside that search, and still what they were.
    assert [(one.number, one.params) for one in read_sweep(made.folder).told] == [(0, {}), (1, {})]


def test_majority_is_of_the_sweeps_own_data(tmp_path: Path, tiny_table: Path) -> None:
    heads = ("shape", "code", "marks")
    made = Made(tmp_path / "runs" / "mine", 1, heads=heads, data=tiny_table)
    made.run(0.5)
    sweep = read_sweep(made.folder)
    table = read_table(tiny_table)
    splits = table.splits
    assert sweep.majority == majority_accuracy(
        table.labels, splits["train"].targets, splits["val"].targets
    )
    assert main([str(made.folder)]) == 0
    rows = Page((made.folder / "report.html").read_text()).table(
        "Accuracy of the best trial by head"
    )
    assert [row[:3] for row in rows[1:]] == [
        [head, f"{0.5 + 0.02 * (1 - at):.4f}", f"{sweep.majority[head]:.4f}"]
        for at, head in enumerate(heads)
    ]
    other = Made(tmp_path / "runs" / "other", 1, heads=("color",), data=tiny_table)
    other.run(0.5)
    assert read_sweep(other.folder).no_majority == f"{tiny_table} has other heads now"


def test_the_words_to_train_again_are_those_of_the_data(tmp_path: Path) -> None:
    made = Made(tmp_path / "mine", 1)
    options = TuneOptions(
        data=tmp_path / "table.csv", heads=("a", "b c"), val_fraction=0.3, broken_images="skip",
        allow_outside=True, workers=2, metric=ACCURACY,
    )  # fmt: skip
    options.save(made.folder / "sweep.json")
    assert read_sweep(made.folder).train == (
        "--data", str(tmp_path / "table.csv"), "--heads", "a", "b c", "--metric", ACCURACY,
        "--val-fraction", "0.3", "--broken-images", "skip", "--allow-outside", "--workers", "2",
    )  # fmt: skip


def test_neither_torch_nor_ray_is_needed(made: Made) -> None:
    code = (
        f"import sys; from raymlc.report import main; assert main([{str(made.folder)!r}]) == 0;"
        " assert not {'torch', 'ray', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
