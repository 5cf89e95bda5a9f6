"""Where a run speaks: a terminal, a file or a pipe, which may go away before the run ends."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import IO, Any, cast

from rich.console import Console


class _Lasting:
    """A text file whose writes do not fail: what cannot be written any more is lost in silence."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        try:
            try:
                return self._file.write(text)
            except UnicodeEncodeError as error:
                escaped = text.encode(error.encoding, "backslashreplace")
                return self._file.write(escaped.decode(error.encoding))
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        # What the file still holds would fail again, at the latest when Python ends.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._file.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def run_console() -> Console:
    """Where a run that may take hours speaks. A closed pipe or a full disk there does not end it.

    It goes on in silence then, and its folder says how it went.
    """
    # Into a file or a pipe a table needs more than the 80 columns of a terminal.
    width = None if sys.stdout.isatty() else 140
    return Console(file=cast(IO[str], _Lasting(sys.stdout)), width=width)


def quiet_console(console: Console, quiet: bool) -> Console:
    """Where all is said that is neither result nor error: nowhere, if a run is to be quiet."""
    return Console(quiet=True) if quiet else console
