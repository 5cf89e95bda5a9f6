"""How many trials share a GPU: what each takes of it, and when more of them are no faster."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch

STEPS = (1, 2, 4, 8)  # trials that may share a GPU where raymlc finds out how many
RESERVE = 0.1  # of a GPU's memory, which trials that share it leave alone
GAIN = 0.1  # by which each step must raise the images that a GPU trains a second
# In a trial's result: what it takes of its GPU; beside a failure, whether memory did not do.
MEMORY, LACKS_MEMORY = "memory", "lacks_memory"


class GpuMemory(NamedTuple):
    """Memory of one GPU, in bytes, as a process that trains on it sees it.

    peak: the most that its allocator held in the last epoch. beside: what is taken beside that:
    by the CUDA context of the process, and by all that others have there. total: of the GPU.
    """

    peak: int
    beside: int
    total: int


def gpu_memory() -> GpuMemory | None:
    """What this process takes of its GPU; None without CUDA."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    beside = total - free - torch.cuda.memory_reserved()
    return GpuMemory(torch.cuda.max_memory_reserved(), max(0, beside), total)


def trials_per_gpu(
    taken: float,
    total: float,
    rates: Mapping[int, float],
    lost: Collection[int] = (),
    steps: Collection[int] = STEPS,
) -> int:
    """How many trials are to share a GPU, given what is known of that.

    One step more as long as memory allows it and the last step paid, and in the end the number that
    was the fastest. taken: bytes of one trial, of the `total` of a GPU. rates: images a second of a
    GPU, by the number of trials that shared it. lost: numbers at which a trial ran out of memory;
    only smaller ones come into question. steps: numbers to choose from, ascending from 1.
    """
    room, least_lost = (1 - RESERVE) * total, min(lost, default=max(steps) + 1)
    fitting = [n for n in steps if n == 1 or (n * taken <= room and n < least_lost)]
    for number, more in pairwise(fitting):
        if number not in rates:
            return number
        if more not in rates:
            return more
        if rates[more] < (1 + GAIN) * rates[number]:
            break
    known = [number for number in fitting if number in rates]
    return max(known, key=lambda number: rates[number], default=1)


@dataclass(frozen=True)
class SharedEpoch:
    """An epoch of a trial, and where it ran.

    share: the number of trials for which its GPU was cut up. process: the one that trained it.
    began, ended: when, on the driver's clock. images: trained on, and seconds that their training
    took. memory: after the epoch, where it could be measured.
    """

    share: int
    process: str
    began: float
    ended: float
    images: float
    seconds: float
    memory: GpuMemory | None


class Packing:
    """The number of trials that share each GPU of a sweep, as it changes.

    The first trial on a GPU has it for itself, and what it takes counts for each that joins it, or
    more, when a later one takes more. A number is judged by as many epochs as there are trials at
    the same time, each trained while all of them were and not the first one of its process.

    slots: for each number, how many trials then run on all GPUs together; ascending. Of a single
    number there is nothing to find out. say: takes a line whenever something more is known.
    """

    def __init__(
        self, slots: Mapping[int, int], say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.slots = slots
        self._say = say
        self.number = next(iter(slots))
        self.changes = len(slots) > 1
        self._beside = self._peak = self._total = 0
        self._rates: dict[int, float] = {}
        self._lost: set[int] = set()
        self.begin()

    @property
    def concurrency(self) -> int:
        """How many trials run at a time."""
        return self.slots[self.number]

    def begin(self) -> None:
        """Trials begin anew, in other processes."""
        self._warm: set[str] = set()
        self._full_since: float | None = None
        self._epochs, self._images, self._seconds = 0, 0.0, 0.0

    def epoch(self, epoch: SharedEpoch, running: int) -> None:
        """Learn from an epoch that has ended. running: trials at that moment, its own included."""
        if self.changes:
            news = [self._learn_memory(epoch), self._learn_rate(epoch, running)]
            if any(news) and self._total:
                self._decide()

    def lose(self, share: int) -> bool:
        """A trial ran out of memory; whether fewer will share a GPU than where it ran."""
        if self.changes and share > 1 and share not in self._lost:
            self._lost.add(share)
            self._decide()
        return self.number < share

    def _learn_memory(self, epoch: SharedEpoch) -> bool:
        memory = epoch.memory
        if memory is None or (epoch.share > 1 and not self._total):
            return False
        if not self._total:
            # Of the only one there: later on it would be what the neighbours take, too.
            self._beside, self._total = memory.beside, memory.total
        more = memory.peak > self._peak
        self._peak = max(self._peak, memory.peak)
        return more

    def _learn_rate(self, epoch: SharedEpoch, running: int) -> bool:
        if epoch.share != self.number or self.number in self._rates:
            return False
        cold = epoch.process not in self._warm
        self._warm.add(epoch.process)
        if min(running, len(self._warm)) < self.concurrency:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = epoch.ended
        elif not cold and epoch.began >= self._full_since:
            self._epochs += 1
            self._images += epoch.images
            self._seconds += epoch.seconds
        if self._epochs < self.concurrency:
            return False
        gpus = self.slots[1]
        self._rates[self.number] = self.concurrency / gpus * self._images / self._seconds
        return True

    def _decide(self) -> None:
        taken = self._peak + self._beside
        number = trials_per_gpu(taken, self._total, self._rates, self._lost, self.slots)
        if number != self.number:
            self.number = number
            self.begin()
        rates = ", ".join(f"{rate:,.0f} by {count}" for count, rate in self._rates.items())
        facts = [f"one takes {taken / 2**30:.1f} of {self._total / 2**30:.1f} GiB"]
        facts += [f"images/s are {rates}"] if rates else []
        facts += [f"memory did not do for {min(self._lost)}"] if self._lost else []
        trials = "1 trial" if number == 1 else f"{number} trials"
        self._say(f"{trials} a GPU from here on: {', '.join(facts)}")


def mps_line() -> str:
    """Whether trials that share a GPU compute at the same time, by CUDA's MPS, and what would do.

    Nothing is started; "" on a machine that has no MPS.
    """
    control = "nvidia-cuda-mps-control"
    if shutil.which(control) is None:
        return ""
    pipe = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")) / "control"
    if not pipe.exists():
        return (
            "trials that share a GPU take turns on it; to let them compute at the same time, start"
            f" CUDA's MPS before the sweep: {control} -d"
        )
    if not os.access(pipe, os.W_OK):
        return f"CUDA's MPS runs, but not for this user, who cannot write {pipe}"
    return "trials that share a GPU compute at the same time, by CUDA's MPS, which runs here"
