"""A TorchTrainer's workers train one trial after another, and keep nothing of the one before."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from raymlc.cluster.train import TrialTrainer
from raymlc.cluster.worker import Job, TrialFailed
from raymlc.data.table import read_table
from raymlc.training.checkpoint import load_history
from raymlc.trial import TrialConfig

CONFIG = TrialConfig(
    backbone="test_convnext", pretrained=False, image_size=48, epochs=2, batch_size=32
)


@pytest.fixture
def job(drawn: Path, tmp_path: Path) -> Job:
    folder = tmp_path / "sweep"
    folder.mkdir()
    return Job(read_table(drawn), folder, tmp_path / "cache", "stop", "val/accuracy")


@pytest.fixture
def trainer(job: Job, ray: None) -> Iterator[TrialTrainer]:
    with closing(TrialTrainer(job, "two", workers=2, cpus=1.0, gpus=0.0)) as trainer:
        yield trainer


def workers() -> list[int]:
    """The process ids of all workers of TorchTrainers."""
    from ray._private.state import actors

    return sorted(
        actor["Pid"]
        for actor in actors().values()
        if actor["State"] == "ALIVE" and "TrainWorker" in actor["ActorClassName"]
    )


def history(folder: Path) -> list[dict[str, float]]:
    rows: list[dict[str, Any]] = load_history(folder / "last")
    return [{name: row[name] for name in row if name != "images_per_second"} for row in rows]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's of its own, in this process
def test_a_trial_is_the_same_in_new_workers_and_in_those_that_trained_others(
    trainer: TrialTrainer, job: Job
) -> None:
    folders = [job.folder / str(number) for number in range(5)]
    assert [metrics["epoch"] for metrics in trainer.epochs(folders[0], CONFIG)] == [1, 2]
    began = workers()
    assert len(began) == 2

    stopped = trainer.epochs(folders[1], CONFIG.replace({"seed": 1, "gc": True}))
    assert next(stopped)["epoch"] == 1
    stopped.close()
    bad = CONFIG.replace({"optimizer": "sgd", "lr": 1e30, "warmup_epochs": 0.0})
    with pytest.raises(TrialFailed, match="not finite"):
        list(trainer.epochs(folders[2], bad))
    assert [metrics["epoch"] for metrics in trainer.epochs(folders[3], CONFIG)] == [1, 2]
    assert workers() == began
    assert [row["epoch"] for row in history(folders[1])] == [1], "nothing more than it told"
    assert history(folders[3]) == history(folders[0])

    # One that is lost while there is nothing to do is replaced for the next trial.
    os.kill(began[0], signal.SIGKILL)
    assert [metrics["epoch"] for metrics in trainer.epochs(folders[4], CONFIG)] == [1, 2]
    assert began[0] not in workers()
    assert history(folders[4]) == history(folders[0])
