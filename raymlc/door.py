"""What a command does around its work: its options, its errors, the files that it writes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, TypeVar, cast

import tyro
from rich.console import Console

from raymlc.errors import UserError, plain

_Options = TypeVar("_Options")


def run_door(
    kind: type[_Options],
    name: str,
    work: Callable[[_Options], int],
    arguments: Sequence[str] | None,
) -> int:
    """Read a command's options and do its work: its exit code, as of `guarded`."""
    return guarded(lambda: work(parse(kind, name, arguments)))


def parse(
    kind: type[_Options],
    name: str,
    arguments: Sequence[str] | None,
    default: _Options | None = None,
) -> _Options:
    """The options of a command line, those that it leaves out from `default` or else the class."""
    options = tyro.cli(
        kind,
        prog=f"python -m raymlc.{name}",
        args=arguments,
        default=default,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return cast(_Options, options)  # None is no default of tyro's, and no answer


def guarded(work: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Do a command's work: its exit code.

    2 for wrong input, and for a file that the system refuses, said in a line; 130 after Ctrl-C,
    where `interrupted` is said; 1 where nobody reads on what it prints.
    """
    try:
        return work()
    except UserError as error:
        print(f"error: {plain(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Else Python would say so again when it flushes its output at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None:  # else nobody's file is to blame
            raise
        reason = plain(f"{error.filename} cannot be used: {error.strerror}")
        print(f"error: {reason}; mend that, or name another", file=sys.stderr)
        return 2


def check_at_least_1(**values: int | None) -> None:
    """Raises UserError for an option, named as its field, that is given and less than 1."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, but is {value}")


def check_free(path: Path | None, option: str, overwrite: bool) -> None:
    """Raises UserError for a file that is there already, unless it may be overwritten."""
    if path is not None and not overwrite and (path.exists() or path.is_symlink()):
        raise UserError(
            f"{option} must name a new file, but {path} is there; choose another, or take"
            " --overwrite"
        )
    if path is not None and path.is_dir():
        raise UserError(f"{option} must name a file, but {path} is a folder")


@contextmanager
def written(path: Path, option: str) -> Iterator[TextIO]:
    """A text file to fill, which takes its place when the block ends well.

    Raises UserError for one that cannot be written.
    """
    filling = path.with_name(f".{path.name}.filling")
    try:
        # A file's name need be no text.
        with filling.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            yield file
        os.replace(filling, path)
    except OSError as error:
        raise UserError(f"{option} must be a file to write, but {path}: {error}") from error
    finally:
        filling.unlink(missing_ok=True)


def plain_console() -> Console:
    """Where a command prints its tables."""
    # Into a file or a pipe a table needs more than the 80 columns of a terminal.
    return Console() if sys.stdout.isatty() else Console(width=140)
