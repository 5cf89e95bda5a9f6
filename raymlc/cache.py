"""python -m raymlc.cache: which decoded images a machine keeps, and how they become fewer."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from raymlc.data.eviction import StoredImages, beyond_limit, evict, parse_size, stored_images
from raymlc.data.store import DEFAULT_CACHE
from raymlc.door import plain_console, run_door
from raymlc.errors import UserError, plain
from raymlc.search.budget import parse_duration


@dataclass(frozen=True)
class CacheOptions:
    """Show which decoded images this machine keeps, and remove what is not needed any more.

    Every table that was trained on has its images there, once for each image_size, for the next
    run. Nothing is removed unless an option says so, and never what a process uses. A run that
    needs again what was removed decodes it again.

    Examples:
      python -m raymlc.cache
      python -m raymlc.cache --unused 30d
      python -m raymlc.cache --limit 50GB
    """

    unused: str | None = None
    """Remove what no run has opened for so long, such as 30d or 12h."""
    limit: str | None = None
    """Remove what was opened longest ago, until the rest takes no more than this, such as 500MB,
    50GB or 1TB; 0 removes all."""
    cache: Path = DEFAULT_CACHE
    """The folder of the decoded images, as runs have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 when done, also where images in use stay, 2 for wrong input."""
    return run_door(CacheOptions, "cache", _cache, arguments)


def _cache(options: CacheOptions) -> int:
    seconds = parse_duration(options.unused) if options.unused else None
    limit = parse_size(options.limit) if options.limit else None
    folder = options.cache.expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--cache must be a folder, but {options.cache} is a file")
    stores = stored_images(folder)
    if not stores:
        print(f"no decoded images are in {plain(str(options.cache))}")
        return 0
    now = time.time()
    chosen = [] if seconds is None else [one for one in stores if now - one.used > seconds]
    if limit is not None:
        chosen += beyond_limit([one for one in stores if one not in chosen], limit)
    removed = [one for one in chosen if evict(one)]
    plain_console().print(_table(stores, removed))
    left = sum(one.size for one in stores) - sum(one.size for one in removed)
    print(f"{len(stores) - len(removed)} kept in {plain(str(options.cache))}: {_mib(left)} MiB")
    if removed:
        print(f"{len(removed)} removed: {_mib(sum(one.size for one in removed))} MiB")
    if len(removed) < len(chosen):
        print(f"{len(chosen) - len(removed)} more would be removed, but a process uses them now")
    return 0


def _table(stores: Sequence[StoredImages], removed: Collection[StoredImages]) -> Table:
    title = "decoded images, those opened longest ago first"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("table", overflow="fold")
    for name in ("images", "pixels", "MiB", "last opened"):
        table.add_column(name, justify="right")
    if removed:
        table.add_column("")
    for one in stores:
        whole = one.rows > 0
        table.add_row(
            Text((plain(one.csv) or "not known") if whole else "not finished"),
            f"{one.rows:,}" if whole else "",
            str(one.image_size) if whole else "",
            _mib(one.size),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(one.used)),
            *([] if not removed else ["removed" if one in removed else ""]),
        )
    return table


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f}"


if __name__ == "__main__":
    sys.exit(main())
