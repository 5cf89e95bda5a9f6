"""What happens in a sweep, as one JSON object a line, for whoever counts rather than reads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raymlc.errors import UserError

EVENTS = "events.jsonl"  # in a sweep's folder, and in that of its finals


class EventLog:
    """Appends events to a file, each in one write, in a sweep's order over all its resumptions.

    The study is the truth; what a kill kept from this file after it was in the study is to be told
    here again, and what is here already is not told twice.

    epochs: of each trial that is in the file, its last epoch. ended: the trials whose end is.
    begun: whether the file had any event when it was opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.epochs: dict[int, int] = {}
        self.ended: set[int] = set()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            whole, newline, half = file.read().rpartition(b"\n")
            if half:  # of a full disk
                file.truncate(len(whole) + len(newline))
        lines = whole.splitlines()
        self.begun = bool(lines)
        for line in lines:
            self._note(json.loads(line))

    def write(self, event: str, trial: int | None, values: Mapping[str, Any]) -> None:
        """Append an event: "time" (UTC), "event", "trial" where it is of one, and its values.

        What is no finite number is null. Raises UserError if the file cannot be written.
        """
        named = {} if trial is None else {"trial": trial}
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = {"time": now, "event": event} | named | dict(values)
        line = json.dumps(_finite(record), allow_nan=False)
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write(f"{line}\n".encode())
        except OSError as error:
            raise UserError(
                f"{self._path} must be writable, but is not: {error.strerror or error}; once it"
                " is, --resume goes on"
            ) from error
        self._note(record)

    def _note(self, record: Mapping[str, Any]) -> None:
        trial = record.get("trial")
        if trial is not None and record["event"] == "epoch":
            self.epochs[trial] = max(int(record["epoch"]), self.epochs.get(trial, 0))
        elif trial is not None and record["event"] == "trial_ended":
            self.ended.add(trial)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
