"""How much a sweep may spend: trials, hours, epochs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from raymlc.errors import UserError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}  # seconds
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+", re.ASCII)


@dataclass(frozen=True)
class Budget:
    """Bounds of a sweep beside its number of trials; infinite where there is none.

    seconds: of wall-clock, from the moment that a run of the sweep hands out its first trial.
    epochs: of all trials of the study together, whichever run trained them.
    """

    seconds: float = math.inf
    epochs: float = math.inf


def parse_duration(text: str) -> float:
    """Seconds of a duration such as "2h", "1h30m", "90m" or "0.5d".

    Raises UserError for anything else, and for no time at all.
    """
    if not _DURATION.fullmatch(text):
        raise UserError(
            f"a duration is a number with d, h, m or s, such as 2h or 1h30m, but is {text!r}"
        )
    seconds = sum(
        float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)([dhms])", text)
    )
    if not 0 < seconds < math.inf:
        raise UserError(f"a duration must be longer than nothing, but is {text!r}")
    return seconds


def parse_trials(text: str, have: int) -> int:
    """How many trials a study that has some shall have: of "40" 40, of "+8" eight more.

    Raises UserError for anything else, and for none.
    """
    more = text.startswith("+")
    digits = text[1:] if more else text
    if not (digits.isascii() and digits.isdigit()) or int(digits) < 1:
        raise UserError(
            f"--trials must be a number of trials, at least 1, or +N for N more, but is {text!r}"
        )
    return int(digits) + (have if more else 0)
