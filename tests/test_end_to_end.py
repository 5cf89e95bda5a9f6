"""The commands as people run them: a sweep, what it leaves behind, kills and resumptions."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raymlc.data.demo import draw_demo

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
HEADS = ("shape", "color", "marks")
SMALL = ("backbone=test_efficientnet", "pretrained=false", "image_size=48")


def command(module: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", f"raymlc.{module}", *map(str, arguments)]


def run(*arguments: str | Path, code: int = 0) -> str:
    done = subprocess.run(
        command("tune", *arguments), capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


def trials_of(folder: Path) -> list[optuna.trial.FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    return optuna.load_study(study_name="raymlc", storage=storage).trials


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished sweep on the built-in data, and what it said."""
    output = tmp_path_factory.mktemp("runs")
    places: list[str | Path] = ["--output", output, "--cache", output / "cache"]
    said = run("--trials", "5", "--set", "epochs=5", "--name", "demo", *places)
    return output / "demo", said


@pytest.mark.slow
def test_the_command_without_data_ends_with_a_table_a_best_trial_and_its_checkpoint(
    demo: tuple[Path, str],
) -> None:
    folder, said = demo
    for word in ("trial", "state", "epochs", "score", *HEADS, "lr", "drop_rate", "drop_path_rate"):
        assert word in said
    best = re.search(r"best trial: (\d+), val/accuracy ([\d.]+)", said)
    majority = re.search(r"majority\s+([\d.]+)", said)
    assert best
    assert majority
    assert float(best[2]) > float(majority[1]) + 0.2
    assert f"checkpoint: {folder}/trials/{int(best[1]):04}/best" in said
    assert f"model card: {folder}/trials/{int(best[1]):04}/best/README.md" in said
    assert f"tensorboard --logdir {folder}/trials" in said
    assert "Failed" not in said


@pytest.mark.slow
def test_a_trials_score_is_that_of_the_checkpoint_that_it_stored(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    data = folder.parent / "cache" / "demo"
    with (folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    for row in rows[:2]:
        checkpoint = folder / "trials" / f"{int(row['trial']):04}" / "best"
        said = subprocess.run(
            command("validate", checkpoint, "--data", data, "--cache", data.parent, "--json"),
            capture_output=True, text=True, check=True, cwd=ROOT,
        )  # fmt: skip
        metrics = json.loads(said.stdout)
        assert metrics["val/accuracy"] == float(row["score"])
        for head in HEADS:
            assert metrics[f"val/accuracy/{head}"] == float(row[f"val/accuracy/{head}"])
    states = {trial.number: trial.state.name for trial in trials_of(folder)}
    assert states == {int(row["trial"]): row["state"] for row in rows}
    complete = [trial for trial in trials_of(folder) if trial.state.name == "COMPLETE"]
    assert complete
    for trial in complete:
        assert trial.value == trial.user_attrs["metrics"]["val/accuracy"]
        assert trial.value == max(trial.intermediate_values.values())


@pytest.mark.slow
def test_event_files_hold_every_head_and_hparams_with_the_best_value(
    demo: tuple[Path, str],
) -> None:
    folder, _ = demo
    for trial in trials_of(folder):
        events = EventAccumulator(str(folder / "trials" / f"{trial.number:04}"))
        events.Reload()
        tags = set(events.Tags()["scalars"])
        assert tags >= {"train/loss", "val/accuracy", "lr", "images_per_second"}
        for head in HEADS:
            per_head = {f"val/{name}/{head}" for name in ("loss", "accuracy", "balanced_accuracy")}
            assert tags >= per_head
        scalars = {event.step: event.value for event in events.Scalars("val/accuracy")}
        assert scalars == pytest.approx(trial.intermediate_values, abs=1e-6)
        (best,) = events.Scalars("best/val/accuracy")
        assert best.value == pytest.approx(max(scalars.values()))
        hparams = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        for name in trial.params:
            assert name.encode() in hparams


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.2)


def finished(folder: Path) -> dict[int, Any]:
    if not (folder / "study.journal").exists():
        return {}
    return {
        trial.number: (trial.state, trial.value, trial.datetime_complete)
        for trial in trials_of(folder)
        if trial.state.is_finished()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signal_number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)], ids=["kill", "ctrl-c"]
)
def test_a_killed_sweep_goes_on_without_running_a_finished_trial_twice(
    tmp_path: Path, signal_number: signal.Signals, code: int
) -> None:
    # Trials that end one after another, so that some have ended and some not at the signal.
    brain = ("--sampler", "random", "--pruner", "asha")
    arguments: list[str | Path] = ["--trials", "6", *brain]
    draw_demo(tmp_path / "data", rows=400)
    arguments += ["--data", tmp_path / "data", "--set", *SMALL, "epochs=4"]
    arguments += ["--output", tmp_path, "--name", "killed", "--cache", tmp_path / "cache"]
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        command("tune", *arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, cwd=ROOT,
        # A runner in the background ignores Ctrl-C, and its children would with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    wait_for(lambda: len(finished(folder)) >= 2, process)
    os.kill(process.pid, signal_number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == code, said
    if code == 130:
        assert "--name killed --resume" in said
        assert "Traceback" not in said
    before = finished(folder)
    begun = len(trials_of(folder))

    run("--output", tmp_path, "--name", "killed", "--resume")
    after = finished(folder)
    assert len(after) == len(trials_of(folder)) == 6
    assert begun <= 6
    assert {number: after[number] for number in before} == before
    for trial in trials_of(folder):
        steps = list(trial.intermediate_values)
        assert steps == list(range(1, len(steps) + 1))
        if trial.state.name == "COMPLETE":
            assert len(steps) == 4
        assert not (folder / "trials" / f"{trial.number:04}" / "last" / "training.pt").exists()

    if signal_number == signal.SIGINT:
        return  # from here on all is the same
    # More trials of a finished sweep, by the same name, which says nothing but how it ended.
    said = run("--output", tmp_path, "--name", "killed", "--resume", "--trials", "7", "--quiet")
    assert said.startswith("trials by val/accuracy;")
    assert len(trials_of(folder)) == 7
    assert {number: finished(folder)[number] for number in after} == after


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared product photos")
def test_a_sweep_on_real_photos_beats_the_majority_class_on_every_head(tmp_path: Path) -> None:
    with zipfile.ZipFile(SHARED / "data" / "fashion-small.zip") as photos:
        photos.extractall(tmp_path)
    for name, rows in {"train": 1500, "val": 400}.items():
        csv_path = tmp_path / f"{name}.csv"
        csv_path.write_text("".join(csv_path.read_text().splitlines(keepends=True)[: rows + 1]))
    arguments: list[str | Path] = ["--data", tmp_path, "--set", *SMALL, "epochs=6", "--trials", "3"]
    said = run(
        *arguments, "--name", "photos", "--output", tmp_path / "runs", "--cache", tmp_path / "cache"
    )
    assert "gender" in said
    with (tmp_path / "runs" / "photos" / "summary.csv").open() as file:
        best = next(csv.DictReader(file))
    majority = re.search(r"majority\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)", said)
    assert majority
    for head, share in zip(("gender", "article", "color"), majority.groups()[1:], strict=True):
        assert float(best[f"val/accuracy/{head}"]) > float(share)
