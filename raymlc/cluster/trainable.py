"""A trial as Tune runs it: an iterator of epochs behind one class."""

from __future__ import annotations

import socket
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from ray import tune

from raymlc.cluster.packing import LACKS_MEMORY, MEMORY, gpu_memory
from raymlc.cluster.train import FAILURE, METRICS, NODE, UNWRITABLE, TrialTrainer
from raymlc.cluster.watchdog import Watchdog
from raymlc.cluster.worker import ERROR, Job, TrialFailed, TrialRunner, write_down
from raymlc.training.run import Unwritable
from raymlc.trial import TrialConfig
from raymlc.watch.recorder import trial_folder


@dataclass(frozen=True)
class Placement:
    """Where one trial runs.

    workers: processes a trial. torch_trainer: train in a TorchTrainer's workers, and not in the
    trial's own process; always so for more than one worker. cpus, gpus: of each worker.
    """

    workers: int
    torch_trainer: bool
    cpus: float
    gpus: float


class Trial(tune.Trainable):  # type: ignore[misc]
    """One trial after another, in one process that keeps its imports and its mapped images.

    A Tune config holds the trial's "number" in the study, its "config", and as its "share" how many
    trials its GPU is cut up for. Each result holds an epoch's "metrics"; a trial that cannot go on
    ends with its reason under "failure" instead, and where no trial can go on, the reason is under
    "unwritable". placements: of a trial, by its share; where there are several to choose from, a
    result also tells its "memory", as `gpu_memory` does.
    """

    def setup(self, config: dict[str, Any], job: Job, placements: Mapping[int, Placement]) -> None:
        # Tune gives a process the trials of one share alone.
        placement = self._placement = placements[config["share"]]
        self._measures = len(placements) > 1
        self._runner = TrialRunner(job)
        self._trainer: TrialTrainer | None = None
        # torch would take every core for each trial; a trial has the cores that it asked for.
        torch.set_num_threads(max(1, int(placement.cpus)))
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._epochs.close()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        try:
            metrics: dict[str, Any] = next(self._epochs)
        except torch.AcceleratorError as error:
            write_down(self._folder, error)
            raise  # the device is lost to this process, so the trial goes on in another one
        except Unwritable as error:
            return {UNWRITABLE: str(error)}
        except TrialFailed as error:
            if not (self._folder / ERROR).is_file():
                write_down(self._folder, error)
            return {"done": True, FAILURE: str(error)}
        except Exception as error:
            lacks_memory = isinstance(error, torch.OutOfMemoryError)
            line = write_down(self._folder, error)
            return {"done": True, FAILURE: line, LACKS_MEMORY: lacks_memory}
        done = metrics["epoch"] >= self._config.epochs
        memory = {MEMORY: gpu_memory()} if self._measures else {}
        # As pairs: of numbers in a dict Tune keeps statistics, 0.2 MB a trial until a sweep's end.
        told = list(metrics.items())
        return {METRICS: told, NODE: socket.gethostname(), "done": done, **memory}

    def cleanup(self) -> None:
        self._epochs.close()
        if self._trainer:
            self._trainer.close()

    def _begin(self, given: dict[str, Any]) -> None:
        self._folder = trial_folder(self._runner.job.folder, given["number"])
        self._config = TrialConfig.from_dict(given["config"])
        own = self._in_trainer if self._placement.torch_trainer else self._in_process
        self._epochs = own()

    def _in_trainer(self) -> Generator[dict[str, float], None, None]:
        place = self._placement
        if self._trainer and not self._trainer.is_alive:
            self._trainer.close()
            self._trainer = None
        if self._trainer is None:
            name = f"from-trial-{self._folder.name}"
            self._trainer = TrialTrainer(
                self._runner.job, name, place.workers, place.cpus, place.gpus
            )
        yield from self._trainer.epochs(self._folder, self._config)

    def _in_process(self) -> Generator[dict[str, float], None, None]:
        # A generator, so that what fails at the start fails in `step` and not in Tune.
        device = torch.device("cuda" if self._placement.gpus else "cpu")
        watchdog = Watchdog(self._folder)
        epochs = self._runner.epochs(self._folder, self._config, device, progress=watchdog.batches)
        yield from watchdog.epochs(epochs)
