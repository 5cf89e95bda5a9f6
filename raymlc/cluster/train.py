"""A trial over several workers, as a Ray TorchTrainer whose epochs are drawn one by one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from torch.nn.parallel import DistributedDataParallel

from raymlc.cluster.controller import HandOver, ToMailbox
from raymlc.cluster.mailbox import LOST, NOTHING, Mailbox
from raymlc.cluster.watchdog import Watchdog
from raymlc.cluster.worker import (
    FAILURES,
    TRIES,
    Job,
    TrialFailed,
    TrialRunner,
    failure_line,
    loss_line,
    write_down,
)
from raymlc.training.evaluate import Workers
from raymlc.training.run import Unwritable
from raymlc.trial import TrialConfig

METRICS = "metrics"  # in a trial's result, an epoch's, as pairs, apart from what Tune adds
NODE = "node"  # beside them, the host of the trial's own process
FAILURE = "failure"  # in their place, why the trial cannot go on
UNWRITABLE = "unwritable"  # in their place, why no trial of the sweep can
_ABORT_SECONDS = 60.0


class TorchTrainerEpochs(Iterator[dict[str, float]]):
    """The epochs of a trial that a TorchTrainer trains over `workers` processes.

    The workers begin an epoch when it is asked for and not before, so a trial that is stopped has
    trained nothing more than it told. A lost worker restarts all of them from the last epoch, up to
    TRIES, and so does one that runs out of memory: they go on with half as many images at a time.
    Call `close` at the end: it gives back processes, resources and placement group, which a
    TorchTrainer inside of Tune otherwise keeps for ever when it is stopped (Ray issue 54305).
    """

    def __init__(
        self, job: Job, folder: Path, config: TrialConfig, workers: int, cpus: float, gpus: float
    ) -> None:
        self._folder = folder
        self._mailbox = ray.remote(Mailbox).options(num_cpus=0, max_concurrency=16).remote(TRIES)
        self._epoch = 0
        self._epochs = config.epochs
        resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        trainer = _Trainer(
            _train_loop,
            train_loop_config={
                "job": job,
                "folder": folder,
                "config": config.to_dict(),
                "mailbox": self._mailbox,
                "threads": max(1, int(cpus)),
            },
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=gpus > 0, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name=f"trial-{folder.name}",
                storage_path=str(job.folder / "ray-train"),
                failure_config=FailureConfig(
                    # The mailbox counts those that are losses; the rest halve the images.
                    max_failures=TRIES + config.batch_size.bit_length()
                ),
                callbacks=[ToMailbox(self._mailbox), HandOver(self._mailbox)],
            ),
        )
        self._thread = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
        self._thread.start()

    def __next__(self) -> dict[str, float]:
        if self._epoch >= self._epochs:
            raise StopIteration
        item: dict[str, Any] = ray.get(self._mailbox.get.remote(self._epoch + 1))
        if FAILURE in item:
            raise TrialFailed(item[FAILURE])
        if LOST in item:
            raise TrialFailed(loss_line(self._folder, item[LOST]))
        if UNWRITABLE in item:
            raise Unwritable(item[UNWRITABLE])
        self._epoch = int(item["epoch"])
        return item

    def close(self) -> None:
        """End the trainer, wherever it is; returns when its workers are gone."""
        if self._epoch >= self._epochs:
            self._thread.join(_ABORT_SECONDS)  # it has told its last epoch and is ending by itself
        if self._thread.is_alive():
            controller = ray.get(self._mailbox.controller.remote(), timeout=_ABORT_SECONDS)
            # abort() ends the controller's own process, which is how it answers.
            with suppress(ray.exceptions.RayActorError):
                ray.get(controller.abort.remote(), timeout=_ABORT_SECONDS)
            self._thread.join(_ABORT_SECONDS)
        ray.kill(self._mailbox)

    def _fit(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except Exception as error:
            reasons = getattr(error, "worker_failures", None) or {0: error}
            line = failure_line(next(iter(reasons.values())))
            self._mailbox.put.remote({FAILURE: line})


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Without the actor for datasets of Ray's, which has nothing to do here and starts first."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if not isinstance(each, DatasetsCallback)]


def _all_reduce(tensor: torch.Tensor) -> None:
    torch.distributed.all_reduce(tensor)


def _train_loop(given: dict[str, Any]) -> None:
    """Runs in every worker of a TorchTrainer."""
    torch.set_num_threads(given["threads"])
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    workers = Workers(
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        sum_=_all_reduce,
        wrap=lambda model: DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            # Batch statistics are averaged once an epoch instead of copied at every step.
            broadcast_buffers=False,
        ),
    )
    mailbox = given["mailbox"]
    first = ray.get(mailbox.wanted.remote())  # later than 1 after a restart
    if first == NOTHING:
        return
    config = TrialConfig.from_dict(given["config"])
    if micro_batch_size := ray.get(mailbox.micro_batch_size.remote()):
        config = config.replace({"micro_batch_size": micro_batch_size})
    folder, watchdog = given["folder"], Watchdog(given["folder"])
    try:
        runner = TrialRunner(given["job"])
        trained = runner.epochs(folder, config, device, workers, watchdog.batches)
        epochs = watchdog.epochs(trained)
        for epoch in range(1, config.epochs + 1):
            if epoch >= first:
                ray.get(mailbox.wait_until_wanted.remote(epoch))
            metrics = next(epochs)
            if epoch >= first:
                ray.train.report(metrics)
    except torch.OutOfMemoryError:
        # Raised, which restarts all workers from the last epoch, with half as many images at once.
        size = config.micro_batch_size or config.batch_size // workers.size
        ray.get(mailbox.lack_memory.remote(max(size // 2, 2)))
        raise
    except Unwritable as error:
        # Worker 0 alone writes, and the others report the epoch.
        ray.train.report({UNWRITABLE: str(error)})
    except FAILURES as error:
        # All workers fail alike, so all of them report; a raised error would be tried again.
        ray.train.report({FAILURE: write_down(folder, error)})
    except Exception as error:
        write_down(folder, error)
        raise
