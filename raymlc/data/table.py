"""The user's table: a folder with train.csv, val.csv and perhaps test.csv, or one CSV to split."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from raymlc.errors import UserError, did_you_mean
from raymlc.labels import Labels, Targets

IMAGE_COLUMN = "image_path"
SPLIT_SEED = 0  # of the rows that a table without val.csv sets aside


@dataclass(frozen=True)
class Split:
    """Some rows of one table: their images and their labels as numbers.

    csv: the file the rows are from. rows: the line's place in it, 1 for the first below the header.
    """

    csv: Path
    rows: tuple[int, ...]
    images: tuple[Path, ...]
    targets: Targets

    def __len__(self) -> int:
        return len(self.images)

    def take(self, places: Sequence[int]) -> Split:
        """The rows at these places of the split, in this order."""
        return Split(
            self.csv,
            tuple(self.rows[place] for place in places),
            tuple(self.images[place] for place in places),
            self.targets.take(places),
        )


@dataclass(frozen=True)
class Table:
    """Labels learnt from the training rows, and the splits by name ("train", "val", "test")."""

    labels: Labels
    splits: dict[str, Split]


def read_header(data: Path) -> tuple[str, ...]:
    """The column names of the training table at `data` (a folder, or one CSV file).

    Raises UserError where there is no such folder, table or image_path column.
    """
    return tuple(_read(_train_csv(data), rows=0).columns)


def choose_heads(header: Sequence[str], heads: Sequence[str], csv_name: str) -> tuple[str, ...]:
    """The head columns of a table: all but image_path, or those that the user names.

    Raises UserError for a head that is no column, and for a table without any.
    """
    columns = [name for name in header if name != IMAGE_COLUMN]
    for head in heads:
        if head not in columns:
            way_out = did_you_mean(head, columns, "name one of the columns")
            raise UserError(
                f"head {head!r} is not a column of {csv_name}"
                f" (columns: {', '.join(header)}); {way_out}"
            )
    if not columns:
        raise UserError(
            f"{csv_name} must have a column for each head beside {IMAGE_COLUMN}, but has no other;"
            " add one column an attribute"
        )
    return tuple(heads) or tuple(columns)


def read_table(
    data: Path,
    heads: Sequence[str] = (),
    val_fraction: float = 0.2,
    classes: Path | None = None,
) -> Table:
    """Read every split of the table at `data`, and check that each image file is there.

    Cells are text as written: `NA`, `None` and `01` are labels; only an empty cell is missing.
    Image paths are relative to the CSV's folder. A table without val.csv sets aside
    `val_fraction` of its training rows, the same rows each time. classes: a CSV with the columns of
    the heads, whose labels are classes beside those of the training rows.
    Raises UserError for an empty table, a missing column or a missing image, naming its row.
    """
    train_csv = _train_csv(data)
    frames = {"train": _read(train_csv)}
    names = choose_heads(tuple(frames["train"].columns), heads, train_csv.name)
    files = {"train": train_csv, "val": train_csv}
    for split in ("val", "test"):
        csv = train_csv.parent / f"{split}.csv"
        if data.is_dir() and csv.is_file():
            files[split] = csv
            frames[split] = _read(csv)
            choose_heads(tuple(frames[split].columns), names, csv.name)
    if "val" not in frames:
        frames["train"], frames["val"] = _set_aside(frames["train"], val_fraction, train_csv)

    cells = {name: frames["train"][name].tolist() for name in names}
    if classes is not None:
        listed = _read(classes, needs_images=False)
        choose_heads((IMAGE_COLUMN, *listed.columns), names, classes.name)
        cells = {name: cells[name] + listed[name].tolist() for name in names}
    labels = Labels.learn(cells)
    splits = {split: _split(frame, files[split], labels) for split, frame in frames.items()}
    for part in splits.values():
        _check_images(part)
    return Table(labels, splits)


def read_split(csv: Path, labels: Labels) -> Split:
    """The rows of any CSV as a trained model's labels see them. Raises UserError as read_table."""
    frame = _read(csv)
    choose_heads(tuple(frame.columns), labels.names, csv.name)
    split = _split(frame, csv, labels)
    _check_images(split)
    return split


def _train_csv(data: Path) -> Path:
    if not data.exists():
        raise UserError(f"--data must name a folder or a CSV file, but {data} does not exist")
    csv = data / "train.csv" if data.is_dir() else data
    if not csv.is_file():
        raise UserError(
            f"a data folder must hold train.csv, but {data} does not; name the folder of train.csv,"
            " or one CSV file"
        )
    return csv


def _read(csv: Path, rows: int | None = None, needs_images: bool = True) -> pd.DataFrame:
    try:
        with warnings.catch_warnings():
            # Of rows longer than the header pandas drops the end, and warns; without index_col it
            # takes their beginning for the rows' names.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                csv,
                dtype=str,
                keep_default_na=False,
                encoding="utf-8-sig",
                nrows=rows,
                index_col=False,
            )
    except pd.errors.ParserWarning as error:
        raise UserError(
            f"{csv.name} must have a column name for each cell of a row, but its rows are longer"
            " than its header; name every column, or take the commas off the ends of the rows"
        ) from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{csv.name} must be a table in UTF-8 with a header line: {reason}"
        ) from error
    if needs_images and IMAGE_COLUMN not in frame.columns:
        way_out = did_you_mean(IMAGE_COLUMN, frame.columns, "name the images' column so")
        way_out = way_out.replace("did you mean", "rename") if "did you" in way_out else way_out
        raise UserError(
            f"{csv.name} must have a column {IMAGE_COLUMN}, but has"
            f" {', '.join(map(repr, frame.columns))}; {way_out.rstrip('?')}"
        )
    if rows is None and frame.empty:
        raise UserError(f"{csv.name} must have a row for each image, but has none below its header")
    # A row shorter than the header has no text at its end; that is an empty cell.
    return frame.fillna("")


def _set_aside(
    frame: pd.DataFrame, val_fraction: float, csv: Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    count = round(len(frame) * val_fraction)
    if not 0 < count < len(frame):
        raise UserError(
            f"{csv.name} has no val.csv beside it, so {val_fraction} of its {len(frame)} rows would"
            " be set aside for validation, which leaves one side empty; change --val-fraction"
        )
    chosen = np.zeros(len(frame), bool)
    chosen[np.random.default_rng(SPLIT_SEED).permutation(len(frame))[:count]] = True
    return frame[~chosen], frame[chosen]


def _split(frame: pd.DataFrame, csv: Path, labels: Labels) -> Split:
    csv = csv.absolute()  # since a trial's process works in another folder
    return Split(
        csv,
        tuple(int(index) + 1 for index in frame.index),
        tuple(csv.parent / path for path in frame[IMAGE_COLUMN]),
        labels.encode({name: frame[name].tolist() for name in labels.names}),
    )


def _check_images(split: Split) -> None:
    for row, image in zip(split.rows, split.images, strict=True):
        if not image.is_file():
            raise UserError(
                f"row {row} of {split.csv.name} names the image {image}, which is not a file;"
                f" paths are relative to {split.csv.parent}"
            )
