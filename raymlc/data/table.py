"""The user's table: a folder with train.csv, val.csv and perhaps test.csv, or one CSV to split."""

from __future__ import annotations

import csv as csv_format
import errno
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raymlc.errors import UserError, did_you_mean
from raymlc.labels import Labels, Targets

IMAGE_COLUMN = "image_path"
SPLIT_SEED = 0  # of the rows that a table without val.csv sets aside

_NAMED = 20  # columns that a line names


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
    csv = _train_csv(data)
    return _header(csv, _rows(csv), needs_images=True)


def choose_heads(header: Sequence[str], heads: Sequence[str], csv_name: str) -> tuple[str, ...]:
    """The head columns of a table: all but image_path, or those that the user names.

    Raises UserError for a head that is no column, and for a table without any.
    """
    columns = [name for name in header if name != IMAGE_COLUMN]
    for head in heads:
        if head not in columns:
            way_out = did_you_mean(head, columns, "name one of the columns")
            raise UserError(
                f"head {head!r} is not a column of {csv_name} (columns: {_some(header)}); {way_out}"
            )
    if not heads and "" in columns:
        raise UserError(
            f"{csv_name} must name each column, but column {header.index('') + 1} of"
            f" {len(header)} has no name; name it, take it out, or choose columns by --heads"
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
    allow_outside: bool = False,
) -> Table:
    """Read every split of the table at `data`, and check that each image file is there.

    Cells are text as written: `NA`, `None` and `01` are labels; only an empty cell is missing.
    Image paths are relative to the CSV's folder. A table without val.csv sets aside
    `val_fraction` of its training rows, the same rows each time. classes: a CSV with the columns of
    the heads, whose labels are classes beside those of the training rows. allow_outside: whether an
    image may lie outside of the CSV's folder. What that folder links to is inside.
    Raises UserError for an empty table, a missing column, a missing image or one outside, naming
    its row.
    """
    train_csv = _train_csv(data)
    sheets = {"train": _read(train_csv)}
    names = choose_heads(tuple(sheets["train"].cells), heads, train_csv.name)
    files = {"train": train_csv, "val": train_csv}
    for split in ("val", "test"):
        csv = train_csv.parent / f"{split}.csv"
        if data.is_dir() and os.path.lexists(csv):
            files[split] = csv
            sheets[split] = _read(csv)
            choose_heads(tuple(sheets[split].cells), names, csv.name)
    if "val" not in sheets:
        sheets["train"], sheets["val"] = _set_aside(sheets["train"], val_fraction, train_csv)

    cells = {name: sheets["train"].cells[name] for name in names}
    if classes is not None:
        listed = _read(classes, needs_images=False).cells
        choose_heads((IMAGE_COLUMN, *listed), names, classes.name)
        cells = {name: cells[name] + listed[name] for name in names}
    labels = Labels.learn(cells)
    splits = {}
    for split, sheet in sheets.items():
        splits[split] = _split(sheet, files[split], labels, allow_outside)
    for part in splits.values():
        _check_images(part)
    return Table(labels, splits)


def read_split(csv: Path, labels: Labels, allow_outside: bool = False) -> Split:
    """The rows of any CSV as a trained model's labels see them. Raises UserError as read_table."""
    sheet = _read(csv)
    choose_heads(tuple(sheet.cells), labels.names, csv.name)
    split = _split(sheet, csv, labels, allow_outside)
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


@dataclass(frozen=True)
class _Sheet:
    """The texts of a CSV: the cells of each column, by its name, and each row's number, from 1."""

    cells: dict[str, list[str]]
    rows: list[int]

    def take(self, places: Sequence[int]) -> _Sheet:
        """The rows at these places, in this order."""
        cells = {name: [column[at] for at in places] for name, column in self.cells.items()}
        return _Sheet(cells, [self.rows[at] for at in places])


def _read(csv: Path, needs_images: bool = True) -> _Sheet:
    rows = _rows(csv)
    header = _header(csv, rows, needs_images)
    table = []
    for number, row in enumerate(rows, 1):
        if len(row) > len(header):
            raise UserError(
                f"{csv.name} must have a column name for each cell of a row, but row {number} has"
                f" {len(row)} cells and the header {len(header)} names; name every column, take the"
                " commas off the ends of the rows, or put quotes around a cell with a comma"
            )
        # A row shorter than the header has no text at its end; that is an empty cell.
        table.append(row + [""] * (len(header) - len(row)))
    if not table:
        raise UserError(f"{csv.name} must have a row for each image, but has none below its header")
    columns = zip(*table, strict=True)
    cells = {name: list(column) for name, column in zip(header, columns, strict=True)}
    return _Sheet(cells, list(range(1, len(table) + 1)))


def _header(csv: Path, rows: Iterator[list[str]], needs_images: bool) -> tuple[str, ...]:
    """The column names, of which those without a text may be several."""
    header = tuple(next(rows, ()))
    if not header:
        raise UserError(f"{csv.name} must be a table in UTF-8 with a header line, but is empty")
    twice = [name for name, count in Counter(header).items() if count > 1 and name]
    if twice:
        raise UserError(
            f"{csv.name} must have one column of a name, but has {header.count(twice[0])} that are"
            f" called {twice[0]!r}; rename or remove all but one"
        )
    if needs_images and IMAGE_COLUMN not in header:
        way_out = did_you_mean(IMAGE_COLUMN, header, "name the images' column so")
        way_out = way_out.replace("did you mean", "rename") if "did you" in way_out else way_out
        if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
            way_out = "put commas between the columns"
        raise UserError(
            f"{csv.name} must have a column {IMAGE_COLUMN}, but has"
            f" {_some(list(map(repr, header)))}; {way_out.rstrip('?')}"
        )
    return header


def _rows(csv: Path) -> Iterator[list[str]]:
    """The lines of a CSV as texts, those without any left out.

    Raises UserError, naming the line, for what is no CSV in UTF-8, and for what cannot be read.
    """
    law = f"{csv.name} must be a table in UTF-8 with a header line, but"
    begun = 1
    try:
        with csv.open(newline="", encoding="utf-8-sig") as file:
            reader = csv_format.reader(file, strict=True)
            for row in reader:
                if any("\0" in cell for cell in row):
                    raise UserError(
                        f"{law} has a NUL character in line {begun}; save it as UTF-8 text"
                    )
                if row:
                    yield row
                begun = reader.line_num + 1
    except csv_format.Error as error:
        unclosed = "unexpected end" in str(error)
        reason = "a quote opens a cell that none closes" if unclosed else str(error)
        raise UserError(
            f"{law} from line {begun} on it is none: {reason}; a cell with a comma or a quote in it"
            " stands in quotes, and each quote in it is doubled"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{law} line {_line_of_other_bytes(csv)} is not UTF-8 ({error.reason}); save the table"
            " as CSV UTF-8"
        ) from error
    except OSError as error:
        raise UserError(
            f"{csv.name} must be readable, but {csv}: {error.strerror}; mend that"
        ) from error


def _line_of_other_bytes(csv: Path) -> int:
    """The first line that is not UTF-8 in a file that has one."""
    with csv.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def _set_aside(sheet: _Sheet, val_fraction: float, csv: Path) -> tuple[_Sheet, _Sheet]:
    rows = len(sheet.rows)
    # What is no number leaves one side empty, too.
    count = round(rows * val_fraction) if math.isfinite(val_fraction) else 0
    if not 0 < count < rows:
        raise UserError(
            f"{csv.name} has no val.csv beside it, so {val_fraction} of its {rows} rows would"
            " be set aside for validation, which leaves one side empty; change --val-fraction"
        )
    chosen = np.zeros(rows, bool)
    chosen[np.random.default_rng(SPLIT_SEED).permutation(rows)[:count]] = True
    return sheet.take(np.flatnonzero(~chosen).tolist()), sheet.take(np.flatnonzero(chosen).tolist())


def _split(sheet: _Sheet, csv: Path, labels: Labels, allow_outside: bool) -> Split:
    csv = csv.absolute()  # since a trial's process works in another folder
    for row, path in zip(sheet.rows, sheet.cells[IMAGE_COLUMN], strict=True):
        if not path:
            raise UserError(f"row {row} of {csv.name} must name an image, but is empty there")
        if not allow_outside and _leaves(csv.parent, path):
            raise UserError(
                f"images must lie in the folder of their table, but row {row} of {csv.name} names"
                f" {path}, outside of {csv.parent}; move it there, link to its folder from there,"
                " or trust the table with --allow-outside"
            )
    return Split(
        csv,
        tuple(sheet.rows),
        tuple(csv.parent / path for path in sheet.cells[IMAGE_COLUMN]),
        labels.encode({name: sheet.cells[name] for name in labels.names}),
    )


def _leaves(folder: Path, path: str) -> bool:
    """Whether a table's path leads out of its folder.

    Through a link in the folder it does not, since whoever may make one there may move files there;
    but `link/..` is where the link leads to.
    """
    if ".." not in path and not os.path.isabs(path):
        return False
    if ".." not in Path(path).parts and (folder / path).is_relative_to(folder):
        return False
    return not Path(os.path.realpath(folder / path)).is_relative_to(os.path.realpath(folder))


def _check_images(split: Split) -> None:
    for row, image in zip(split.rows, split.images, strict=True):
        if not os.path.isfile(image):
            raise UserError(
                f"row {row} of {split.csv.name} names the image {image}, which is not a"
                f" file{_why(image)}; paths are relative to {split.csv.parent}"
            )


def _why(image: Path) -> str:
    try:
        image.stat()
    except OSError as error:
        return "" if error.errno == errno.ENOENT else f" ({error.strerror})"
    return ""
