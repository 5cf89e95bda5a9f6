"""What a command does around its work: its options, its errors, the files that it writes."""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar, get_type_hints

import tyro
from docstring_parser import parse_from_object
from rich.console import Console

from raymlc.errors import UserError, plain

_Options = TypeVar("_Options")

SPINS = "1000"  # of a thread that waits for others, before it sleeps


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
    """The options of a command line, those that it leaves out from `default` or else the class.

    Where a class of options has got them from several others, each of these is a group in --help.
    """
    given = sys.argv[1:] if arguments is None else arguments
    script = f"raymlc-{name}"
    # A shell completes the words of a program, and `python` is none of ours.
    completing = any(word.startswith(("--tyro-print", "--tyro-write")) for word in given)
    groups = [base for base in kind.__mro__ if inspect.get_annotations(base)]
    if len(groups) == 1:
        asked = _explained(kind, default)
    else:
        fields = []
        for group in groups:
            title, options = (
                group.__name__.removesuffix("Options").lower(),
                _explained(group, default),
            )
            fields.append((title, options, dataclasses.field(default=options())))
        asked = dataclasses.make_dataclass(kind.__name__, fields)
    answers = tyro.cli(
        asked,
        prog=script
        if completing or Path(sys.argv[0]).name == script
        else f"python -m raymlc.{name}",
        description=inspect.getdoc(kind),
        args=given,
        # What a resumed run has switched on may be said again, or switched off.
        config=(
            (tyro.conf.OmitArgPrefixes,)
            if default
            else (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
        ),
    )
    values = vars(answers)
    if len(groups) > 1:
        values = {name: value for group in values.values() for name, value in vars(group).items()}
    return kind(**values)


def _explained(kind: type, default: object | None) -> type[Any]:
    """The options of a class as tyro shall ask for them: each text in one piece, no empty default.

    default: whose values are the defaults; None takes those of the class.
    """
    texts = {one.arg_name: one.description or "" for one in parse_from_object(kind).params}
    hints = get_type_hints(kind, include_extras=True)
    fields: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(kind):
        if field.name in inspect.get_annotations(kind):
            about = tyro.conf.arg(
                help=" ".join(texts[field.name].split()), help_behavior_hint=_default_hint
            )
            value = field.default if default is None else getattr(default, field.name)
            kept = dataclasses.field(default=value)
            fields.append((field.name, Annotated[hints[field.name], about], kept))
    return dataclasses.make_dataclass(
        kind.__name__, fields, frozen=True, namespace={"__doc__": kind.__doc__}
    )


def _default_hint(default: str) -> str:
    # Of what is None unless given, the text says what becomes of it.
    return "" if default in ("None", "False", "") else f"(default: {default})"


def guarded(work: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Do a command's work: its exit code.

    2 for wrong input, and for a file that the system refuses, said in a line; 130 after Ctrl-C,
    where `interrupted` is said; 1 where nobody reads on what it prints.
    """
    share_cores()
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


def share_cores() -> None:
    """Keep threads that wait for each other from taking cores that others need.

    To be called before torch is imported; other processes of a command inherit it. OpenMP's threads
    wait by spinning, which costs more than it saves where another process keeps a core busy, and
    saves a little where none does: `tests/benchmarks/packing.py` measures both. Nothing is changed
    where the user has set either variable.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


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
