"""Runs a sweep's trials on a Ray of its own, or on a cluster that is there."""

from __future__ import annotations

import logging
import math
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.error import TuneError

from raymlc.cluster.packing import STEPS, Packing
from raymlc.cluster.probe import Node, check_nodes, living_nodes
from raymlc.cluster.searcher import StudyScheduler, StudySearcher
from raymlc.cluster.trainable import Placement, Trial
from raymlc.cluster.worker import TRIES, Job
from raymlc.errors import UserError, one_line
from raymlc.watch.recorder import Recorder

_MAX_RESTARTS = TRIES - 1  # of a trial whose own process was lost
_PARTS = 10_000  # of a GPU: Ray counts in them
_NOT_A_CORE = {"memory": 1.0}  # one byte: a TorchTrainer's cores are its workers'


@dataclass(frozen=True)
class Resources:
    """What the user asked for; None where raymlc is to choose.

    workers: processes a trial. cpus, gpus: of each. concurrency: trials at a time.
    torch_trainer: use one even for a single worker. share: trials that share what one would get of
    GPUs.
    """

    workers: int = 1
    torch_trainer: bool = False
    cpus: float | None = None
    gpus: float | None = None
    concurrency: int | None = None
    share: int = 1


@dataclass(frozen=True)
class Sharing:
    """How trials share GPUs where the number that do may change.

    placements: of a trial, by that number.
    """

    placements: Mapping[int, Placement]
    packing: Packing


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
    except (ConnectionError, ray.exceptions.RayError, RuntimeError) as error:
        raise UserError(_unjoined(address, one_line(error))) from error
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
    A worker gets one GPU where there are any, and with it its share of the cores of the node that
    has the fewest a GPU, at most 4; without GPUs one core. A worker fits on one node, and those of
    a trial on several. Raises UserError for a trial that would never fit.
    """
    nodes = living_nodes()
    with_gpus = [node for node in nodes if node.gpus]
    gpus = (1.0 if with_gpus else 0.0) if asked.gpus is None else asked.gpus
    gpus = math.floor(_PARTS * gpus / asked.share) / _PARTS
    shares = [node.cpus * gpus // node.gpus for node in with_gpus if gpus]
    cpus = min(4.0, max(1.0, min(shares, default=1.0))) if asked.cpus is None else asked.cpus
    if not cpus and not gpus:
        raise UserError(
            "--cpus-per-worker must be more than 0 where workers have no GPU, but is 0; leave it"
            " out for 1"
        )
    placement = Placement(asked.workers, asked.torch_trainer or asked.workers > 1, cpus, gpus)
    fits = _room(placement, nodes) // asked.workers
    if fits < 1 and not (growing and asked.concurrency):
        also = ["give --concurrency to wait for nodes that join"] if growing else []
        raise UserError(_misfit(placement, nodes, also))
    concurrency = asked.concurrency or fits
    return placement, concurrency if growing else min(concurrency, fits)


def share_gpus(asked: Resources, say: Callable[[str], None]) -> Sharing:
    """Have trials share the GPUs that Ray has now, one each at first, as many as prove to pay.

    say: takes a line whenever more is known. Raises UserError as `place` does.
    """
    placements: dict[int, Placement] = {}
    slots: dict[int, int] = {}
    for share in STEPS:
        placement, concurrency = place(replace(asked, share=share), growing=False)
        # Beyond what the cores or an asked concurrency allow.
        if concurrency <= max(slots.values(), default=0):
            break
        placements[share], slots[share] = placement, concurrency
    return Sharing(placements, Packing(slots, say))


def shortage(asked: Resources, placement: Placement, growing: bool) -> str:
    """What becomes of an asked concurrency that does not fit now, in a line; "" if it does.

    placement, growing: what `place` returned and was given.
    """
    nodes = living_nodes()
    fits = _room(placement, nodes) // placement.workers
    if asked.concurrency is None or asked.concurrency <= fits:
        return ""
    if not fits:
        reason = _misfit(placement, nodes, [])
        return f"no trial fits now, so all wait for nodes that join: {reason}"
    line = f"--concurrency is {asked.concurrency}, but {fits} trials fit into {_total(nodes)}"
    return line + (
        " now: others wait for nodes that join" if growing else f": {fits} run at a time"
    )


def check_cluster(
    address: str, verbose: bool, asked: Resources, folder: Path, files: Sequence[Path]
) -> None:
    """Join a cluster for a moment, to see that its nodes can do what they will be asked to.

    folder: where runs are kept. files: some that a trial reads, on any node that it may run on.
    Nodes that join later are not asked. Call `prepare_environment` before.
    Raises UserError as `ray_session`, `place` and `check_nodes` do.
    """
    with ray_session(address, verbose):
        placement, _ = place(asked, growing=True)
        nodes = living_nodes()
        reads = {node: files if node.room(placement.cpus, placement.gpus) else () for node in nodes}
        check_nodes(reads, folder)


def run_sweep(
    recorder: Recorder,
    job: Job,
    placement: Placement,
    concurrency: int,
    sharing: Sharing | None = None,
) -> None:
    """Run the recorder's trials until it has no more. Needs a `ray_session`.

    sharing: in place of placement and concurrency, where these may change.
    Raises UserError if Tune itself gives up.
    """
    sharing = sharing or Sharing({1: placement}, Packing({1: concurrency}))
    placements = sharing.placements
    searcher = StudySearcher(recorder, sharing.packing)
    # Tune would start one process after another. The searcher asks for no more than run at a time,
    # and no trial is chosen long before there is room for it.
    fits = min(_room(place, living_nodes()) // place.workers for place in placements.values())
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(fits, 1))
    trainable = tune.with_parameters(Trial, job=job, placements=placements)
    tuner = Tuner(
        tune.with_resources(trainable, lambda given: _held(placements[given["share"]])),
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
        if searcher.broken:
            raise searcher.broken from error
        # Its text is a traceback, whose last line says what happened.
        reason = str(error.__cause__ or error).strip().splitlines()[-1]
        raise UserError(f"the sweep ended early: {reason}; --resume goes on with it") from error


def _held(placement: Placement) -> tune.PlacementGroupFactory:
    """What a trial's own process holds."""
    own = {"CPU": placement.cpus, "GPU": placement.gpus}
    return tune.PlacementGroupFactory([_NOT_A_CORE if placement.torch_trainer else own])


def _room(placement: Placement, nodes: Sequence[Node]) -> int:
    """For how many workers there is room."""
    return sum(node.room(placement.cpus, placement.gpus) for node in nodes)


def _misfit(placement: Placement, nodes: Sequence[Node], also: Sequence[str]) -> str:
    """Why no trial fits, and what would. also: other ways out."""
    workers, cpus, gpus = placement.workers, placement.cpus, placement.gpus
    room = _room(placement, nodes)
    if room:
        law = (
            f"a trial of {workers} workers with {_amount(cpus, gpus)} each must fit into what Ray"
            f" has, {_total(nodes)}, but {room} of them do"
        )
        fitting = [f"--workers {room}"]
    else:
        largest = max(nodes, key=lambda node: (node.gpus if gpus else 0.0, node.cpus))
        what = "a trial" if workers == 1 else f"each of a trial's {workers} workers"
        law = (
            f"{what} must fit on one node, but asks for {_amount(cpus, gpus)}, and the largest"
            f" node, {largest.name}, has {_amount(largest.cpus, largest.gpus)}"
        )
        # A node without cores, as a cluster's head may be, fits no trial that has no GPU.
        fitting = [f"--cpus-per-worker {largest.cpus:g}"] if 0 < largest.cpus < cpus else []
        fitting += [f"--gpus-per-worker {largest.gpus:g}"] if largest.gpus < gpus else []
    ways = [f"ask for {' '.join(fitting)}"] if fitting else []
    return "; ".join(filter(None, [law, " or ".join([*ways, *also])]))


def _total(nodes: Sequence[Node]) -> str:
    return _amount(sum(node.cpus for node in nodes), sum(node.gpus for node in nodes))


def _amount(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPUs and {gpus:g} GPUs"


def _unjoined(address: str | None, reason: str) -> str:
    if address is None:
        return f"Ray could not be started on this machine: {reason}"
    return (
        f"--address must be that of a running Ray cluster, but {address!r} cannot be joined:"
        f" {reason}; see that it runs, and that RAY_AUTH_MODE and the token are here as there"
    )


def _short_name(trial: Any) -> str:
    return str(trial.trial_id)
