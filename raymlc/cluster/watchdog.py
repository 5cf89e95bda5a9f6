"""Ends a process that trains nothing any more, as nothing within a process that hangs can."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

from raymlc.cluster.worker import open_error
from raymlc.data.batches import Batch

# A trial that gives no sign of life for so many of its longest epochs hangs, but never sooner than
# after so many seconds. An epoch that has not ended counts as long as it has been by now.
LONGEST_EPOCHS, LEAST_SECONDS = 10.0, 600.0
_LAST_WORDS_SECONDS = 30.0  # for them to be written, where the storage may be what hangs


class Watchdog:
    """Watches the epochs of one trial, in the process that trains it.

    A sign of life is a batch that is drawn and the end of an epoch. Without one the process ends,
    and leaves where it was in the trial's folder; Ray then takes it for a lost one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._epoch = 0
        self._longest = 0.0
        self._began = self._heard = 0.0
        self._training = threading.Event()
        self._closed = threading.Event()

    def epochs(self, epochs: Iterator[dict[str, float]]) -> Generator[dict[str, float], None, None]:
        """The epochs, watched while they are trained, and not while their reader keeps them."""
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            while True:
                self._began = self._heard = time.monotonic()
                self._training.set()
                metrics = next(epochs, None)
                self._training.clear()
                if metrics is None:
                    return
                self._epoch = int(metrics["epoch"])
                self._longest = max(self._longest, time.monotonic() - self._began)
                yield metrics
        finally:
            self._training.clear()
            self._closed.set()

    def batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of an epoch, as `run_trial` shows them to its `progress`."""
        for batch in batches:
            self._heard = time.monotonic()
            yield batch

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, LEAST_SECONDS / 10)):
            now = time.monotonic()
            limit = max(
                LEAST_SECONDS, LONGEST_EPOCHS * max(self._longest, self._heard - self._began)
            )
            if self._training.is_set() and now - self._heard > limit:
                self._end(now - self._heard)

    def _end(self, silent: float) -> None:
        faulthandler.dump_traceback_later(_LAST_WORDS_SECONDS, exit=True)
        line = f"no sign of life for {silent:.0f} s in epoch {self._epoch + 1}"
        with open_error(self._folder, line) as file:
            faulthandler.dump_traceback(file, all_threads=True)
        os._exit(1)
