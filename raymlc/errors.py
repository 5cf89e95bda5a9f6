"""What a person did that cannot work, said in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONG = 2000  # characters


class UserError(ValueError):
    """A mistake that its maker can mend: the law, the value, the way out, in one line.

    Commands print it without a traceback and exit with code 2; a notebook gets the same words.
    """


def one_line(error: BaseException) -> str:
    """What an exception of another library says, with its type, in one line of fair length."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else text[:300] + "…"


def plain(text: str) -> str:
    """A message as one line that a terminal shows and does not obey, whatever names are in it.

    Of a very long one the middle is left out.
    """
    if len(text) > _LONG:
        text = f"{text[: _LONG - 500]} … {text[-500:]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """The way out of a misspelt name: its nearest known names, or `otherwise` if none is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(repr(match) for match in near)}?" if near else otherwise
