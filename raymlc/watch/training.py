"""What a single training says on the terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from raymlc.data.batches import Batch
from raymlc.metric import objectives, score_of
from raymlc.watch.progress import Pace, brief
from raymlc.watch.standing import duration


class _Speed(ProgressColumn):
    """Images a second, of the last half minute."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} images/s", style="progress.data.speed")


class TrainingLines:
    """A line an epoch, and below them a bar over the images of all epochs.

    Where no bar can be drawn, lines say how far a long epoch is, ever less often.

    images: of one epoch, of all workers. epochs: of the whole training. done: of them, those that
    an earlier process has trained; they are not said again.
    """

    def __init__(
        self,
        console: Console,
        metric: str,
        heads: Sequence[str],
        images: int,
        epochs: int,
        done: int,
    ) -> None:
        self._console = console
        self._metric, self._heads = metric, heads
        self._images, self._epochs, self._done = images, epochs, done
        self._finished = done
        self._micro_batch_size: float | None = None
        self._began = time.monotonic()
        self._pace = Pace()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("images"),
            _Speed(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_interactive,
        )
        self._task = self._bar.add_task(
            self._title(done + 1), total=images * epochs, completed=images * done
        )
        if done:
            self._say(f"goes on after epoch {done} of {epochs}")
        self._bar.start()

    def batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of an epoch as they go by, each moving the bar."""
        began, seen = time.monotonic(), 0
        for batch in batches:
            yield batch
            self._bar.advance(self._task, len(batch))
            seen += len(batch)
            if self._bar.disable and self._pace.due():
                self._say(
                    f"{self._title(self._finished + 1)}: {seen:,} of {self._images:,} images,"
                    f" {seen / (time.monotonic() - began):,.0f} images/s"
                )

    def epoch(self, metrics: Mapping[str, float]) -> None:
        """Say how an epoch went, and how much time the others will take."""
        number = self._finished = int(metrics["epoch"])
        self._bar.update(
            self._task, completed=self._images * number, description=self._title(number + 1)
        )
        if number <= self._done:
            return
        size = metrics.get("micro_batch_size")
        if self._micro_batch_size != size and size is not None:
            self._say(f"each worker takes {size:.0f} images at a time and adds up gradients")
        self._micro_batch_size = size
        kind = "/".join(objectives(self._metric)[0].split("/")[:2])
        per_head = ", ".join(
            f"{head} {brief(metrics.get(f'{kind}/{head}', math.nan))}" for head in self._heads
        )
        seconds = (time.monotonic() - self._began) / (number - self._done)
        self._say(
            f"epoch {number} of {self._epochs}:"
            f" {self._metric} {score_of(metrics, self._metric):.4f} ({per_head}),"
            f" train/loss {brief(metrics['train/loss'])}, lr {brief(metrics['lr'])},"
            f" {metrics['images_per_second']:,.0f} images/s,"
            f" {duration(seconds * (self._epochs - number))} left"
        )

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()

    def _title(self, epoch: int) -> str:
        return f"epoch {min(epoch, self._epochs)} of {self._epochs}"

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)


def table_of_heads(
    metrics: Mapping[str, float], heads: Sequence[str], majority: Mapping[str, float], title: str
) -> Table:
    """Every validation metric of each head, and what training's most common answer gets."""
    kinds = [name for name in metrics if name.startswith("val/") and name.count("/") == 1]
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("head")
    for kind in kinds:
        table.add_column(kind.removeprefix("val/"), justify="right")
    table.add_column("majority", justify="right")
    for head in heads:
        values = (metrics.get(f"{kind}/{head}", math.nan) for kind in kinds)
        table.add_row(head, *map(brief, values), brief(majority[head]))
    table.add_section()
    table.add_row("mean", *(brief(metrics[kind]) for kind in kinds), "")
    return table
