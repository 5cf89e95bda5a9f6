"""Sweeps on a real Ray: what it took it gives back, and where a trial runs changes no number."""

import time
from pathlib import Path
from typing import Any

import pytest
from optuna.pruners import BasePruner
from optuna.trial import BaseTrial

from raymlc.cluster.sweep import Resources, place, run_sweep
from raymlc.cluster.trainable import Placement
from raymlc.errors import UserError
from raymlc.search.space import Space
from raymlc.training.checkpoint import find, load_history
from raymlc.trial import TrialConfig
from raymlc.watch.recorder import trial_folder

PLAIN: dict[str, Any] = {
    "backbone": "test_convnext",  # no batch norm, which would see other batches on two workers
    "pretrained": False,
    "image_size": 48,
    "epochs": 3,
    "batch_size": 32,
    "drop_rate": 0.0,
    "crop_min_area": 1.0,
    "hflip_prob": 0.0,
}


def some_fail(trial: BaseTrial) -> TrialConfig:
    """Asks for an lr; every sixth trial's loss is soon no number."""
    trial.suggest_float("lr", 1e-3, 1e-2, log=True)
    number = trial.number
    broken = {"optimizer": "sgd", "lr": 1e30, "warmup_epochs": 0.0} if number % 6 == 2 else {}
    return TrialConfig(**(PLAIN | {"lr": 3e-3} | broken))


def one_trial(trial: BaseTrial) -> TrialConfig:
    """The same trial whatever is asked."""
    trial.suggest_float("drop_rate", 0.0, 0.0)
    return TrialConfig(**PLAIN, lr=3e-3)


class EveryThirdRunsOn(BasePruner):
    """Stops all but every third trial after their first epoch."""

    def prune(self, study: Any, trial: Any) -> bool:
        return bool(trial.number % 3)


def resources_held() -> dict[str, float]:
    """What is taken of Ray's cores, its placement groups and its living actors."""
    import ray
    from ray._private.state import actors
    from ray.util import placement_group_table

    have, free = ray.cluster_resources(), ray.available_resources()
    groups = placement_group_table().values()
    return {
        "cpus": have["CPU"] - free.get("CPU", 0.0),
        "groups": sum(group["state"] not in ("REMOVED",) for group in groups),
        "actors": sum(
            actor["State"] != "DEAD" and "AutoscalingCoordinator" not in actor["ActorClassName"]
            for actor in actors().values()
        ),
    }


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize(
    ("torch_trainer", "trials"), [(False, 12), (True, 6)], ids=["process", "torch"]
)
def test_a_sweep_of_more_trials_than_fit_ends_and_gives_everything_back(
    make_sweep: Any, torch_trainer: bool, trials: int
) -> None:
    recorder, job, book = make_sweep(Space(Path("some_fail.py"), some_fail, {}), trials)
    book.study.pruner = EveryThirdRunsOn()
    run_sweep(recorder, job, Placement(1, torch_trainer, 1.0, 0.0), concurrency=2)
    recorder.close()

    states = {trial.number: trial.state.name for trial in book.study.trials}
    expected = {
        number: "FAIL" if number % 6 == 2 else "PRUNED" if number % 3 else "COMPLETE"
        for number in range(trials)
    }
    assert states == expected
    for trial in book.study.trials:
        epochs = {"COMPLETE": [1, 2, 3], "PRUNED": [1], "FAIL": []}[trial.state.name]
        assert list(trial.intermediate_values) == epochs
        folder = trial_folder(job.folder, trial.number)
        # A stopped trial has trained nothing that it did not tell.
        assert [row["epoch"] for row in load_history(folder / "last")] == epochs
        assert (find(folder / "best") is None) == (trial.state.name == "FAIL")
    assert "not finite in epoch 1" in book.study.trials[2].user_attrs["reason"]

    deadline = time.monotonic() + 60
    nothing = {"cpus": 0.0, "groups": 0, "actors": 0}
    while resources_held() != nothing and time.monotonic() < deadline:
        time.sleep(0.5)
    assert resources_held() == nothing


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_trial_has_the_same_numbers_in_process_in_a_trainer_and_over_two_workers(
    make_sweep: Any,
) -> None:
    histories = {}
    for name, placement in {
        "process": Placement(1, False, 1.0, 0.0),
        "trainer": Placement(1, True, 1.0, 0.0),
        "two workers": Placement(2, True, 1.0, 0.0),
    }.items():
        recorder, job, book = make_sweep(Space(Path("one.py"), one_trial, {}), 1, name)
        run_sweep(recorder, job, placement, concurrency=1)
        recorder.close()
        assert [trial.state.name for trial in book.study.trials] == ["COMPLETE"]
        histories[name] = load_history(trial_folder(job.folder, 0) / "last")
    for name in ("trainer", "two workers"):
        for row, reference in zip(histories[name], histories["process"], strict=True):
            assert row.keys() == reference.keys()
            for tag in row.keys() - {"images_per_second"}:
                # A few rounding errors may turn the answer on a row, but not move a loss.
                tolerance = 1e-3 if "loss" in tag or "/" not in tag else 0.05
                assert row[tag] == pytest.approx(reference[tag], abs=tolerance), (name, tag)


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_trial_that_would_never_fit_is_refused_with_what_there_is() -> None:
    with pytest.raises(UserError, match=r"1000 workers .* must fit .* CPUs"):
        place(Resources(workers=1000), growing=False)
    placement, concurrency = place(Resources(), growing=False)
    assert (placement.workers, placement.torch_trainer, placement.cpus) == (1, False, 1.0)
    assert concurrency >= 1
