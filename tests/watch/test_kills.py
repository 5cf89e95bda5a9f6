"""A sweep is killed at twenty moments, and nothing is lost but the epoch that it was in."""

import json
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import BaseTrial, FrozenTrial, TrialState
from rich.console import Console

from raymlc.data.demo import draw_demo
from raymlc.data.store import open_split
from raymlc.data.table import read_table
from raymlc.search.choice import PrunerName
from raymlc.search.space import Space
from raymlc.search.storage import open_study
from raymlc.search.study import StudyBook
from raymlc.training.checkpoint import load_history
from raymlc.training.run import LAST, run_trial
from raymlc.trial import TrialConfig
from raymlc.watch.log import EVENTS
from raymlc.watch.recorder import Recorder, trial_folder

ACCURACY, EPOCHS, TRIALS, KILLS, AT_A_TIME = "val/accuracy", 6, 24, 20, 2
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

pytestmark = pytest.mark.slow


def space(trial: BaseTrial) -> TrialConfig:
    return TrialConfig(
        backbone="test_efficientnet",
        pretrained=False,
        image_size=32,
        epochs=EPOCHS,
        batch_size=32,
        lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True),
    )


def sweep(data: Path, folder: Path, pruner: PrunerName) -> None:
    """Run or go on with a sweep, two trials by turns; note each epoch before it is trained."""
    torch.set_num_threads(1)
    table = read_table(data)
    train, val = (open_split(table.splits[n], 32, data / "cache") for n in ("train", "val"))
    study = open_study(folder / "study.journal", ACCURACY, "random", pruner, 0, EPOCHS)
    book = StudyBook(study, Space(Path("mine.py"), space, {}), ACCURACY, TRIALS)
    recorder = Recorder(book, folder, table.labels.names, TRIALS, Console(quiet=True))

    def noted(number: int, epochs: Iterator[dict[str, float]]) -> Generator[dict[str, float]]:
        stored = len(load_history(trial_folder(folder, number) / LAST))
        for epoch in range(1, EPOCHS + 1):
            if epoch > stored:
                with (folder / "trained").open("a") as file:
                    file.write(f"{number} {epoch}\n")
            yield next(epochs)

    running: dict[int, Generator[dict[str, float]]] = {}
    while True:
        while len(running) < AT_A_TIME and (assignment := recorder.next()) is not None:
            number = assignment.number
            epochs = run_trial(
                assignment.config,
                table.labels,
                train,
                val,
                trial_folder(folder, number),
                ACCURACY,
                torch.device("cpu"),
            )
            running[number] = noted(number, epochs)
        if not running:
            break
        for number in list(running):
            metrics = next(running[number])
            if recorder.epoch(number, metrics) or metrics["epoch"] == EPOCHS:
                del running[number]
                recorder.end(number)
    recorder.close()


def trials_of(folder: Path) -> list[FrozenTrial]:
    """The trials as Optuna itself reads them; none before the study is there."""
    journal = folder / "study.journal"
    if not journal.exists():
        return []
    storage = JournalStorage(JournalFileBackend(str(journal)))
    if not storage.get_all_studies():
        return []
    return optuna.load_study(study_name="raymlc", storage=storage).trials


def begun(folder: Path) -> int:
    """How many times an epoch has been begun."""
    notes = folder / "trained"
    return notes.read_text().count("\n") if notes.exists() else 0


def ended(trials: list[FrozenTrial]) -> dict[int, FrozenTrial]:
    return {trial.number: trial for trial in trials if trial.state in FINISHED}


def check_events(folder: Path, trials: list[FrozenTrial]) -> None:
    """The log of the sweep tells the same as its study, each thing once."""
    events = [json.loads(line) for line in (folder / EVENTS).read_text().splitlines()]
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    named = Counter(event["event"] for event in events)
    assert (named["sweep_begun"], named["sweep_ended"]) == (1, 1)
    assert named["sweep_resumed"] <= KILLS
    ends = [event for event in events if event["event"] == "trial_ended"]
    assert {event["trial"]: event["state"] for event in ends} == {
        trial.number: trial.state.name for trial in trials
    }
    assert len(ends) == len(trials)
    for trial in trials:
        of_it = [event for event in events if event.get("trial") == trial.number]
        epochs = [event for event in of_it if event["event"] == "epoch"]
        told = [(event["epoch"], event["metrics"][ACCURACY]) for event in epochs]
        assert told == list(trial.intermediate_values.items())
        begun = [event["event"] in ("trial_started", "trial_resumed") for event in of_it]
        assert any(begun) == ("config" in trial.user_attrs)


@pytest.mark.parametrize("pruner", ["asha", "promote"])
def test_a_sweep_killed_at_twenty_moments_loses_nothing_but_the_epochs_it_was_in(
    tmp_path: Path, pruner: PrunerName
) -> None:
    data, folder = tmp_path / "data", tmp_path / "sweep"
    draw_demo(data, rows=160)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    moments = random.Random(0)
    warm = processes.Process(target=sweep, args=(data, tmp_path / "warm", pruner))
    warm.start()  # decodes the images
    warm.join(60)
    assert warm.exitcode == 0

    finished: dict[int, FrozenTrial] = {}
    for kill in range(KILLS):
        process = processes.Process(target=sweep, args=(data, folder, pruner))
        process.start()
        goal = begun(folder) + moments.randint(1, 3)
        while begun(folder) < goal and process.exitcode is None:
            time.sleep(0.005)
        process.join(moments.uniform(0.0, 0.3))
        assert process.exitcode is None, f"the sweep was over before kill {kill}"
        process.kill()
        process.join()
        trials = trials_of(folder)
        assert {number: trial for number, trial in ended(trials).items() if number in finished} == (
            finished
        )
        finished = ended(trials)
        print(f"kill {kill}: {len(trials)} trials, {len(finished)} of them finished")
    process = processes.Process(target=sweep, args=(data, folder, pruner))
    process.start()
    process.join(120)
    assert process.exitcode == 0

    trials = trials_of(folder)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert not [trial for trial in trials if trial.state not in FINISHED]  # no ghost
    given = [trial for trial in trials if "config" in trial.user_attrs]
    assert len(trials) == TRIALS
    for trial in given:
        assert list(trial.intermediate_values) == list(range(1, len(trial.intermediate_values) + 1))
        assert (trial.state == TrialState.COMPLETE) == (len(trial.intermediate_values) == EPOCHS)
        history = load_history(trial_folder(folder, trial.number) / LAST)
        assert {int(m["epoch"]): m[ACCURACY] for m in history} == trial.intermediate_values
    check_events(folder, trials)
    trained = Counter((folder / "trained").read_text().split("\n")[:-1])
    again = sum(count - 1 for count in trained.values())
    assert again <= KILLS  # one epoch at a time is trained, and it alone is lost
    print(f"{len(trained)} epochs, {again} trained again; {TRIALS - len(given)} never begun")
