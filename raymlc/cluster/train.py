"""Trials over several workers, by a Ray TorchTrainer whose epochs are drawn one by one."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from torch.nn.parallel import DistributedDataParallel

from raymlc.cluster.controller import HandOver, Losses
from raymlc.cluster.mailbox import LOST, Mailbox
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
_LOOK_SECONDS = 10.0  # between looks whether a trainer is still there
_AT_THE_END = 2**31  # in place of a trial's number, where there will be no other


class TrialTrainer:
    """A TorchTrainer over `workers` processes that train one trial after another.

    The workers begin an epoch when it is asked for and not before, so a trial that is stopped has
    trained nothing more than it told; then they wait for the next trial, with their imports, their
    CUDA context and their mapped images. A lost worker restarts all of them, from the trial's last
    epoch, up to TRIES in a trial, and so does one that runs out of memory: they go on with half as
    many images at a time.
    Call `close` at the end: it gives back processes, resources and placement group, which a
    TorchTrainer inside of Tune otherwise keeps for ever when it is stopped (Ray issue 54305).

    name: of the trainer among those of the job at the same time. cpus, gpus: of each worker.
    """

    def __init__(self, job: Job, name: str, workers: int, cpus: float, gpus: float) -> None:
        self._mailbox = ray.remote(Mailbox).options(num_cpus=0).remote(TRIES)
        self._waits = False  # whether the workers are known to train nothing
        resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        trainer = _Trainer(
            _train_loop,
            train_loop_config={
                "job": job,
                "mailbox": self._mailbox,
                "threads": max(1, int(cpus)),
            },
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=gpus > 0, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name=name,
                storage_path=str(job.folder / "ray-train"),
                failure_config=FailureConfig(max_failures=-1),  # the mailbox counts them
                callbacks=[Losses(self._mailbox), HandOver(self._mailbox)],
            ),
        )
        self._thread = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it can train another trial."""
        return self._thread.is_alive()

    def epochs(self, folder: Path, config: TrialConfig) -> Generator[dict[str, float], None, None]:
        """The epochs of a trial in its folder; close them before the next trial's.

        Raises TrialFailed, and Unwritable where no trial can go on.
        """
        mailbox = self._mailbox
        ray.get(mailbox.begin.remote({"folder": folder, "config": config.to_dict()}))
        try:
            epoch = 0
            while epoch < config.epochs:
                self._waits = False
                item = self._next(epoch + 1)
                if LOST in item:
                    raise TrialFailed(loss_line(folder, item[LOST]))
                self._waits = True
                if FAILURE in item:
                    raise TrialFailed(item[FAILURE])
                if UNWRITABLE in item:
                    raise Unwritable(item[UNWRITABLE])
                epoch = int(item["epoch"])
                yield item
        finally:
            ray.get(mailbox.end.remote())

    def _next(self, epoch: int) -> dict[str, Any]:
        told = self._mailbox.get.remote(epoch)
        # A trainer that ends says so; not where it ended before there was a trial to say it of.
        had_ended = False
        while not ray.wait([told], timeout=_LOOK_SECONDS)[0]:
            if had_ended:
                return {FAILURE: "its TorchTrainer has ended"}
            had_ended = not self.is_alive
        item: dict[str, Any] = ray.get(told)
        return item

    def close(self) -> None:
        """End the trainer, wherever it is; returns when its workers are gone."""
        ray.get(self._mailbox.close.remote())
        if self._waits:
            self._thread.join(_ABORT_SECONDS)
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
    mailbox, runner = given["mailbox"], TrialRunner(given["job"])
    done = 0
    while trial := _next_trial(mailbox, done, workers, device):
        for item in _told(trial, mailbox, runner, device, workers):
            if workers.rank == 0:  # not to Train, whose controller looks every two seconds
                mailbox.put.remote(item, trial["number"])
        done = trial["number"]


def _next_trial(
    mailbox: Any, done: int, workers: Workers, device: torch.device
) -> dict[str, Any] | None:
    """The trial after those up to number `done`, the same in all workers; None at the end."""
    while True:
        trial: dict[str, Any] | None = ray.get(mailbox.trial.remote(done))
        if workers.size == 1:
            return trial
        number = trial["number"] if trial else _AT_THE_END
        # One that was restarted late may have seen a trial end, of which another holds the start.
        ends_2 = torch.tensor([number, -number], device=device)
        torch.distributed.all_reduce(ends_2, torch.distributed.ReduceOp.MAX)
        newest, oldest = ends_2[0].item(), -ends_2[1].item()
        if newest == _AT_THE_END:
            return None
        if newest == oldest:
            return trial
        done = int(newest) - 1


def _told(
    trial: dict[str, Any], mailbox: Any, runner: TrialRunner, device: torch.device, workers: Workers
) -> Iterator[dict[str, Any]]:
    """The epochs of a trial that are wanted, or why it cannot go on."""
    folder, config = trial["folder"], TrialConfig.from_dict(trial["config"])
    if micro_batch_size := trial["micro_batch_size"]:
        config = config.replace({"micro_batch_size": micro_batch_size})
    number, first, watchdog = trial["number"], trial["epoch"], Watchdog(folder)
    try:
        trained = runner.epochs(folder, config, device, workers, watchdog.batches)
        with closing(watchdog.epochs(trained)) as epochs:
            for epoch in range(1, config.epochs + 1):
                if epoch >= first and not ray.get(mailbox.is_wanted.remote(number, epoch)):
                    return
                metrics = next(epochs)
                if epoch >= first:
                    yield metrics
    except torch.OutOfMemoryError:
        # Raised, which restarts all workers from the last epoch, with half as many images at once.
        size = config.micro_batch_size or config.batch_size // workers.size
        ray.get(mailbox.lack_memory.remote(max(size // 2, 2)))
        raise
    except Unwritable as error:
        # Worker 0 alone writes, and the others take the epoch for done.
        yield {UNWRITABLE: str(error)}
    except FAILURES as error:
        # All workers fail alike, and go on to the next trial; a raised error would be tried again.
        yield {FAILURE: write_down(folder, error)}
    except Exception as error:
        write_down(folder, error)
        raise
