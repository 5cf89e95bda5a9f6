"""What a process that trains a trial does, alone or as one of several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from raymlc.data.store import BrokenImages, ImageSplit, open_split
from raymlc.data.table import Table
from raymlc.errors import one_line
from raymlc.training.evaluate import Workers
from raymlc.training.loop import Diverged, Progress
from raymlc.training.run import Keep, run_trial
from raymlc.trial import TrialConfig

FAILURES = (ValueError, Diverged, torch.OutOfMemoryError)  # end a trial, but not its process


class TrialFailed(RuntimeError):
    """A trial that ended without its last epoch, in one line."""


@dataclass(frozen=True)
class Job:
    """What all trials of a sweep have in common, as a process on any node needs it.

    table: as the driver read it, so that all trials see the same rows. folder: of the sweep, on
    storage that every node sees. cache: where each node keeps its decoded images. metric: which
    chooses a trial's checkpoints; keep: how many of them.
    """

    table: Table
    folder: Path
    cache: Path
    broken_images: BrokenImages
    metric: str
    keep: Keep = Keep()


class TrialRunner:
    """Runs trials of one job in this process; what they share is opened once."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._splits: dict[tuple[str, int], ImageSplit] = {}

    def epochs(
        self,
        folder: Path,
        config: TrialConfig,
        device: torch.device,
        workers: Workers = Workers(),
        progress: Progress | None = None,
    ) -> Iterator[dict[str, float]]:
        """The epochs of a trial in its folder, as `run_trial` yields them."""
        return run_trial(
            config,
            self.job.table.labels,
            self._open("train", config.image_size),
            self._open("val", config.image_size),
            folder,
            self.job.metric,
            device,
            workers,
            self.job.keep,
            progress,
        )

    def _open(self, name: str, image_size: int) -> ImageSplit:
        key = name, image_size
        if key not in self._splits:
            split = self.job.table.splits[name]
            self._splits[key] = open_split(
                split, image_size, self.job.cache, self.job.broken_images
            )
        return self._splits[key]


def failure_line(error: BaseException) -> str:
    """An exception in one line."""
    return str(error) if isinstance(error, Diverged | TrialFailed) else one_line(error)
