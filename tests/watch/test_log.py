"""The log of a sweep is whole lines of JSON, over all resumptions, without what is secret."""

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from rich.console import Console

from raymlc.errors import UserError
from raymlc.search.budget import Budget
from raymlc.search.space import Space
from raymlc.search.storage import open_study
from raymlc.search.study import StudyBook
from raymlc.trial import TrialConfig
from raymlc.watch.log import EVENTS, EventLog
from raymlc.watch.recorder import Recorder

ACCURACY = "val/accuracy"


def read(path: Path) -> list[dict[str, Any]]:
    """The events, each of which must parse as strict JSON, without the times."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = path.read_text()
    assert text.endswith("\n")
    events: list[dict[str, Any]] = []
    for line in text.splitlines():
        event = json.loads(line, parse_constant=refuse)
        happened = datetime.fromisoformat(event.pop("time"))
        assert happened.tzinfo == UTC
        assert abs(datetime.now(UTC) - happened) < timedelta(hours=1)
        events.append(event)
    return events


def test_an_event_has_its_time_its_trial_and_its_values_and_null_for_no_number(
    tmp_path: Path,
) -> None:
    log = EventLog(tmp_path / "new" / EVENTS)
    assert not log.begun
    log.write("sweep_begun", None, {"trials": 3})
    log.write("epoch", 0, {"epoch": 1, "metrics": {"a": math.nan, "b": [math.inf, 0.5, "x\n"]}})
    assert read(tmp_path / "new" / EVENTS) == [  # before it is closed
        {"event": "sweep_begun", "trials": 3},
        {"event": "epoch", "trial": 0, "epoch": 1, "metrics": {"a": None, "b": [None, 0.5, "x\n"]}},
    ]


def test_a_log_goes_on_after_its_last_whole_line_and_knows_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / EVENTS
    log = EventLog(path)
    for epoch in (1, 2):
        log.write("epoch", 4, {"epoch": epoch})
    log.write("trial_ended", 4, {"state": "FAIL"})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"time": "2026-')
    log = EventLog(path)
    assert (log.begun, log.epochs, log.ended) == (True, {4: 2}, {4})
    assert path.read_bytes() == whole
    log.write("sweep_resumed", None, {})
    assert read(path)[-1] == {"event": "sweep_resumed"}


def test_a_log_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    log = EventLog(tmp_path / EVENTS)
    log._path = Path("/dev/full")
    with pytest.raises(UserError) as caught:
        log.write("sweep_begun", None, {})
    assert str(caught.value) == (
        "/dev/full must be writable, but is not: No space left on device; once it is, --resume"
        " goes on"
    )


@pytest.fixture
def recorder(tmp_path: Path) -> Callable[..., Recorder]:
    """recorder(epochs): as a process has it that begins or goes on with a sweep of two trials."""

    def ask(trial: optuna.trial.BaseTrial) -> TrialConfig:
        return TrialConfig(lr=trial.suggest_float("lr", 1e-3, 1e-1), epochs=4)

    def make(epochs: float = math.inf) -> Recorder:
        where = f"sqlite:///{tmp_path}/study.db"
        study = open_study(where, ACCURACY, "random", "none", 0, 4, tmp_path / "sweep", True)
        space = Space(Path("mine.py"), ask, {})
        book = StudyBook(study, space, ACCURACY, 2, Budget(epochs=epochs))
        return Recorder(book, tmp_path / "sweep", ("color",), 2, Console(quiet=True))

    return make


def told(one: Recorder, number: int, epochs: int) -> None:
    for epoch in range(1, epochs + 1):
        one.epoch(number, {"epoch": float(epoch), ACCURACY: 0.5, "images_per_second": 1.0}, "host")


def test_the_log_of_a_sweep_has_all_that_happened_in_order_and_once(
    tmp_path: Path, recorder: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "raymlc.watch.recorder.read_score", lambda folder: {"epoch": 4.0, ACCURACY: 0.5}
    )
    one = recorder(epochs=3)
    assert one.next()
    assert one.next()
    told(one, 0, 2)
    one.lost(0)
    one.end(1, "the loss was not finite")
    told(one, 0, 3)  # from its beginning again, as a trial does that goes on
    one.end(0)
    one.close()
    one = recorder()
    assert one.next()
    told(one, 0, 4)
    one.end(0)
    one.close()
    events = read(tmp_path / "sweep" / EVENTS)
    assert [(event["event"], event.get("trial")) for event in events] == [
        ("sweep_begun", None),
        ("trial_started", 0),
        ("trial_started", 1),
        ("epoch", 0),
        ("epoch", 0),
        ("trial_lost", 0),
        ("trial_ended", 1),
        ("epoch", 0),
        ("trial_paused", 0),
        ("budget_spent", None),
        ("sweep_ended", None),
        ("sweep_resumed", None),
        ("trial_resumed", 0),
        ("epoch", 0),
        ("trial_ended", 0),
        ("sweep_ended", None),
    ]
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [1, 2, 3, 4]
    assert events[5]["after"] == 2
    assert events[6]["reason"] == "the loss was not finite"
    assert events[9] == {"event": "budget_spent", "trials": 2, "epochs": 3}
    assert events[12]["after"] == 3
    assert (events[14]["state"], events[14]["score"], events[14]["epochs"]) == ("COMPLETE", 0.5, 4)
    assert events[15]["ended"] == 2
    assert not re.search("sqlite|password", (tmp_path / "sweep" / EVENTS).read_text())


def test_an_end_that_a_kill_kept_from_the_log_is_told_when_the_sweep_goes_on(
    tmp_path: Path, recorder: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "raymlc.watch.recorder.read_score", lambda folder: {"epoch": 4.0, ACCURACY: 0.5}
    )
    one = recorder()
    assert one.next()
    told(one, 0, 4)
    one.book.end(0, {ACCURACY: 0.5})
    recorder()
    events = read(tmp_path / "sweep" / EVENTS)
    assert [event["event"] for event in events[-2:]] == ["sweep_resumed", "trial_ended"]
    assert events[-1]["state"] == "COMPLETE"


def test_an_epoch_that_a_kill_kept_from_the_log_is_told_when_the_sweep_goes_on(
    tmp_path: Path, recorder: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    history = [{"epoch": float(epoch), ACCURACY: epoch / 10} for epoch in (1, 2, 3)]
    monkeypatch.setattr("raymlc.watch.recorder.load_history", lambda folder: history)
    one = recorder()
    assert one.next()
    one.epoch(0, {**history[0], "images_per_second": 1.0})
    one.book.report(0, history[1])  # of the third epoch the study has not heard
    recorder()
    *_, resumed, epoch = read(tmp_path / "sweep" / EVENTS)
    assert resumed["event"] == "sweep_resumed"
    named = {"event": "epoch", "trial": 0, "epoch": 2, "node": ""}
    assert epoch == named | {"metrics": history[1]}
