"""A trial in its folder: its best checkpoint, its history, and how it goes on after a kill."""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import raymlc.training.run as run
from raymlc.data.store import ImageSplit
from raymlc.labels import Labels
from raymlc.metric import score_of
from raymlc.training.checkpoint import load_checkpoint, load_history, read_score, save_last
from raymlc.training.evaluate import Workers, evaluate
from raymlc.training.run import BEST, LAST, SUMMARY, Keep, best_epochs, head_folder, run_trial
from raymlc.training.state import Training
from raymlc.trial import TrialConfig

CPU = torch.device("cpu")
History = list[dict[str, float]]
Runner = Callable[..., Iterator[dict[str, float]]]


@pytest.fixture
def start(labels: Labels, train: ImageSplit, val: ImageSplit, tmp_path: Path) -> Runner:
    """start(config, name="trial", metric="val/accuracy"): a trial in a folder of that name."""

    def start(
        config: TrialConfig,
        name: str = "trial",
        metric: str = "val/accuracy",
        workers: Workers = Workers(),
        keep: Keep = Keep(),
    ) -> Iterator[dict[str, float]]:
        return run_trial(config, labels, train, val, tmp_path / name, metric, CPU, workers, keep)

    return start


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> dict[Path, list[dict[str, Any]]]:
    """For each trial's folder, copies of the training's state at the end of each epoch."""
    states: dict[Path, list[dict[str, Any]]] = {}

    def noting_save(folder: Path, training: Training, history: History) -> None:
        states.setdefault(folder.parent, []).append(copy.deepcopy(training.state_dict()))
        save_last(folder, training, history)

    monkeypatch.setattr(run, "save_last", noting_save)
    return states


def without_speed(history: History) -> History:
    return [
        {name: value for name, value in metrics.items() if name != "images_per_second"}
        for metrics in history
    ]


def assert_same(first: Any, second: Any) -> None:
    """Equal to the bit, however deep."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert_same(value, second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for left, right in zip(first, second, strict=True):
            assert_same(left, right)
    elif isinstance(first, Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


@pytest.mark.parametrize(
    "metric", ["val/accuracy", "val/balanced_accuracy/side", "val/loss", "val/accuracy,val/loss"]
)
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_best_checkpoint_measures_exactly_what_was_recorded(
    config: TrialConfig,
    labels: Labels,
    val: ImageSplit,
    tmp_path: Path,
    start: Runner,
    metric: str,
    ema_decay: float,
    channels_last: bool,
) -> None:
    config = config.replace(
        {"epochs": 3, "ema_decay": ema_decay, "channels_last": channels_last, "lr": 5e-3}
    )
    history = list(start(config, metric=metric))
    choose = min if metric == "val/loss" else max
    best = choose(history, key=lambda metrics: score_of(metrics, metric))

    checkpoint = load_checkpoint(tmp_path / "trial" / BEST)
    assert checkpoint.metrics == best
    layout = torch.channels_last if channels_last else torch.contiguous_format
    again = evaluate(
        checkpoint.network.to(memory_format=layout),
        checkpoint.labels,
        val,
        checkpoint.normalization,
        CPU,
        batch_size=config.batch_size,
    ).metrics("val")
    assert again == {name: checkpoint.metrics[name] for name in again}
    assert checkpoint.config == config
    assert checkpoint.labels == labels


Scored = Callable[[dict[str, list[float]]], None]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Scored:
    """scored({metric: values}): epoch by epoch training moves the weights and scores these."""

    def scored(values: dict[str, list[float]]) -> None:
        def fake_fit(training: Training, *_: Any) -> Iterator[dict[str, float]]:
            while training.epoch < training.config.epochs:
                training.epoch += 1
                for tensor in training.deployed.state_dict().values():
                    tensor.fill_(training.epoch)
                now = {name: column[training.epoch - 1] for name, column in values.items()}
                yield {"epoch": float(training.epoch), **now}

        monkeypatch.setattr(run, "fit", fake_fit)

    return scored


NAN = math.nan


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("val/accuracy", [0.1, 0.2, 0.3, 0.4], 4),
        ("val/accuracy", [0.4, 0.3, 0.2, 0.1], 1),
        ("val/accuracy/color", [0.1, 0.9, 0.3, 0.8], 2),
        ("val/balanced_accuracy", [0.2, 0.9, 0.9, 0.9], 2),
        ("val/accuracy", [NAN, 0.0, 0.0, NAN], 2),
        ("val/accuracy", [NAN, NAN, 0.1, 0.7], 4),
        ("val/loss", [0.1, 0.2, 0.3, 0.4], 1),
        ("val/loss", [0.4, 0.1, 0.3, 0.2], 2),
        ("val/loss/side", [3.0, 2.0, 2.0, 1.0], 4),
        ("val/loss", [NAN, 5.0, NAN, 4.0], 4),
    ],
)
def test_the_best_checkpoint_is_the_first_epoch_with_the_best_metric(
    config: TrialConfig,
    tmp_path: Path,
    start: Runner,
    scored: Scored,
    metric: str,
    values: list[float],
    best: int,
) -> None:
    scored({metric: values})
    config = config.replace({"epochs": 4})
    for epoch, metrics in enumerate(start(config, metric=metric), start=1):
        assert metrics["epoch"] == epoch
        if epoch >= best:
            assert read_score(tmp_path / "trial" / BEST)["epoch"] == best
    weights = load_checkpoint(tmp_path / "trial" / BEST).network.state_dict()
    assert all((tensor == best).all() for tensor in weights.values())


@pytest.mark.parametrize(
    ("values", "order"),
    [
        # Neither the best of the first objective nor of the second has the best mean.
        ({"val/accuracy/color": [0.9, 0.7, 0.1, 0.7], "val/accuracy/side": [0, 0.6, 0.9, 0.3]},
         [2, 3, 4, 1]),
        ({"val/loss": [5.0, 1.0, 2.0, 4.0], "val/accuracy": [0.9, 0.1, 0.9, 0.9]}, [2, 3, 4, 1]),
        ({"val/loss": [2.0, 1.0, 1.0, NAN], "val/loss/side": [2.0, 1.0, 0.5, 0.0]}, [3, 2, 1]),
    ],
)  # fmt: skip
def test_of_several_objectives_the_epochs_with_the_best_mean_are_kept(
    config: TrialConfig,
    tmp_path: Path,
    start: Runner,
    scored: Scored,
    values: dict[str, list[float]],
    order: list[int],
) -> None:
    scored(values)
    history = list(start(config.replace({"epochs": 4}), metric=",".join(values), keep=Keep(top=2)))
    assert best_epochs(history, ",".join(values), 4) == order
    assert read_score(tmp_path / "trial" / BEST)["epoch"] == order[0]
    kept = {int(path.name) for path in (tmp_path / "trial" / "epochs").iterdir()}
    assert kept == set(order[:2])


@pytest.mark.parametrize(
    ("metric", "color", "side"),
    [("val/accuracy", 2, 1), ("val/accuracy,val/loss", 2, 1), ("val/loss/side,val/accuracy", 3, 2)],
)
def test_of_each_head_the_best_checkpoint_is_kept_by_the_first_objectives_kind(
    config: TrialConfig,
    labels: Labels,
    tmp_path: Path,
    start: Runner,
    scored: Scored,
    metric: str,
    color: int,
    side: int,
) -> None:
    values = {"val/accuracy": [0.5, 0.5, 0.5], "val/loss": [1.0, 1.0, 1.0]}
    values |= {"val/accuracy/color": [0.1, 0.3, 0.2], "val/accuracy/side": [0.3, 0.2, 0.1]}
    values |= {"val/loss/color": [3.0, 2.0, 1.0], "val/loss/side": [3.0, 1.0, 2.0]}
    scored(values)
    list(start(config.replace({"epochs": 3}), metric=metric, keep=Keep(heads=True)))
    for head, epoch in (("color", color), ("side", side)):
        assert read_score(head_folder(tmp_path / "trial", labels, head))["epoch"] == epoch


def test_the_best_checkpoint_is_found_across_a_resume(
    config: TrialConfig, tmp_path: Path, start: Runner, scored: Scored
) -> None:
    scored({"val/accuracy": [0.3, 0.9, 0.5, 0.8]})
    config = config.replace({"epochs": 4})
    first = start(config)
    assert [next(first)["epoch"] for _ in range(2)] == [1, 2]
    del first
    assert [metrics["epoch"] for metrics in start(config)] == [1, 2, 3, 4]
    assert read_score(tmp_path / "trial" / BEST) == {"epoch": 2, "val/accuracy": 0.9}


def test_each_epoch_is_on_disk_before_it_is_told(
    config: TrialConfig, tmp_path: Path, start: Runner
) -> None:
    told: History = []
    for metrics in start(config):
        told.append(metrics)
        assert load_history(tmp_path / "trial" / LAST) == told
        assert (tmp_path / "trial" / BEST / "model.safetensors").is_file()
    assert len(told) == config.epochs


@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_a_resumed_trial_tells_its_history_and_ends_as_if_never_killed(
    config: TrialConfig,
    tmp_path: Path,
    start: Runner,
    states: dict[Path, list[dict[str, Any]]],
    killed_after: int,
) -> None:
    config = config.replace({"epochs": 4, "randaug_ops": 1})
    whole = list(start(config, "whole"))
    before = start(config, "killed")
    told = [next(before) for _ in range(killed_after)]
    del before
    after = start(config, "killed")
    assert [next(after) for _ in range(killed_after)] == told
    history = told + list(after)
    assert without_speed(history) == without_speed(whole)
    assert load_history(tmp_path / "killed" / LAST) == history
    assert len(states[tmp_path / "killed"]) == 4
    assert_same(states[tmp_path / "killed"], states[tmp_path / "whole"])
    scores = [read_score(tmp_path / name / BEST) for name in ("whole", "killed")]
    assert without_speed(scores)[0] == without_speed(scores)[1]
    weights = [load_checkpoint(tmp_path / name / BEST).network for name in ("whole", "killed")]
    assert_same(weights[0].state_dict(), weights[1].state_dict())


class Killed(BaseException):
    """What a process that is killed raises nowhere: nothing may catch it."""


def test_a_trial_killed_between_its_two_writes_does_that_epoch_again(
    config: TrialConfig,
    tmp_path: Path,
    start: Runner,
    states: dict[Path, list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The best checkpoint is of an epoch that the history does not know yet."""
    config = config.replace({"epochs": 3, "lr": 5e-3})
    whole = list(start(config, "whole", metric="val/loss"))
    noting_save: Callable[[Path, Training, History], None] = vars(run)["save_last"]

    def killing_save(folder: Path, training: Training, history: History) -> None:
        if len(history) == 2:
            raise Killed
        noting_save(folder, training, history)

    monkeypatch.setattr(run, "save_last", killing_save)
    with pytest.raises(Killed):
        list(start(config, "killed", metric="val/loss"))
    assert read_score(tmp_path / "killed" / BEST)["epoch"] == 2
    assert len(load_history(tmp_path / "killed" / LAST)) == 1
    monkeypatch.setattr(run, "save_last", noting_save)
    again = list(start(config, "killed", metric="val/loss"))
    assert without_speed(again) == without_speed(whole)
    assert_same(states[tmp_path / "killed"], states[tmp_path / "whole"])
    scores = [read_score(tmp_path / name / BEST) for name in ("whole", "killed")]
    assert without_speed(scores)[0] == without_speed(scores)[1]


def test_a_finished_trial_tells_its_history_without_training(
    config: TrialConfig, tmp_path: Path, start: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = list(start(config))
    assert [path.name for path in (tmp_path / "trial" / LAST).iterdir()] == ["history.json"]

    def no_training(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished trial must not be built again")

    monkeypatch.setattr(run, "Training", no_training)
    assert list(start(config)) == history


def test_a_resumed_trial_does_not_fetch_its_first_weights_again(
    config: TrialConfig, start: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[bool] = []

    def noting_training(
        config: TrialConfig, labels: Labels, device: torch.device, fetch: bool
    ) -> Training:
        fetched.append(fetch)
        return Training(config, labels, device, fetch)

    monkeypatch.setattr(run, "Training", noting_training)
    first = start(config)
    next(first)
    list(start(config))
    assert fetched == [True, False]


def test_only_worker_0_writes(config: TrialConfig, tmp_path: Path, start: Runner) -> None:
    history = list(start(config, workers=Workers(rank=1, size=2)))
    assert [metrics["epoch"] for metrics in history] == [1, 2]
    assert not (tmp_path / "trial").exists()


def test_a_trial_leaves_only_its_best_and_its_last(
    config: TrialConfig, tmp_path: Path, start: Runner
) -> None:
    list(start(config))
    assert {path.name for path in (tmp_path / "trial").iterdir()} == {BEST, LAST, SUMMARY}
