"""What a cache of decoded images holds, and how it becomes smaller."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from raymlc.data.store import UNFINISHED, about, mapped
from raymlc.errors import UserError

if sys.platform != "win32":
    import fcntl

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


@dataclass(frozen=True)
class StoredImages:
    """A store of decoded images, or what a build that was killed left of one.

    csv: the table that it was made for, "" if that is not known. rows: 0 of what is not whole.
    image_size: pixels. size: bytes on disk. used: when it was last opened, in seconds since 1970.
    """

    path: Path
    csv: str
    rows: int
    image_size: int
    size: int
    used: float


def stored_images(cache: Path) -> list[StoredImages]:
    """All stores of a cache, first the one that was opened longest ago."""
    folder = cache.expanduser()
    paths = [*folder.glob("*.npy"), *folder.glob(f"*{UNFINISHED}")]
    return sorted(_read(paths), key=lambda one: one.used)


def evict(store: StoredImages) -> bool:
    """Remove a store from the disk; False if a process uses it, or is filling it."""
    try:
        with FileLock(store.path.with_suffix(".lock"), timeout=0):
            if _is_mapped(store.path):
                return False
            store.path.unlink()
            about(store.path).unlink(missing_ok=True)
            return True
    except Timeout:
        return False


def beyond_limit(stores: Sequence[StoredImages], limit: float) -> list[StoredImages]:
    """The first of the stores, as many as must go for the rest to take at most `limit` bytes."""
    left = sum(one.size for one in stores)
    chosen = []
    for one in stores:
        if left <= limit:
            break
        chosen.append(one)
        left -= one.size
    return chosen


def parse_size(text: str) -> float:
    """Bytes of a size such as "500MB", "1.5 GiB" or "0". Raises UserError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]*)", text.lower(), re.ASCII)
    unit = found[2] if found else ""
    if not found or (unit not in _UNITS and text != "0"):
        raise UserError(
            f"a size is a number with MB, GB or TB, such as 50GB, or 0, but is {text!r}"
        )
    return float(found[1]) * _UNITS.get(unit, 1)


def _read(paths: Sequence[Path]) -> Iterator[StoredImages]:
    for path in paths:
        with suppress(FileNotFoundError):  # one that another process has just finished or removed
            stat = path.stat()
            rows, image_size = _shape(path)
            yield StoredImages(path, _csv(path), rows, image_size, stat.st_size, stat.st_mtime)


def _shape(path: Path) -> tuple[int, int]:
    if path.suffix == UNFINISHED:
        return 0, 0
    try:
        rows, image_size, *_ = mapped(path).shape
    except (ValueError, EOFError):
        return 0, 0
    return rows, image_size


def _csv(path: Path) -> str:
    try:
        return str(json.loads(about(path).read_text(encoding="utf-8"))["csv"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _is_mapped(path: Path) -> bool:
    if sys.platform == "win32":
        return False  # and the system refuses to remove it
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
