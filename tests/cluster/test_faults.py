"""Trials whose processes are killed, hang or raise: they fail alone, and the sweep goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import BaseTrial, FrozenTrial
from rich.console import Console

from raymlc.cluster.sweep import ray_session, run_sweep
from raymlc.cluster.trainable import Placement
from raymlc.cluster.worker import ERROR, Job
from raymlc.data.demo import draw_demo
from raymlc.data.table import read_table
from raymlc.errors import UserError
from raymlc.search.space import Space
from raymlc.search.storage import open_study
from raymlc.search.study import StudyBook
from raymlc.training.checkpoint import load_history, read_score
from raymlc.trial import TrialConfig
from raymlc.watch.recorder import Recorder, trial_folder
from tests.patched import patch_in_processes

ROOT = Path(__file__).parents[2]
PROCESS, TRAINER = Placement(1, False, 1.0, 0.0), Placement(1, True, 1.0, 0.0)
THREE = "failed 3 times, the last time: "

# What happens in the second epoch of the trial with each seed.
FINE, KILLED_ONCE, KILLED, RAISES, HANGS, HANGS_ONCE, DIVERGES, FULL_DISK = range(8)
FAULTS = """
    import errno, os, signal, time
    from pathlib import Path
    gradients = module.Learner._gradients

    def full(folder, training, history):
        raise OSError(errno.ENOSPC, "No space left on device")

    def faulty(self, batch):
        if self.training.epoch == 1:
            import raymlc.cluster.watchdog as watchdog, raymlc.training.run as run
            watchdog.LONGEST_EPOCHS, watchdog.LEAST_SECONDS = 1.0, 4.0
            seed, notes = self.training.config.seed, Path("{notes}")
            before = notes.read_text().split() if notes.exists() else []
            if str(seed) not in before or seed in (2, 3, 4):
                with notes.open("a") as file:
                    file.write(f"{{seed}} ")
                if seed in (1, 2):
                    os.kill(os.getpid(), signal.SIGKILL)
                if seed == 3:
                    raise RuntimeError("the kernel is broken")
                if seed in (4, 5):
                    time.sleep(3600)
                if seed == 7:
                    run.PATIENCE, run.save_last = 0.0, full
        return gradients(self, batch)

    module.Learner._gradients = faulty
"""


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Ray in whose processes faults are done; and the file that has a seed for each of them."""
    folder = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        change = FAULTS.format(notes=folder / "notes")
        patch_in_processes(folder, patch, "raymlc.training.step", change)
        with ray_session(None, verbose=False):
            yield folder / "notes"


def begun(folder: Path, data: Path, seeds: list[int]) -> tuple[Recorder, Job, StudyBook]:
    """A sweep that begins or goes on, with a trial for each seed."""

    def ask(trial: BaseTrial) -> TrialConfig:
        trial.suggest_float("drop_rate", 0.0, 0.0)
        seed = seeds[trial.number]
        broken = {"optimizer": "sgd", "lr": 1e30, "warmup_epochs": 0.0} if seed == DIVERGES else {}
        fields: dict[str, Any] = {
            "backbone": "test_convnext",
            "pretrained": False,
            "image_size": 32,
            "epochs": 3,
            "batch_size": 32,
            "seed": seed,
        }
        return TrialConfig(**(fields | broken))

    study = open_study(folder / "study.journal", "val/accuracy", "random", "none", 0, 3)
    book = StudyBook(study, Space(Path("faults.py"), ask, {}), "val/accuracy", len(seeds))
    table = read_table(data)
    recorder = Recorder(book, folder, table.labels.names, len(seeds), Console(quiet=True))
    return recorder, Job(table, folder, folder / "cache", "stop", "val/accuracy"), book


def check(trial: FrozenTrial, folder: Path, state: str, epochs: list[int], reason: str) -> None:
    said = trial.user_attrs.get("reason", "")
    assert (trial.state.name, said.startswith(reason)) == (state, True), said
    assert "\n" not in said
    assert list(trial.intermediate_values) == epochs
    assert [row["epoch"] for row in load_history(folder / "last")] == epochs
    assert bool(read_score(folder / "best")) == bool(epochs)
    assert (folder / ERROR).exists() == (state == "FAIL")


@pytest.mark.slow
def test_trials_whose_process_is_killed_hangs_or_raises_go_on_or_fail_alone(
    notes: Path, tmp_path: Path
) -> None:
    draw_demo(tmp_path / "data", rows=160)
    seeds = [KILLED, HANGS_ONCE, RAISES, DIVERGES, FINE]
    recorder, job, book = begun(tmp_path / "sweep", tmp_path / "data", seeds)
    for csv in (tmp_path / "data").glob("*.csv"):
        csv.write_text("edited while the sweep runs")  # it has read them
    run_sweep(recorder, job, PROCESS, concurrency=2)
    recorder.close()
    trials = dict(zip(seeds, book.study.trials, strict=True))
    folders = {seed: trial_folder(job.folder, trial.number) for seed, trial in trials.items()}
    for seed in (FINE, HANGS_ONCE):
        check(trials[seed], folders[seed], "COMPLETE", [1, 2, 3], "")
    for seed, epochs, reason in (
        (KILLED, [1], f"{THREE}its process was killed, out of memory, crashed or never there (see"),
        (RAISES, [1], "RuntimeError: the kernel is broken"),
        (DIVERGES, [], "the loss of "),
    ):
        check(trials[seed], folders[seed], "FAIL", epochs, reason)
    assert "in faulty" in (folders[RAISES] / ERROR).read_text()
    assert "worker process has died" in (folders[KILLED] / ERROR).read_text()
    assert notes.read_text().split().count(str(KILLED)) == 3


@pytest.mark.slow
def test_workers_of_a_trainer_that_are_killed_or_hang_go_on_or_fail_alone(
    notes: Path, drawn: Path, tmp_path: Path
) -> None:
    notes.unlink(missing_ok=True)
    recorder, job, book = begun(tmp_path / "sweep", drawn, [HANGS, KILLED_ONCE])
    run_sweep(recorder, job, TRAINER, concurrency=2)
    recorder.close()
    hangs, killed = book.study.trials
    check(killed, trial_folder(job.folder, 1), "COMPLETE", [1, 2, 3], "")
    check(hangs, trial_folder(job.folder, 0), "FAIL", [1], f"{THREE}no sign of life for ")
    assert "in faulty" in (trial_folder(job.folder, 0) / ERROR).read_text()
    assert sorted(notes.read_text().split()) == [str(KILLED_ONCE), *[str(HANGS)] * 3]


@pytest.mark.slow
def test_a_disk_that_is_full_ends_the_sweep_in_one_line_and_no_trial_fails_by_it(
    notes: Path, drawn: Path, tmp_path: Path
) -> None:
    notes.unlink(missing_ok=True)
    folder = tmp_path / "sweep"
    recorder, job, book = begun(folder, drawn, [FULL_DISK])
    with pytest.raises(UserError) as caught:
        run_sweep(recorder, job, PROCESS, concurrency=1)
    recorder.close()
    trial = trial_folder(folder, 0)
    assert f"{trial} must be writable, but was not for 0 s: No space left on device" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)
    assert [row["epoch"] for row in load_history(trial / "last")] == [1]
    assert [one.state.name for one in book.study.trials] == ["RUNNING"]
    recorder, job, book = begun(folder, drawn, [FULL_DISK])
    run_sweep(recorder, job, PROCESS, concurrency=1)
    recorder.close()
    check(book.study.trials[0], trial, "COMPLETE", [1, 2, 3], "")


@pytest.mark.slow
@pytest.mark.usefixtures("notes")
def test_a_study_that_cannot_be_written_at_a_trials_end_ends_the_sweep_in_one_line(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: StudyBook, *given: object) -> None:
        raise UserError("the study must be writable, but is not")

    recorder, job, _ = begun(tmp_path / "sweep", drawn, [DIVERGES, FINE])
    monkeypatch.setattr(StudyBook, "end", full)
    with pytest.raises(UserError, match="the study must be writable, but is not") as caught:
        run_sweep(recorder, job, PROCESS, concurrency=1)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    recorder, job, book = begun(tmp_path / "sweep", drawn, [DIVERGES, FINE])
    run_sweep(recorder, job, PROCESS, concurrency=1)
    recorder.close()
    assert [trial.state.name for trial in book.study.trials] == ["FAIL", "COMPLETE"]


@pytest.mark.slow
def test_a_sweep_that_is_told_to_terminate_ends_as_by_ctrl_c_in_seconds(tmp_path: Path) -> None:
    draw_demo(tmp_path / "data", rows=160)
    command = [
        sys.executable, "-m", "raymlc.tune", "--data", str(tmp_path / "data"), "--trials", "2",
        "--set", "backbone=test_convnext", "pretrained=false", "image_size=32", "epochs=500",
        "--output", str(tmp_path), "--name", "told", "--cache", str(tmp_path / "cache"),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    events = tmp_path / "told" / "events.jsonl"
    deadline = time.monotonic() + 180
    while not events.exists() or '"epoch": 2' not in events.read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    told = time.monotonic()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert time.monotonic() - told < 25  # of the 30 that the clouds give
    assert "--name told --resume" in said
    assert "Traceback" not in said
