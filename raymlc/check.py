"""python -m raymlc.check: what is worth knowing of a table before a network is trained on it."""

from __future__ import annotations

import csv
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated
from unicodedata import normalize

import tyro
from rich.console import Console

from raymlc.data.duplicates import Repeat, find_repeats, label_of, path_of, repeat_lines
from raymlc.data.store import DEFAULT_CACHE, Progress, decode
from raymlc.data.table import IMAGE_COLUMN, Table, read_table
from raymlc.door import check_free, run_door, written
from raymlc.errors import one_line
from raymlc.labels import MISSING, Head, Targets
from raymlc.watch.progress import track

_FEW = 5  # training rows of a class: with fewer it is hardly learnt
_NAMED = 8  # classes that a line names
_SIDE = 32  # pixels: an image that can be read is read at any size


@dataclass(frozen=True)
class CheckOptions:
    """Say what is worth mending in a table of images before a network is trained on it.

    Pictures that stand in several splits, or in several rows with different labels; images that
    cannot be read; rows without labels; rare, unseen and nearly equal classes; columns like ids.

    Example:
      python -m raymlc.check DIR --output found.csv
    """

    data: Annotated[Path, tyro.conf.Positional]
    """Folder with train.csv, val.csv (and test.csv), or one CSV file to split."""
    heads: tuple[str, ...] = ()
    """The columns to predict. Default: all but image_path."""
    classes: Path | None = None
    """CSV with the columns of the heads, whose labels are classes even where no training row has
    them."""
    val_fraction: float = 0.2
    """Share of the training rows set aside for validation where there is no val.csv."""
    allow_outside: bool = False
    """Let the table name images outside of its folder."""
    output: Path | None = None
    """CSV file to write, with every row that has something to mend."""
    overwrite: bool = False
    """Replace the file of --output if there is one."""
    cache: Path = DEFAULT_CACHE
    """Where it is kept which pictures are the same."""


@dataclass(frozen=True)
class Finding:
    """A row with something to mend.

    what: of which kind it is. note: more of it. group: the number of its picture, where rows share
    one, else 0.
    """

    split: str
    place: int
    what: str
    note: str
    group: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 when the table is checked, whatever was found, 2 for wrong input."""
    return run_door(CheckOptions, "check", _check, arguments)


def _check(options: CheckOptions) -> int:
    check_free(options.output, "--output", options.overwrite)
    progress = partial(track, Console(stderr=True))
    table = read_table(
        options.data, options.heads, options.val_fraction, options.classes, options.allow_outside
    )
    print("; ".join(f"{name}: {len(split):,} rows" for name, split in table.splits.items()))
    for head in table.labels.heads:
        kind = "multi-hot" if head.multi_hot else "single-label"
        print(f"head {head.name}: {kind}, {len(head.classes):,} classes")

    repeats = find_repeats(table, options.cache, progress)
    unreadable = list(_unreadable(table, progress))
    without = list(_without_labels(table))
    lines = [*repeat_lines(table, repeats), *_row_lines(table, unreadable, without)]
    harmless = sum(len(one.splits) == 1 and not one.differing for one in repeats)
    if harmless:
        lines.append(f"pictures in several rows of one split, with the same labels: {harmless:,}")
    for head in table.labels.heads:
        lines += _class_lines(table, head)
    for name, split in table.splits.items():
        lines += [f"{name}: {line}" for line in table.labels.unseen_lines(split.targets)]
    print(f"\n{_of(len(lines), 'thing')} to look at:" if lines else "\nnothing to mend was found")
    for line in lines:
        print(f"- {line}")
    if options.output:
        found = [*_repeated(table, repeats), *unreadable, *without, *_unseen(table)]
        _write(options.output, table, found)
        print(f"\n{len(found):,} findings, a row each, in {options.output}")
    elif repeats or unreadable or without:
        print("\nwhich rows these are: --output FILE.csv")
    return 0


def _repeated(table: Table, repeats: Iterable[Repeat]) -> Iterator[Finding]:
    """The rows of repeated pictures: those of several splits first, with different labels first."""
    order = sorted(repeats, key=lambda one: (len(one.splits) == 1, not one.differing))
    for number, repeat in enumerate(order, 1):
        where = f"in {' and '.join(repeat.splits)}"
        differing = f", different {' and '.join(repeat.differing)}" if repeat.differing else ""
        for split, place in repeat.rows:
            yield Finding(split, place, "same picture", where + differing, number)


def _unreadable(table: Table, progress: Progress) -> Iterator[Finding]:
    rows = [(name, place) for name, split in table.splits.items() for place in range(len(split))]

    def reason(row: tuple[str, int]) -> str | None:
        try:
            decode(table.splits[row[0]].images[row[1]], _SIDE)
        except Exception as error:  # Pillow's: SyntaxError, struct.error, RuntimeError and others
            return one_line(error)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons = pool.map(reason, rows)
        done = progress(range(len(rows)), f"reading {len(rows):,} images", len(rows))
        for index, why in zip(done, reasons, strict=True):
            if why is not None:
                yield Finding(*rows[index], "unreadable image", why)


def _without_labels(table: Table) -> Iterator[Finding]:
    for name, split in table.splits.items():
        firsts = [columns.start for columns in split.targets.columns.values()]
        empty_N = (split.targets.values_NT[:, firsts] == MISSING).all(1)
        for place in empty_N.nonzero()[0].tolist():
            yield Finding(name, place, "no label", "an empty cell in every head")


def _unseen(table: Table) -> Iterator[Finding]:
    for name, split in table.splits.items():
        for head in table.labels.heads:
            own = len(head.classes)
            values_NC = split.targets.values_NT[:, split.targets.columns[head.name]]
            # As in Labels.encode: the columns, or the numbers, after those of the head's classes.
            new_N = (values_NC[:, own:] == 1).any(1) if head.multi_hot else values_NC[:, 0] >= own
            for place in new_N.nonzero()[0].tolist():
                label = label_of(head, split.targets, place)
                yield Finding(name, place, "label unseen in training", f"{head.name} {label!r}")


def _row_lines(
    table: Table, unreadable: Sequence[Finding], without: Sequence[Finding]
) -> Iterator[str]:
    if unreadable:
        first = unreadable[0]
        split = table.splits[first.split]
        yield (
            f"{_of(len(unreadable), 'image')} cannot be read, the first in row"
            f" {split.rows[first.place]} of {split.csv.name}: {split.images[first.place]}:"
            f" {first.note}; mend it, or leave such rows out with --broken-images skip"
        )
    for name, count in Counter(finding.split for finding in without).items():
        yield f"{name}: {_of(count, 'row')} without any label"


def _class_lines(table: Table, head: Head) -> Iterator[str]:
    """What is odd of a head's classes."""
    rows = _rows_of(head, table.splits["train"].targets)
    labelled = sum(rows.values())
    if not head.multi_hot and len(head.classes) > labelled / 2:
        yield (
            f"head {head.name}: {len(head.classes):,} classes in {labelled:,} labelled training"
            " rows, as in a column of ids or texts; leave it out with --heads"
        )
        return
    few = sorted((rows[name], name) for name in head.classes if rows[name] < _FEW)
    if few:
        yield (
            f"head {head.name}: {len(few):,} of {len(head.classes):,} classes have fewer than"
            f" {_FEW} training rows: {_some([f'{name!r} ({count})' for count, name in few])}"
        )
    unseen = {name for split in table.splits.values() for name in split.targets.unseen[head.name]}
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for name in (*head.classes, *sorted(unseen)):
        alike["".join(normalize("NFKC", name).casefold().split())].append(name)
    near = [
        " and ".join(f"{name!r} ({rows[name]:,})" for name in names)
        for names in alike.values()
        if len(names) > 1
    ]
    if near:
        yield (
            f"head {head.name}: classes that differ in case or spaces alone (training rows):"
            f" {_some(near)}"
        )


def _rows_of(head: Head, targets: Targets) -> Counter[str]:
    """How many rows each of a head's classes has."""
    values_NC = targets.values_NT[:, targets.columns[head.name]]
    if head.multi_hot:
        counts = (values_NC == 1).sum(0).tolist()
        return Counter(dict(zip(head.classes, counts, strict=False)))
    numbers = values_NC[values_NC[:, 0] != MISSING, 0].tolist()
    return Counter({head.classes[number]: count for number, count in Counter(numbers).items()})


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def _of(count: int, noun: str) -> str:
    return f"1 {noun}" if count == 1 else f"{count:,} {noun}s"


def _write(path: Path, table: Table, found: Iterable[Finding]) -> None:
    heads = table.labels.heads
    columns = ["finding", "note", "group", "split", "csv", "row", IMAGE_COLUMN]
    taken = set(table.labels.names)
    with written(path, "--output") as file:
        lines = csv.writer(file, lineterminator="\n")
        named = [f"{name}_" if name in taken else name for name in columns]
        lines.writerow([*named, *table.labels.names])
        for one in found:
            split = table.splits[one.split]
            lines.writerow(
                [
                    one.what,
                    one.note,
                    one.group or "",
                    one.split,
                    split.csv.name,
                    split.rows[one.place],
                    path_of(split, one.place),
                    *(label_of(head, split.targets, one.place) for head in heads),
                ]
            )


if __name__ == "__main__":
    sys.exit(main())
