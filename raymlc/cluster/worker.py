"""What a process that trains a trial does, alone or as one of several."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

import torch

from raymlc.data.store import BrokenImages, ImageSplit, open_split
from raymlc.data.table import Table
from raymlc.errors import one_line
from raymlc.training.evaluate import Workers
from raymlc.training.loop import Diverged, Progress
from raymlc.training.run import Keep, Unwritable, patiently, run_trial
from raymlc.trial import TrialConfig

FAILURES = (ValueError, Diverged, torch.OutOfMemoryError)  # end a trial, but not its process
TRIES = 3  # of a trial whose process is lost: then it fails
ERROR = "error.txt"  # in a trial's folder: what happened to it in a line, then all that is known


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
        """The epochs of a trial in its folder, as `run_trial` yields them.

        Raises Unwritable if the job's folder is not there.
        """
        # Where the storage is gone for a while, a trial would begin anew without its history.
        patiently(self.job.folder, partial(folder.mkdir, parents=True, exist_ok=True))
        if workers.rank == 0:
            (folder / ERROR).unlink(missing_ok=True)
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
    said = isinstance(error, Diverged | TrialFailed | Unwritable)
    return str(error) if said else one_line(error)


@contextmanager
def open_error(folder: Path, line: str) -> Iterator[TextIO]:
    """The file that says in a trial's folder what happened to it: a line, then what is written."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ERROR).open("w", encoding="utf-8") as file:
        file.write(f"{line}\n\n")
        file.flush()
        yield file


def write_down(folder: Path, error: BaseException) -> str:
    """Say in a trial's folder what happened to it, with its traceback. Returns the line."""
    line = failure_line(error)
    # Where nothing can be written the line is still told.
    with suppress(OSError), open_error(folder, line) as file:
        file.write("".join(traceback.format_exception(error)))
    return line


def loss_line(folder: Path, told: str) -> str:
    """Why a trial fails whose process was lost in each of its TRIES, in a line.

    The last may have said in the trial's folder what happened; else it is said there what Ray told.
    """
    line = f"failed {TRIES} times, the last time: "
    with suppress(OSError):
        if (folder / ERROR).is_file():
            with (folder / ERROR).open(encoding="utf-8") as file:
                return line + file.readline().strip()
    line += f"its process was killed, out of memory, crashed or never there (see {ERROR})"
    with suppress(OSError), open_error(folder, line) as file:
        file.write(told)
    return line
