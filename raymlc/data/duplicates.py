"""Pictures that stand more than once in a table: files of the same bytes, whatever their names.

In two splits they make validation look better than it is; with different labels, one of those is
wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from raymlc.data.store import DEFAULT_CACHE, Progress
from raymlc.data.table import Split, Table
from raymlc.labels import MISSING, SEPARATOR, Head, Targets

_FORMAT = 1  # of the kept answer
_AT_A_TIME = 256  # files that a thread is handed at once, since of small ones that costs most
_PART = 2**20  # bytes


@dataclass(frozen=True)
class Repeat:
    """Rows with one picture.

    rows: the split of each, and its place in it, from 0; train comes first. differing: the heads in
    which two of the rows have different labels; a missing one differs from none.
    """

    rows: tuple[tuple[str, int], ...]
    differing: tuple[str, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have the picture, each once."""
        return tuple(dict.fromkeys(split for split, _ in self.rows))


def find_repeats(
    table: Table, cache: Path = DEFAULT_CACHE, progress: Progress | None = None
) -> list[Repeat]:
    """The pictures that more than one row of the table has, in the order of their first rows.

    Only files that have their size in common are read. The answer is kept in the folder `cache`
    until a path, a size or a time of change is another. A file that cannot be read repeats none.
    """
    rows = [(name, place) for name, split in table.splits.items() for place in range(len(split))]
    images = [str(image) for split in table.splits.values() for image in split.images]
    stats = [_size_and_time(image) for image in images]
    path = cache.expanduser() / f"{_key(images, stats)}.repeats.json"
    groups = _kept(path)
    if groups is None:
        groups = _groups(images, [size for size, _ in stats], progress)
        _keep(path, groups)
    repeats = []
    for group in groups:
        same = tuple(rows[index] for index in group)
        differing = tuple(head.name for head in table.labels.heads if _differs(table, head, same))
        repeats.append(Repeat(same, differing))
    return repeats


def repeat_lines(table: Table, repeats: Sequence[Repeat]) -> list[str]:
    """What to know of the repeats before numbers are trusted: a line, or two, or none.

    Pictures that one split repeats with the same labels are no matter.
    """
    lines = []
    across = [repeat for repeat in repeats if len(repeat.splits) > 1]
    if across:
        line = f"{_pictures(len(across))} in more than one split"
        shared = []
        for name, split in table.splits.items():
            rows = sum(
                name == other for one in across if "train" in one.splits for other, _ in one.rows
            )
            if rows and name != "train":
                shared.append(f"{rows:,} of {len(split):,} rows of {name}")
        if shared:
            line += f": train has the pictures of {' and of '.join(shared)}"
        lines.append(line)
    differing = [repeat for repeat in repeats if repeat.differing]
    if differing:
        between = sum(len(repeat.splits) > 1 for repeat in differing)
        line = f"{_pictures(len(differing))} in several rows with different labels"
        lines.append(f"{line}, {between:,} of them across splits")
    return lines


def label_of(head: Head, targets: Targets, place: int) -> str:
    """The label of one row as a table has it, a multi-hot one in the order of classes."""
    columns = targets.columns[head.name]
    names = head.classes + targets.unseen[head.name]
    values: list[int] = targets.values_NT[place, columns].tolist()
    if values[0] == MISSING:
        return ""
    if not head.multi_hot:
        return names[values[0]]
    chosen = (name for name, value in zip(names, values, strict=True) if value)
    return SEPARATOR.join(chosen) or SEPARATOR


def path_of(split: Split, place: int) -> str:
    """The image of one row as a table has it: relative to the table's folder if it is below it."""
    image, folder = split.images[place], split.csv.parent
    return str(image.relative_to(folder) if image.is_relative_to(folder) else image)


def _differs(table: Table, head: Head, rows: Iterable[tuple[str, int]]) -> bool:
    # As sets of names, since each split has its own numbers for classes that training never saw.
    labels = {
        frozenset(label.split(SEPARATOR)) if head.multi_hot else label
        for split, place in rows
        if (label := label_of(head, table.splits[split].targets, place))
    }
    return len(labels) > 1


def _pictures(count: int) -> str:
    return "1 picture stands" if count == 1 else f"{count:,} pictures stand"


def _size_and_time(image: str) -> tuple[int, int]:
    try:
        stat = os.stat(image)
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _key(images: Sequence[str], stats: Sequence[tuple[int, int]]) -> str:
    digest = hashlib.sha256(f"repeats {_FORMAT}".encode())
    for image, (size, time) in zip(images, stats, strict=True):
        digest.update(f"\n{image} {size} {time}".encode(errors="surrogateescape"))
    return digest.hexdigest()[:24]


def _groups(
    images: Sequence[str], sizes: Sequence[int], progress: Progress | None
) -> list[list[int]]:
    """The places of images that are the same, of two and more, in their order."""
    size_of = dict(zip(images, sizes, strict=True))
    files = Counter(size_of.values())
    alike = [image for image, size in size_of.items() if size and files[size] > 1]
    digest_of = dict(zip(alike, _digests(alike, progress), strict=True))
    places: defaultdict[bytes | str, list[int]] = defaultdict(list)
    for place, image in enumerate(images):
        places[digest_of.get(image) or image].append(place)
    return [group for group in places.values() if len(group) > 1]


def _digests(images: Sequence[str], progress: Progress | None) -> list[bytes | None]:
    parts = [images[start : start + _AT_A_TIME] for start in range(0, len(images), _AT_A_TIME)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashed = pool.map(lambda part: [_digest(image) for image in part], parts)
        done: Iterable[int] = range(len(parts))
        if progress is not None and parts:
            done = progress(done, f"comparing the bytes of {len(images):,} images", len(parts))
        return [digest for _, part in zip(done, hashed, strict=True) for digest in part]


def _digest(image: str) -> bytes | None:
    # Of small files, what a file object does around reading takes longer than reading.
    try:
        file = os.open(image, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            digest = hashlib.sha256()
            while part := os.read(file, _PART):
                digest.update(part)
            return digest.digest()
        finally:
            os.close(file)
    except OSError:
        return None


def _kept(path: Path) -> list[list[int]] | None:
    try:
        groups: list[list[int]] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return groups


def _keep(path: Path, groups: Sequence[Sequence[int]]) -> None:
    # Without a cache the answer is as good; whoever needs the cache says what is wrong with it.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        filling = path.with_suffix(f".{os.getpid()}")
        filling.write_text(json.dumps(groups))
        os.replace(filling, path)
