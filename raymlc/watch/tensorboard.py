"""Event files: a run a trial, tags named as the metrics are, and charts that overlay the heads.

Shapes: B images, C = 3 channels, H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

# Charts of the custom scalars' page, each of all heads and their mean.
_LAYOUT = {
    "all heads": {
        "accuracy on val": ["Multiline", ["^val/accuracy(/|$)"]],
        "balanced accuracy on val": ["Multiline", ["^val/balanced_accuracy(/|$)"]],
        "loss on val": ["Multiline", ["^val/loss(/|$)"]],
        "loss in training": ["Multiline", ["^train/loss(/|$)"]],
    }
}


class EventFile:
    """One run: scalars at each epoch, and HParams when it ends.

    folder: of the run's event file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def epoch(self, metrics: Mapping[str, float]) -> None:
        """Write an epoch's metrics, at the step of its number."""
        step = int(metrics["epoch"])
        if self._writer is None:
            # A resumed run tells its epochs again: what it wrote before from here on is void.
            self._writer = SummaryWriter(str(self._folder), purge_step=step)
            self._writer.add_custom_scalars(_LAYOUT)
        for tag, value in metrics.items():
            if tag != "epoch" and not math.isnan(value):
                self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def images(self, tag: str, images_BCHW: Tensor) -> None:
        """Write uint8 images, before the first epoch."""
        with SummaryWriter(str(self._folder)) as writer:
            writer.add_images(tag, images_BCHW, 0)

    def pictures(
        self,
        name: str,
        step: int,
        pictures: Mapping[str, NDArray[np.uint8]],
        text: Mapping[str, str],
    ) -> None:
        """Write pictures (H, W, 3) and texts in Markdown, by tag, into a file of their own.

        name: what that ends with.
        """
        with SummaryWriter(str(self._folder), filename_suffix=name) as writer:
            for tag, picture in pictures.items():
                writer.add_image(tag, picture, step, dataformats="HWC")
            for tag, words in text.items():
                writer.add_text(tag, words, step)

    def end(self, params: Mapping[str, Any], best: Mapping[str, float]) -> None:
        """Write the parameters against the metrics of the stored checkpoint, and close."""
        writer = self._writer or SummaryWriter(str(self._folder))
        scores = {
            f"best/{tag}": value
            for tag, value in best.items()
            if tag.startswith("val/accuracy") and not math.isnan(value)
        }
        # As numbers, which torch would make of them, False and True would look like a range.
        values = {
            name: str(value) if isinstance(value, bool) else value for name, value in params.items()
        }
        # add_hparams would open a run of its own for them; these belong to this one.
        file = writer._get_file_writer()  # type: ignore[no-untyped-call]
        for summary in hparams(values, scores):  # type: ignore[no-untyped-call]
            file.add_summary(summary)
        for tag, value in scores.items():
            writer.add_scalar(tag, value, int(best["epoch"]))
        writer.close()
        self._writer = None

    def close(self) -> None:
        """Close the file of a run that has not ended."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
