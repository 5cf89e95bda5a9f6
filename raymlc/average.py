"""python -m raymlc.average: one checkpoint with the mean weights of several."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from raymlc.door import check_at_least_1, run_door
from raymlc.errors import UserError


@dataclass(frozen=True)
class AverageOptions:
    """Average the weights of checkpoints of one network (model soups, arXiv:2203.05482).

    Epochs of one training, or trials that began from the same pretrained weights, often predict
    better so than each alone; trainings from random weights do not.

    Example:
      python -m raymlc.average runs/winner/epochs --output averaged
    """

    checkpoints: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of checkpoints, or folders with checkpoints at any depth."""
    output: Path
    """Folder of the new checkpoint."""
    best: int | None = None
    """Average only so many of them, those with the best --metric. Default: all."""
    metric: str = "val/accuracy"
    """What --best goes by, as the checkpoints have it: the lowest loss, the highest of others."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 when the checkpoint is written, 2 for wrong input, 130 after Ctrl-C."""
    return run_door(AverageOptions, "average", _average, arguments)


def _average(options: AverageOptions) -> int:
    check_at_least_1(best=options.best)
    if options.output.exists():
        raise UserError(f"--output must name a new folder, but {options.output} is there")

    # torch takes seconds to import, so only once the words are checked.
    from raymlc.training.average import average_checkpoints
    from raymlc.training.gather import best_by, checkpoints_in, once_each

    folders, again = once_each(checkpoints_in(options.checkpoints))
    for folder, first in again.items():
        print(f"{folder} has the weights of {first}, which count once")
    if options.best is not None:
        folders = best_by(folders, options.metric, options.best)
    if len(folders) < 2:
        raise UserError(f"an average needs at least 2 checkpoints, but gets {len(folders)}")
    average_checkpoints(folders, options.output)
    for folder in folders:
        print(f"  {folder}")
    print(
        f"the mean weights of these {len(folders)} are in {options.output}; nobody has scored them:"
    )
    print(f"  python -m raymlc.validate {options.output} --data DIR")
    return 0


if __name__ == "__main__":
    sys.exit(main())
