"""A study is the same wherever it is kept, is nobody else's, and outlives what keeps it."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from raymlc.errors import UserError
from raymlc.search import storage as module
from raymlc.search.place import engine_url
from raymlc.search.space import load_space
from raymlc.search.storage import open_storage, open_study
from raymlc.search.study import StudyBook
from raymlc.search.transfer import respaced
from tests.search.postgres import PASSWORD, Postgres, serving

ACCURACY = "val/accuracy"

SPACE = """
from raymlc.trial import TrialConfig
def space(trial):
    return TrialConfig(
        lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True),
        gc=trial.suggest_categorical("gc", [False, True]),
        epochs=6,
    )
"""

# A sweep whose trials' accuracies are known beforehand; killed where it is told to.
SWEEP = """
import math, os, signal, sys
from pathlib import Path
import optuna
from raymlc.search.space import load_space
from raymlc.search.storage import open_study
from raymlc.search.study import StudyBook
where, folder, resumed, kill_at = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
optuna.logging.set_verbosity(optuna.logging.WARNING)
study = open_study(
    where, "val/accuracy", "tpe", "asha", 0, 6, folder=folder, resumed=resumed == "resumed"
)
book = StudyBook(study, load_space(folder / "space.py", {}), "val/accuracy", 14)
while (assignment := book.next()) is not None:
    accuracy = 0.0
    for epoch in range(1, 7):
        accuracy = 1 - abs(math.log10(assignment.config.lr) + 2) / 4 - 0.5 / epoch
        if f"{assignment.number}:{epoch}" == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        metrics = {"epoch": float(epoch), "val/accuracy": accuracy}
        if book.report(assignment.number, metrics):
            break
    book.end(assignment.number, {"val/accuracy": accuracy})
"""


@pytest.fixture(autouse=True)
def databases_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test opens is closed behind it."""
    opened = []

    class Closed(optuna.storages.RDBStorage):
        def __init__(self, url: str, engine_kwargs: dict[str, Any]) -> None:
            opened.append(self)
            super().__init__(url, engine_kwargs)

    monkeypatch.setattr(module, "RDBStorage", Closed)
    yield
    for storage in opened:
        storage.engine.dispose()


@pytest.fixture(scope="module")
def running() -> Iterator[Postgres]:
    with serving() as server:
        yield server


def execute(running: Postgres, statement: str) -> None:
    """Have the server do what only its owner may."""
    engine = create_engine(
        engine_url(make_url(running.url("postgres"))), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


@pytest.fixture
def postgres(running: Postgres) -> str:
    """The URL of a new database."""
    name = f"study{uuid.uuid4().hex}"
    execute(running, f"CREATE DATABASE {name}")
    return running.url(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a sweep."""
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "space.py").write_text(SPACE)
    return folder


@pytest.fixture(params=["journal", "sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that sweeps share, of each kind."""
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres"))
    return str(tmp_path / "shared") if request.param == "journal" else f"sqlite:///{tmp_path}/db"


def opened(
    where: str | Path, folder: Path | None, resumed: bool = False, metric: str = ACCURACY
) -> optuna.Study:
    return open_study(where, metric, "random", "none", 0, 6, folder=folder, resumed=resumed)


def refusal(where: str | Path, folder: Path | None, resumed: bool = False) -> str:
    """What is said to whoever opens a study there, in one line that has no password in it."""
    with pytest.raises(UserError) as refused:
        opened(where, folder, resumed)
    said = str(refused.value)
    assert "\n" not in said
    assert PASSWORD not in said
    return said


def run_sweep(where: str, folder: Path, resumed: str, kill_at: str = "") -> str:
    """Run SWEEP in a process of its own: what it printed as an error."""
    command = [sys.executable, "-c", SWEEP, where, str(folder), resumed, kill_at]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == (-signal.SIGKILL if kill_at else 0), done.stderr
    return done.stderr


def told(study: optuna.Study) -> list[tuple[Any, ...]]:
    """All that a study knows of its trials, but for times."""
    return [
        (t.number, t.state, t.value, t.params, t.intermediate_values, t.user_attrs["config"])
        for t in study.trials
    ]


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_the_same_numbers_wherever_its_study_is(
    where: str, folder: Path, tmp_path: Path
) -> None:
    journal = str(tmp_path / "another.journal")
    for place in (journal, where):
        run_sweep(place, folder, "new", kill_at="0:4")
        run_sweep(place, folder, "resumed", kill_at="11:1")  # past the trials that TPE draws blind
        errors = run_sweep(place, folder, "resumed")
        assert PASSWORD not in errors
    study = opened(where, folder, resumed=True)
    assert told(study) == told(opened(journal, folder, resumed=True))
    assert [trial.number for trial in study.trials] == list(range(14))
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert list(study.trials[0].intermediate_values) == [1, 2, 3, 4, 5, 6]


def test_sweeps_share_a_place_under_their_own_names(where: str, tmp_path: Path) -> None:
    one = opened(where, tmp_path / "one")
    another = opened(where, tmp_path / "another")
    one.tell(one.ask(), 0.5)
    assert (one.study_name, another.study_name) == ("one", "another")
    assert one.user_attrs == {"metric": ACCURACY, "folder": str(tmp_path / "one")}
    again = opened(where, tmp_path / "one", resumed=True)
    assert len(again.trials) == 1
    assert another.trials == []
    another.tell(another.ask(), 0.25)
    assert [trial.number for trial in another.trials] == [0]
    assert one.metric_names == [ACCURACY]


def test_a_name_that_is_taken_is_refused_unless_it_is_resumed(
    where: str, folder: Path, tmp_path: Path
) -> None:
    opened(where, folder)
    study = opened(where, folder)  # a start that came to nothing
    said = refusal(where, tmp_path / "another" / "mine")
    assert said.startswith("a name is free for one study, but ")
    assert said.endswith(
        f" has a 'mine' already, of the sweep in {folder}; go on with that by --resume, or choose"
        " another --name"
    )
    study.tell(study.ask(), 0.5)
    assert refusal(where, folder) == said
    assert len(opened(where, folder, resumed=True).trials) == 1


def test_a_sweep_goes_on_with_the_last_copy_of_its_study(where: str, folder: Path) -> None:
    study = opened(where, folder)
    book = StudyBook(study, load_space(folder / "space.py", {}), ACCURACY, 1)
    assignment = book.next()
    assert assignment is not None
    (folder / "narrow.py").write_text(SPACE.replace("1e-1", "1e-3"))
    copy, _ = respaced(study, load_space(folder / "narrow.py", {}))
    assert copy.study_name == "mine#2"
    again = opened(where, folder, resumed=True)
    assert again.study_name == "mine#2"
    assert again.metric_names == [ACCURACY]
    assert len(again.trials) == 1


def test_the_study_of_another_folder_is_refused(where: str, folder: Path, tmp_path: Path) -> None:
    opened(where, folder)
    other = tmp_path / "elsewhere" / "mine"
    said = refusal(where, other, resumed=True)
    assert f"is that of {folder} and not of {other}; choose another --name, or" in said
    (tmp_path / "link").symlink_to(folder.parent)
    opened(where, tmp_path / "link" / "mine", resumed=True)  # the same by another path


def test_a_moved_folder_gets_its_study_back_by_the_command_that_is_said(
    tmp_path: Path, folder: Path
) -> None:
    where = f"sqlite:///{tmp_path}/db"
    opened(where, folder)
    moved = folder.rename(tmp_path / "mine")
    command = refusal(where, moved, resumed=True).rpartition("was moved: ")[2]
    arguments = command.replace("URL", where).split()
    assert arguments.pop(0) == "optuna"
    optuna_command = [sys.executable, "-c", "from optuna.cli import main; main()"]
    subprocess.run([*optuna_command, *arguments], check=True)
    opened(where, moved, resumed=True)


def test_a_study_that_no_sweep_began_is_refused(where: str, folder: Path) -> None:
    study = optuna.create_study(study_name="mine", storage=open_storage(where))
    opened(where, folder, resumed=True)  # begun, and killed before it said whose it is
    study.set_user_attr("folder", None)
    study.tell(study.ask(), 1.0)
    assert refusal(where, folder, resumed=True).endswith(
        " was not begun by a sweep; choose another --name"
    )


def test_a_study_of_another_metric_is_refused_by_its_place(where: str, folder: Path) -> None:
    opened(where, folder)
    with pytest.raises(UserError, match=f"ranks by {ACCURACY} and --metric is val/loss"):
        opened(where, folder, resumed=True, metric="val/loss")


def test_a_journal_of_the_sweeps_own_is_no_other_folders(tmp_path: Path) -> None:
    study = opened(tmp_path / "study.journal", None)
    assert study.study_name == "raymlc"
    assert study.user_attrs == {"metric": ACCURACY}
    size = (tmp_path / "study.journal").stat().st_size
    opened(tmp_path / "study.journal", None)
    assert (tmp_path / "study.journal").stat().st_size < 1.5 * size


# ---- journals ----


@pytest.mark.parametrize("content", [b"a file of somebody's", b"one\ntwo", b"\x00\x01" * 5000])
@pytest.mark.parametrize("shared", [True, False])
def test_a_file_that_is_no_journal_stays_as_it_is(
    tmp_path: Path, folder: Path, content: bytes, shared: bool
) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    assert f"the study {path} cannot be read: " in refusal(path, folder if shared else None)
    assert path.read_bytes() == content


def test_half_a_line_of_another_process_is_cut_off_before_the_next(
    tmp_path: Path, folder: Path
) -> None:
    path = tmp_path / "shared"
    study = opened(path, folder)
    study.tell(study.ask(), 0.5)
    with path.open("ab") as file:
        file.write(b'{"op_code":6,"worker_id":"' + b"x" * 10000)
    assert len(study.trials) == 1
    study.tell(study.ask(), 0.75)
    assert [t.value for t in opened(path, folder, resumed=True).trials] == [0.5, 0.75]
    assert b"xxx" not in path.read_bytes()


def test_the_lock_of_a_shared_journal_is_its_holders(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "shared"
    opened(path, folder)
    lock = module._Lock(str(path))
    lock.acquire()
    release = threading.Timer(1.0, lock.release)
    release.start()
    began = time.monotonic()
    opened(path, folder, resumed=True)
    assert time.monotonic() - began > 0.9
    release.join()


@pytest.mark.parametrize("shared", [True, False])
def test_a_journal_that_may_only_be_read_is_said_in_one_line(shared: bool) -> None:
    mine = os.geteuid()
    place = Path(tempfile.mkdtemp())  # where everybody gets in
    try:
        path = place / "study.journal"
        opened(path, place if shared else None)
        path.chmod(0o444)
        place.chmod(0o777)
        if mine == 0:
            os.seteuid(65534)  # root may write whatever its mode is
        said = refusal(path, place if shared else None, resumed=True)
    finally:
        os.seteuid(mine)
        shutil.rmtree(place)
    assert said == (
        f"the study must be writable, but {path} is not: Permission denied; once it is, --resume"
        " goes on"
    )


FULL_DISK = """
import resource, sys
from pathlib import Path
from raymlc.errors import UserError
from raymlc.search.storage import open_study
where, folder = sys.argv[1], Path(sys.argv[2])
study = open_study(where, "val/accuracy", "random", "none", 0, 6, folder=folder)
limit = int(sys.argv[3])  # bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    while True:
        study.tell(study.ask(), 0.5)
except UserError as error:
    print(len(study.trials), error)
"""


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_disk_that_is_full_ends_in_one_line_and_the_study_goes_on_later(
    kind: str, tmp_path: Path, folder: Path
) -> None:
    path = tmp_path / "study"
    where = str(path) if kind == "journal" else f"sqlite:///{path}"
    opened(where, tmp_path / "first")
    size = path.stat().st_size + (1777 if kind == "journal" else 4096)  # amid some line; one page
    command = [sys.executable, "-c", FULL_DISK, where, str(folder), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    count, _, said = line.partition(" ")
    assert said.startswith(f"the study must be writable, but {where} is not: ")
    assert said.endswith("; once it is, --resume goes on")
    if kind == "journal":
        assert "File too large" in said
        assert not path.read_bytes().endswith(b"\n")
    study = opened(where, folder, resumed=True)
    assert len(study.trials) == int(count)
    study.tell(study.ask(), 0.5)
    assert len(opened(where, folder, resumed=True).trials) == int(count) + 1


# ---- databases ----


def test_a_database_that_is_not_there_is_said_in_one_line(tmp_path: Path, folder: Path) -> None:
    said = refusal(f"sqlite:///{tmp_path}/no/folder/db", folder)
    assert said == (
        f"--study must be a database that answers, but sqlite:///{tmp_path}/no/folder/db does not:"
        " OperationalError: unable to open database file; see that its server is there and lets"
        " you in"
    )


@pytest.mark.parametrize(
    ("revision", "way_out"),
    [("v3.0.0.a", "optuna storage upgrade"), ("v99.0.0.a", "pip install -U optuna")],
)
def test_a_database_of_another_optuna_is_said_in_one_line(
    tmp_path: Path, folder: Path, revision: str, way_out: str
) -> None:
    where = f"sqlite:///{tmp_path}/db"
    opened(where, folder)
    connection = sqlite3.connect(tmp_path / "db")
    connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.commit()
    connection.close()
    said = refusal(where, folder, resumed=True)
    assert said.startswith(f"--study must have the tables of Optuna {optuna.__version__}, but ")
    assert way_out in said


def test_a_file_that_is_no_database_is_said_in_one_line(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "db").write_text("a file of somebody's\n" * 100)
    assert "file is not a database" in refusal(f"sqlite:///{tmp_path}/db", folder)
    assert (tmp_path / "db").read_text() == "a file of somebody's\n" * 100


def test_a_locked_sqlite_is_waited_for(tmp_path: Path, folder: Path) -> None:
    study = opened(f"sqlite:///{tmp_path}/db?timeout=0.1", folder)
    other = sqlite3.connect(tmp_path / "db", check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(1.0, other.rollback)
    timer.start()
    study.set_user_attr("key", "value")
    timer.join()
    other.close()
    assert study.user_attrs["key"] == "value"


def test_a_server_that_is_not_there_or_refuses_is_said_in_one_line(
    running: Postgres, folder: Path
) -> None:
    assert 'password authentication failed for user "me"' in refusal(
        running.url("postgres", password="wrong"), folder
    )
    assert 'database "nowhere" does not exist' in refusal(running.url("nowhere"), folder)
    with socket.socket() as unheard:
        unheard.bind(("localhost", 0))  # and never listens
        port = unheard.getsockname()[1]
        where = f"postgresql://me:secret@localhost:{port}/db"
        began = time.monotonic()
        said = refusal(where, folder)
    assert time.monotonic() - began < 5
    assert said.startswith(
        f"--study must be a database that answers, but postgresql://me:***@localhost:{port}/db does"
        " not: OperationalError: "
    )
    assert "refused" in said
    assert "secret" not in said


def test_a_password_that_a_driver_repeats_is_not_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(url: str, engine_kwargs: dict[str, Any]) -> None:
        raise OperationalError("", {}, ValueError(f"no such option: {PASSWORD}"))

    monkeypatch.setattr(module, "RDBStorage", refuse)
    monkeypatch.setattr(module, "check_storage", lambda where, cluster: None)  # needs no driver
    where = URL.create("postgresql", "me", PASSWORD, "host").render_as_string(hide_password=False)
    assert "ValueError: no such option: ***;" in refusal(where, folder)


def test_a_user_who_may_not_make_tables_is_told_so(running: Postgres, folder: Path) -> None:
    execute(running, "CREATE USER guest PASSWORD 'guest'")
    said = refusal(running.url("postgres", "guest", "guest"), folder)
    assert "permission denied for schema public" in said
    assert "guest:***@" in said


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_database_that_is_gone_for_a_while_is_waited_for(
    mode: str,
    running: Postgres,
    postgres: str,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = opened(postgres, folder)
    book = StudyBook(study, load_space(folder / "space.py", {}), ACCURACY, 100_000)
    back = threading.Event()

    def restart() -> None:
        time.sleep(0.5)
        running.stop(mode)
        time.sleep(2.0)
        running.start()
        back.set()

    restarting = threading.Thread(target=restart)
    restarting.start()
    ended = after = 0
    while after < 5:
        assignment = book.next()
        assert assignment is not None
        for epoch in range(1, 7):
            assert not book.report(assignment.number, {"epoch": float(epoch), ACCURACY: epoch / 10})
        book.end(assignment.number, {ACCURACY: 0.6})
        ended += 1
        after += back.is_set()
    restarting.join()
    trials = opened(postgres, folder, resumed=True).trials
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(complete) == ended
    assert len(trials) - ended in (0, 1)  # one that was begun when the answer was lost
    for trial in complete:
        assert trial.intermediate_values == {epoch: epoch / 10 for epoch in range(1, 7)}
        assert trial.value == 0.6
    assert "is gone" in caplog.text
    assert "me:***@" in caplog.text
    assert PASSWORD not in caplog.text


def test_patience_with_a_database_has_an_end(
    running: Postgres,
    postgres: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = opened(postgres, folder)
    monkeypatch.setattr(module, "PATIENCE", 2.0)
    running.stop()
    try:
        began = time.monotonic()
        with pytest.raises(UserError) as refused:
            study.ask()
        assert 1 < time.monotonic() - began < 20
    finally:
        running.start()
    said = str(refused.value)
    assert "\n" not in said
    assert PASSWORD not in said + caplog.text
    assert said.startswith("the study's database must answer, but postgresql://me:***@localhost:")
    assert said.endswith("; once it does, --resume goes on")
    study.tell(study.ask(), 0.5)


def test_the_end_of_a_trial_may_be_sent_twice(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = opened(f"sqlite:///{tmp_path}/db", folder)
    trial = study.ask()
    end = optuna.storages.RDBStorage.set_trial_state_values
    lost = [OperationalError("", {}, sqlite3.OperationalError("database is locked"))]

    def answer_lost(
        self: Any, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        done = end(self, trial_id, state, values)
        if lost:
            raise lost.pop()
        return done

    monkeypatch.setattr(optuna.storages.RDBStorage, "set_trial_state_values", answer_lost)
    study.tell(trial, 0.5)
    assert not lost
    assert study.trials[0].value == 0.5
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        trial.report(0.1, 1)


@pytest.mark.slow
def test_optuna_dashboard_lists_the_trials_of_a_study(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    path = tmp_path / "study.journal"
    study = opened(path, None)
    book = StudyBook(study, load_space(folder / "space.py", {}), ACCURACY, 3)
    for _ in range(3):
        assignment = book.next()
        assert assignment is not None
        for epoch in range(1, 7):
            book.report(assignment.number, {"epoch": float(epoch), ACCURACY: epoch / 10})
        book.end(assignment.number, {ACCURACY: 0.6})
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [shutil.which("optuna-dashboard", path=Path(sys.executable).parent) or ""]
    command += [str(path), "--port", str(port), "--server", "wsgiref"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        got = fetched(f"http://localhost:{port}/api/studies/0?after=0")
    finally:
        process.terminate()
        process.wait(timeout=20)
    assert got["name"] == "raymlc"
    assert [trial["state"] for trial in got["trials"]] == ["Complete"] * 3
    for trial in got["trials"]:
        steps = [(value["step"], value["value"]) for value in trial["intermediate_values"]]
        assert steps == [(epoch, epoch / 10) for epoch in range(1, 7)]


def fetched(url: str) -> dict[str, Any]:
    """What a server answers once it is there."""
    for _ in range(100):
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return dict(json.load(answer))
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} did not answer")
