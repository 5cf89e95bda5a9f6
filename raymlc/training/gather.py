"""Checkpoints and images by the folder: all that lie below some path, in natural order."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from raymlc.errors import UserError, did_you_mean
from raymlc.metric import higher_is_better
from raymlc.model.start import WEIGHTS
from raymlc.training.checkpoint import find, read_score
from raymlc.training.files import digest


def checkpoints_in(paths: Iterable[Path]) -> list[Path]:
    """The checkpoints that paths name: each is one, or a folder with some at any depth below it.

    In the order of the paths, those of a folder in natural order (9 before 10).
    Raises UserError for a path without any.
    """
    found: dict[Path, None] = {}
    for path in paths:
        below = [path] if _is_checkpoint(path) else sorted(_below(path), key=natural)
        if not below:
            raise UserError(
                f"a checkpoint is a folder that holds {WEIGHTS}, but {path} is none and has none"
                " below it"
            )
        found |= dict.fromkeys(below)
    if not found:
        raise UserError("at least one checkpoint must be named, or a folder of them, but none is")
    return list(found)


def once_each(folders: Iterable[Path]) -> tuple[list[Path], dict[Path, Path]]:
    """Checkpoints without those whose weights are the same bytes as those of one before them.

    Returns those that stay, and for each of the others the one that it repeats.
    """
    first: dict[str, Path] = {}
    again: dict[Path, Path] = {}
    for folder in folders:
        try:
            key = digest((find(folder) or folder) / WEIGHTS)
        except OSError:
            key = str(folder)  # which its reader will refuse
        if key in first:
            again[folder] = first[key]
        else:
            first[key] = folder
    return list(first.values()), again


def files_in(paths: Iterable[Path], suffixes: Sequence[str]) -> list[Path]:
    """The files that paths name: each is one, of whatever name, or a folder of such below it.

    suffixes: which files of a folder are meant, in small letters; hidden ones never are.
    Raises UserError for a path that is not there, and for a folder without any.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            below = [
                place / name
                for place, _, names in _walk(path)
                for name in names
                if name.lower().endswith(tuple(suffixes)) and not name.startswith(".")
            ]
        else:
            below = [path] if path.exists() else []
        if not below:
            what = "has no image in it" if path.is_dir() else "is not there"
            raise UserError(
                f"images are files, or folders of {', '.join(suffixes)}, but {path} {what}"
            )
        found |= dict.fromkeys(sorted(below, key=natural))
    if not found:
        raise UserError("images to predict must be named, or folders of them, but none is")
    return list(found)


def best_by(folders: Sequence[Path], metric: str, count: int) -> list[Path]:
    """The `count` checkpoints with the best stored metric, best first, of equals the first.

    The best loss is the lowest, and of every other metric the highest value is. Checkpoints in
    which it is not a number are left out.
    Raises UserError for a metric that no checkpoint has, and for fewer that have it.
    """
    scores = {folder: read_score(folder) for folder in folders}
    known = sorted({name for score in scores.values() for name in score if "/" in name})
    if metric not in known:
        way_out = did_you_mean(metric, known, f"they have {', '.join(known) or 'none'}")
        raise UserError(
            f"--metric must be one that the checkpoints have, but is {metric!r}; {way_out}"
        )
    sign = -1 if higher_is_better(metric) else 1
    ranked = [folder for folder in folders if not math.isnan(scores[folder].get(metric, math.nan))]
    if len(ranked) < count:
        raise UserError(
            f"--best must be at most the checkpoints that have {metric}, but is {count} of"
            f" {len(ranked)}; lower it"
        )
    return sorted(ranked, key=lambda folder: sign * scores[folder][metric])[:count]


def natural(path: Path) -> list[str | int]:
    """A key that sorts names as people do: numbers in them by their size."""
    parts = re.split(r"([0-9]+)", str(path))
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def _is_checkpoint(folder: Path) -> bool:
    found = find(folder)
    return found is not None and (found / WEIGHTS).is_file()


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, _ in _walk(folder):
        # A folder that a kill left between two renames goes by the name that it had.
        names = {re.sub(r"^\.(.+)\.old$", r"\1", child) for child in folders}
        yield from (
            place / child
            for child in names
            if not child.startswith(".") and _is_checkpoint(place / child)
        )


def _walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Every folder from this one down, with the names of its folders and of its files.

    Links are followed, but nothing is seen twice; hidden folders are not entered.
    """
    seen = {folder.resolve()}
    for name, folders, files in os.walk(folder, followlinks=True):
        place = Path(name)
        yield place, list(folders), files
        for child in list(folders):
            real = (place / child).resolve()
            if child.startswith(".") or real in seen:
                folders.remove(child)
            seen.add(real)
