"""The best of a sweep or a training in TensorBoard: its confusion, its mistakes and its values."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich.console import Console

from raymlc.data.store import BrokenImages, open_split
from raymlc.data.table import Table
from raymlc.errors import UserError, one_line
from raymlc.training.checkpoint import load_checkpoint
from raymlc.training.inference import BatchSize, choose_device
from raymlc.training.mistakes import Mistakes, mistakes_on
from raymlc.training.run import BEST
from raymlc.training.scoring import sampled
from raymlc.trial import TrialConfig
from raymlc.watch.confusion import read_confusion
from raymlc.watch.drawing import draw_confusion, draw_mistakes
from raymlc.watch.progress import track
from raymlc.watch.tensorboard import EventFile

MOST_MISTAKES = 24  # of a head


def show_winner(
    folder: Path, table: Table, cache: Path, broken: BrokenImages, console: Console
) -> None:
    """Write the best checkpoint of a trial's folder into its events, after the training.

    For each head `confusion/HEAD` and `mistakes/HEAD`, its MOST_MISTAKES worst on validation, and
    `trial/config`. It takes a pass over at most CALIBRATION_ROWS images that are decoded already,
    on a GPU if there is one; of a checkpoint that has been shown it does nothing. What hinders it
    is said in a line and raised nowhere, since the training is as good without.
    """
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    try:
        checkpoint = load_checkpoint(folder / BEST)
        epoch = int(checkpoint.metrics["epoch"])
        name = f".epoch-{epoch}"
        if any(folder.glob(f"*tfevents*{name}")):
            return
        split = table.splits["val"]
        config = checkpoint.config
        images = sampled(
            open_split(split, config.image_size, cache, broken, partial(track, console))
        )
        split = split.take(images.places_N.tolist())
        sizes = BatchSize(config.batch_size, say)
        device = choose_device("auto")
        found = mistakes_on(split, images, checkpoint, device, MOST_MISTAKES, sizes)
        pictures = {
            f"confusion/{head}": draw_confusion(head, one)
            for head, one in read_confusion(folder / BEST).items()
        }
        pictures |= {f"mistakes/{one.head.name}": draw_mistakes(one.worst) for one in found}
        texts = {"trial/config": _config_text(config)}
        texts |= {f"mistakes/{one.head.name}": _mistakes_text(one) for one in found}
        EventFile(folder).pictures(name, epoch, pictures, texts)
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else one_line(error)
        say(f"the best trial is not shown in TensorBoard: {reason}")


def _config_text(config: TrialConfig) -> str:
    """The fields as a table, those beside their defaults in bold."""
    usual = TrialConfig().to_dict()
    lines = ["| field | value |", "| --- | --- |"]
    for name, value in config.to_dict().items():
        mark = "" if value == usual[name] else "**"
        lines.append(f"| {name} | {mark}{str(value).replace('|', chr(92) + '|')}{mark} |")
    return "\n".join(lines)


def _mistakes_text(found: Mistakes) -> str:
    return (
        f"The model disagrees with {found.total:,} of {found.known:,} labels. Below each picture"
        " stand the label, then the prediction, with the probabilities that it gives them."
    )
