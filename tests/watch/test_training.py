"""What a single training says while it runs."""

import io
from collections.abc import Callable, Iterable
from typing import cast

from rich.console import Console

from raymlc.data.batches import Batch
from raymlc.watch.training import TrainingLines

SIZE = 32


def epoch_of(
    lines: TrainingLines, count: int, seconds: float, clock: Callable[[float], None]
) -> None:
    """Let so many batches go by, each of which takes so long."""
    for _ in lines.batches(cast(Iterable[Batch], [range(SIZE)] * count)):
        clock(seconds)


def test_without_a_terminal_a_long_epoch_is_not_silent(clock: Callable[[float], None]) -> None:
    text = io.StringIO()
    lines = TrainingLines(Console(file=text), "val/accuracy", ["color"], 100 * SIZE, 2, 0)
    epoch_of(lines, 100, 1.0, clock)
    assert text.getvalue().splitlines() == [
        "epoch 1 of 2: 320 of 3,200 images, 32 images/s",
        "epoch 1 of 2: 800 of 3,200 images, 32 images/s",
        "epoch 1 of 2: 1,536 of 3,200 images, 32 images/s",
        "epoch 1 of 2: 2,624 of 3,200 images, 32 images/s",
    ]
    metrics = {"epoch": 1.0, "val/accuracy": 0.5, "train/loss": 1.0, "lr": 0.01}
    lines.epoch({**metrics, "images_per_second": 32.0})
    epoch_of(lines, 100, 1.0, clock)
    lines.close()
    assert text.getvalue().splitlines()[-1].startswith("epoch 2 of 2: ")
    assert len(text.getvalue().splitlines()) == 6


def test_a_short_epoch_has_its_own_line_alone(clock: Callable[[float], None]) -> None:
    text = io.StringIO()
    lines = TrainingLines(Console(file=text), "val/accuracy", ["color"], 10 * SIZE, 2, 0)
    epoch_of(lines, 10, 0.9, clock)
    lines.close()
    assert text.getvalue() == ""
