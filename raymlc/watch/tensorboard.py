"""Event files of a sweep: one run a trial, tags named as the metrics are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams


class EventFiles:
    """Writes scalars at each epoch, and HParams when a trial ends.

    folder: of the sweep; trial n is the run `trials/{n:04}`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[int, SummaryWriter] = {}

    def epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        """Write an epoch's metrics, at the step of its number."""
        step = int(metrics["epoch"])
        if number not in self._writers:
            # A resumed trial tells its epochs again: what it wrote before from here on is void.
            self._writers[number] = SummaryWriter(self._run(number), purge_step=step)
        for tag, value in metrics.items():
            if tag != "epoch" and not math.isnan(value):
                self._writers[number].add_scalar(tag, value, step)
        self._writers[number].flush()

    def end(self, number: int, params: Mapping[str, Any], best: Mapping[str, float]) -> None:
        """Write the searched parameters against the metrics of the stored checkpoint."""
        writer = self._writers.pop(number, None) or SummaryWriter(self._run(number))
        scores = {
            f"best/{tag}": value
            for tag, value in best.items()
            if tag.startswith("val/accuracy") and not math.isnan(value)
        }
        # As numbers, which torch would make of them, False and True would look like a range.
        values = {
            name: str(value) if isinstance(value, bool) else value for name, value in params.items()
        }
        # add_hparams would open a run of its own for them; these belong to the trial's.
        file = writer._get_file_writer()  # type: ignore[no-untyped-call]
        for summary in hparams(values, scores):  # type: ignore[no-untyped-call]
            file.add_summary(summary)
        for tag, value in scores.items():
            writer.add_scalar(tag, value, int(best["epoch"]))
        writer.close()

    def close(self) -> None:
        """Close what is still open."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _run(self, number: int) -> str:
        return str(self._folder / "trials" / f"{number:04}")
