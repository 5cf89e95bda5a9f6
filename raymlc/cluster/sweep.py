"""Runs a sweep's trials on a Ray of its own, or on a cluster that is there."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.error import TuneError

from raymlc.cluster.searcher import StudyScheduler, StudySearcher
from raymlc.cluster.trainable import Placement, Trial
from raymlc.cluster.worker import Job
from raymlc.errors import UserError, one_line
from raymlc.watch.recorder import Recorder

_MAX_RESTARTS = 2  # of a trial whose own process was lost: it is tried three times
_NOT_A_CORE = {"memory": 1.0}  # one byte: a TorchTrainer's cores are its workers'


@dataclass(frozen=True)
class Resources:
    """What the user asked for; None where raymlc is to choose.

    workers: processes a trial. cpus, gpus: of each. concurrency: trials at a time.
    torch_trainer: use one even for a single worker.
    """

    workers: int = 1
    torch_trainer: bool = False
    cpus: float | None = None
    gpus: float | None = None
    concurrency: int | None = None


@contextmanager
def ray_session(address: str | None, verbose: bool) -> Iterator[None]:
    """Ray on this machine for as long as the block runs, or a connection to the one at `address`.

    Without an address an instance of its own is started and ended, whatever else runs here.
    Call `prepare_environment` before. Raises UserError if the cluster cannot be joined.
    """
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=verbose,
            logging_level=logging.INFO if verbose else logging.ERROR,
        )
    except (ConnectionError, ray.exceptions.RaySystemError, RuntimeError) as error:
        raise UserError(f"{_whose(address)}: {one_line(error)}") from error
    if not verbose:
        for name in ("ray", "ray.tune", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        ray.shutdown()


def place(asked: Resources, growing: bool) -> tuple[Placement, int]:
    """Where each trial runs, and how many at a time, given what Ray has now.

    growing: Ray may start more nodes, so that an asked concurrency need not fit yet.
    A worker gets one GPU where there are any, and with it its share of the cores, at most 4;
    without GPUs one core. Raises UserError for a trial that would never fit.
    """
    have = ray.cluster_resources()
    all_cpus, all_gpus = have.get("CPU", 0.0), have.get("GPU", 0.0)
    gpus = (1.0 if all_gpus else 0.0) if asked.gpus is None else asked.gpus
    share = min(4.0, max(1.0, all_cpus // max(all_gpus, 1.0))) if gpus else 1.0
    cpus = share if asked.cpus is None else asked.cpus
    by_cpu = all_cpus / (cpus * asked.workers) if cpus else float("inf")
    by_gpu = all_gpus / (gpus * asked.workers) if gpus else float("inf")
    fits = int(min(by_cpu, by_gpu) + 1e-9)
    if fits < 1 and not (growing and asked.concurrency):
        raise UserError(
            f"a trial of {asked.workers} workers with {cpus:g} CPUs and {gpus:g} GPUs each must fit"
            f" into what Ray has, {all_cpus:g} CPUs and {all_gpus:g} GPUs; ask for less with"
            " --workers, --cpus-per-worker or --gpus-per-worker"
        )
    placement = Placement(asked.workers, asked.torch_trainer or asked.workers > 1, cpus, gpus)
    concurrency = asked.concurrency or fits
    return placement, concurrency if growing else min(concurrency, fits)


def run_sweep(recorder: Recorder, job: Job, placement: Placement, concurrency: int) -> None:
    """Run the recorder's trials until it has no more. Needs a `ray_session`.

    Raises UserError if Tune itself gives up.
    """
    searcher = StudySearcher(recorder, concurrency)
    if placement.torch_trainer:
        resources = tune.PlacementGroupFactory([_NOT_A_CORE])
    else:
        resources = tune.PlacementGroupFactory([{"CPU": placement.cpus, "GPU": placement.gpus}])
    trainable = tune.with_parameters(Trial, job=job, placement=placement)
    tuner = Tuner(
        tune.with_resources(trainable, resources),
        tune_config=TuneConfig(
            search_alg=searcher,
            scheduler=StudyScheduler(recorder, searcher),
            num_samples=-1,  # the searcher says when it is enough
            reuse_actors=True,
            trial_dirname_creator=_short_name,
            trial_name_creator=_short_name,
        ),
        run_config=RunConfig(
            name=secrets.token_hex(4),  # each run of a sweep is a new one to Tune
            storage_path=str((job.folder / "ray").resolve()),
            failure_config=FailureConfig(max_failures=_MAX_RESTARTS),
            # Trials keep their own checkpoints, in their own folders.
            checkpoint_config=CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except TuneError as error:
        # Its text is a traceback, whose last line says what happened.
        reason = str(error.__cause__ or error).strip().splitlines()[-1]
        raise UserError(f"the sweep ended early: {reason}; --resume goes on with it") from error


def _whose(address: str | None) -> str:
    if address is None:
        return "Ray could not be started on this machine"
    return f"--address must be that of a running Ray cluster, but {address!r} cannot be joined"


def _short_name(trial: Any) -> str:
    return str(trial.trial_id)
