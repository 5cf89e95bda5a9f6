"""What makes a checkpoint a product: its calibration and its model card, beside its weights."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.console import Console

from raymlc.data.store import BrokenImages, open_split
from raymlc.data.table import Table, read_split
from raymlc.errors import UserError, one_line
from raymlc.training.calibration import CALIBRATION, Calibration, save_calibration
from raymlc.training.checkpoint import Checkpoint, find, load_checkpoint
from raymlc.training.files import replace_text
from raymlc.training.inference import choose_device
from raymlc.training.scoring import Scorer, calibrated
from raymlc.watch.card import CARD, Measured, model_card
from raymlc.watch.progress import track


def finish(folder: Path, table: Table, cache: Path, broken: BrokenImages, console: Console) -> None:
    """Calibrate a winner on its validation rows, in this process, and write its card.

    A pass over at most CALIBRATION_ROWS images that are decoded already, on a GPU if there is one.
    It says in a line what it did, or why it could not: nothing is raised, since the checkpoint is
    as good as before. One that has both already is left as it is.
    """
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    try:
        checkpoint = load_checkpoint(folder)
        if checkpoint.calibration is None or not (folder / CARD).is_file():
            say(_finished(folder, checkpoint, table, cache, broken, console, say))
        say(f"model card: {folder / CARD}")
    except Exception as error:
        command = shlex.join(["python", "-m", "raymlc.validate", str(folder), "--data", "DIR"])
        reason = str(error) if isinstance(error, UserError) else one_line(error)
        say(f"not calibrated: {reason}; to do it later: {command} --calibrate")


def _finished(
    folder: Path,
    checkpoint: Checkpoint,
    table: Table,
    cache: Path,
    broken: BrokenImages,
    console: Console,
    say: Callable[[str], None],
) -> str:
    began = time.monotonic()
    train, val = (table.splits[name] for name in ("train", "val"))
    size = checkpoint.config.image_size
    images = open_split(val, size, cache, broken, partial(track, console))
    device = choose_device("auto")
    calibration = calibrated(checkpoint, images, "val", device, say)
    measured = Measured(
        "val",
        val.csv.name,
        images.targets,
        checkpoint.metrics,
        train.csv.name,
        train.targets,
    )
    write_product(folder, checkpoint, calibration, measured)
    seconds = time.monotonic() - began
    return f"{calibration_line(checkpoint, calibration)}; {seconds:.1f} s on {device.type}"


def calibrate_scored(
    folder: Path,
    checkpoint: Checkpoint,
    scorer: Scorer,
    metrics: dict[str, float],
    train_csv: Path | None,
) -> None:
    """Calibrate a checkpoint on the rows of a scorer, and write its card.

    metrics: what it scores there. train_csv: the rows that it was trained on, if they are at hand.
    Raises UserError for a table or a folder that does not allow it.
    """
    images = scorer.images(checkpoint)
    calibration = calibrated(
        checkpoint, images, scorer.prefix, scorer.device, scorer.say, scorer.batch_size
    )
    train = None
    if train_csv is not None:
        train = read_split(train_csv, checkpoint.labels, scorer.allow_outside).targets
    measured = Measured(
        scorer.prefix,
        scorer.csv.name,
        images.targets,
        metrics,
        train_csv.name if train_csv else "",
        train,
    )
    try:
        write_product(folder, checkpoint, calibration, measured)
    except OSError as error:
        raise UserError(
            f"--calibrate must write into the checkpoint's folder, but {folder}: {error}"
        ) from error
    scorer.say(calibration_line(checkpoint, calibration))
    scorer.say(f"model card: {folder / CARD}")


def check_unfinished(folder: Path, overwrite: bool) -> None:
    """Raises UserError for a checkpoint with a calibration or a card, unless they may go."""
    for name in (CALIBRATION, CARD):
        path = (find(folder) or folder) / name
        if path.exists() and not overwrite:
            raise UserError(
                f"--calibrate writes {CALIBRATION} and {CARD}, but {path} is there; take"
                " --overwrite to replace it"
            )


def write_product(
    folder: Path, checkpoint: Checkpoint, calibration: Calibration, measured: Measured
) -> None:
    """Write both files. Raises OSError for what cannot be written."""
    found = find(folder) or folder
    card = model_card(checkpoint, calibration, measured, datetime.now(UTC).date())
    save_calibration(found, calibration, checkpoint.labels, checkpoint.sha256)
    replace_text(found / CARD, card)


def calibration_line(checkpoint: Checkpoint, calibration: Calibration) -> str:
    """What a calibration did, head by head, for the terminal."""
    said = []
    for name in checkpoint.labels.names:
        its = calibration.heads.get(name)
        said.append(
            f"{name} {its.ece[0]:.3f} to {its.ece[1]:.3f}" if its else f"{name} has no label there"
        )
    return (
        f"calibrated on {calibration.rows:,} rows of {calibration.split}: expected calibration"
        f" error {', '.join(said)}"
    )
