"""Opens the study of a sweep, whatever keeps it, and keeps hold of it.

A journal is left with whole lines only, whoever was killed and whenever the disk was full. A
database that is gone for a while is waited for.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

import optuna
from optuna.exceptions import (
    ExperimentalWarning,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, OperationalError, PendingRollbackError, SQLAlchemyError

from raymlc.errors import UserError, one_line
from raymlc.metric import higher_is_better, objectives
from raymlc.search.choice import (
    PrunerName,
    SamplerName,
    check_objectives,
    make_pruner,
    make_sampler,
)
from raymlc.search.place import check_storage, database_url, engine_url, without_password
from raymlc.search.transfer import newest

METRIC, FOLDER = "metric", "folder"  # a study's attributes
OWN_NAME = "raymlc"  # of a study in a place of its own

PATIENCE = 120.0  # seconds that a database may be gone for
_LONGEST_PAUSE = 10.0  # seconds from one try to the next

_BEGINNING = b'{"op_code":'  # of each line of a journal, but for spaces

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


def open_study(
    where: Path | str,
    metric: str,
    sampler: SamplerName,
    pruner: PrunerName,
    seed: int,
    epochs: int,
    folder: Path | None = None,
    resumed: bool = False,
) -> optuna.Study:
    """Open the study of a sweep, or begin it.

    where: a journal, or a database as `resolve` gives it. metric: what trials are ranked by, as
    `metric_names` has it. epochs: of the longest trial, from which Optuna's pruners have their
    rungs. folder: the sweep's, if others may keep theirs in that place, too: the study has then the
    folder's name, and is opened again for that folder only, and if resumed. None: the place is the
    sweep's own.
    Raises UserError for a place that `open_storage` refuses, a study of another metric or of
    another sweep, and a package that is missing. Whatever the study is asked for later raises
    UserError if it cannot be written any more.
    """
    shown = without_password(str(where))
    names = objectives(metric)
    check_objectives(len(names), sampler, pruner)
    storage = open_storage(where, shared=folder is not None)
    study = optuna.create_study(
        study_name=newest(storage, OWN_NAME if folder is None else folder.name),
        storage=storage,
        directions=["maximize" if higher_is_better(one) else "minimize" for one in names],
        load_if_exists=True,
    )
    if folder is not None:
        _claim(study, folder.resolve(), resumed, shown)
    ranked_by = study.user_attrs.get(METRIC, metric)
    if ranked_by != metric:
        raise UserError(
            f"a sweep keeps its metric, but {shown} ranks by {ranked_by} and --metric is {metric}"
        )
    if METRIC not in study.user_attrs:
        study.set_user_attr(METRIC, metric)
    if study.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(names))  # for the axes of optuna-dashboard
    # A sampler that starts anew with the same seed would draw the same trials once more.
    study.sampler = make_sampler(sampler, seed + len(study.trials), epochs)
    study.pruner = make_pruner(pruner, epochs, several=len(names) > 1)
    return study


def _claim(study: optuna.Study, folder: Path, resumed: bool, shown: str) -> None:
    """Write down whose the study is. Raises UserError if it is another's."""
    owner = study.user_attrs.get(FOLDER)
    name, begun = study.study_name, len(study.get_trials(deepcopy=False)) > 0
    if begun and owner is None:
        raise UserError(
            f"a sweep goes on with its own study, but {name!r} in {shown} was not begun by a sweep;"
            " choose another --name"
        )
    if not resumed and (begun or owner not in (None, str(folder))):
        raise UserError(
            f"a name is free for one study, but {shown} has a {name!r} already, of the sweep in"
            f" {owner}; go on with that by --resume, or choose another --name"
        )
    if owner not in (None, str(folder)):
        raise UserError(
            f"a sweep goes on with its own study, but {name!r} in {shown} is that of {owner} and"
            f" not of {folder}; choose another --name, or if the folder was moved: optuna study"
            f" set-user-attr --storage URL --study-name {name} --key {FOLDER} --value {folder}"
        )
    if owner is None:
        study.set_user_attr(FOLDER, str(folder))


def open_storage(where: Path | str, shared: bool = True) -> BaseStorage:
    """The storage at a place, made if it is not there, that a sweep can rely on.

    where: the path of a journal, or the URL of a database. shared: whether another process may be
    writing to the journal.
    Raises UserError for a journal or a database that cannot be had, read and written.
    """
    check_storage(where, cluster=False)
    url = database_url(where)
    return _open_journal(Path(where), shared) if url is None else _open_database(url)


def _open_journal(path: Path, shared: bool) -> BaseStorage:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not shared:
            path.with_name(path.name + ".lock").unlink(missing_ok=True)  # of a killed process
        _check_end(path)
        return JournalStorage(_Journal(str(path), _Lock(str(path))))
    except OSError as error:
        raise _unwritable(path, error) from error
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"the study {path} cannot be read: {error!r}") from error


class _Lock(JournalFileSymlinkLock):
    """A lock whose holder has a journal of whole lines before them."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._journal = Path(path)

    def acquire(self) -> bool:
        acquired = super().acquire()
        try:
            # What a process wrote that was killed, or found the disk full, and may have left the
            # lock, too: the next line would be glued to it.
            with self._journal.open("rb+") as file:
                half = len(_half_line(file))
                if half:
                    file.truncate(file.seek(0, os.SEEK_END) - half)
        except BaseException:
            self.release()
            raise
        return acquired


class _Journal(JournalFileBackend):
    """A journal that says in one line that it cannot be written.

    What is read from it has each name in memory once, not once a trial: they would be two fifths
    of what a long sweep holds.
    """

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        for log in super().read_logs(log_number_from):
            yield _shared(log)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        try:
            super().append_logs(logs)
        except OSError as error:
            raise _unwritable(Path(self._file_path), error) from error


def _shared(value: Any) -> Any:
    if isinstance(value, dict):
        return {sys.intern(name): _shared(one) for name, one in value.items()}
    return sys.intern(value) if isinstance(value, str) else value


def _half_line(journal: BinaryIO) -> bytes:
    """What a journal has after its last whole line."""
    end = journal.seek(0, os.SEEK_END)
    have = b""
    while end > 0 and b"\n" not in have:
        begin = max(0, end - 4096)
        journal.seek(begin)
        have = journal.read(end - begin) + have
        end = begin
    return have.rpartition(b"\n")[2]


def _check_end(path: Path) -> None:
    """Raises ValueError if the half line at a file's end is not a journal's."""
    if path.exists():
        with path.open("rb") as file:
            half = _half_line(file).replace(b" ", b"")[: len(_BEGINNING)]
        if not _BEGINNING.startswith(half):
            raise ValueError(f"its last line begins with {half!r}, and has no end")


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"the study must be writable, but {path} is not: {error.strerror or error}; once it is,"
        " --resume goes on"
    )


def _open_database(url: URL) -> BaseStorage:
    shown = url.render_as_string(hide_password=True)
    try:
        storage = RDBStorage(
            engine_url(url),
            # A connection that was cut between two epochs, by a firewall or by the server, is
            # found out before it is used.
            engine_kwargs={"pool_pre_ping": True},
        )
    except (SQLAlchemyError, StorageInternalError) as error:
        raise UserError(
            f"--study must be a database that answers, but {shown} does not:"
            f" {_reason(error, url)}; see that its server is there and lets you in"
        ) from error
    except RuntimeError as error:
        raise UserError(
            f"--study must have the tables of Optuna {optuna.__version__}, but {shown} has others:"
            f" {_reason(error, url)}"
        ) from error
    # A connection that broke is told of below, in a line and not in a traceback.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    # Whatever else a study is asked for goes through one of these. There is no heartbeat: Optuna's
    # beats in its own loop only, and a trial that nobody runs any more is handed out again.
    patient = get_storage(storage)
    for name in dir(BaseStorage):
        if not name.startswith("_"):
            setattr(patient, name, _patient(getattr(patient, name), url))
    return patient


def _patient(call: Callable[_Args, _Result], url: URL) -> Callable[_Args, _Result]:
    """The call of a storage, made again for PATIENCE while its database is gone.

    A lost connection does not tell whether what was sent has come to pass. All that a sweep writes
    may be written twice, but for the end of a trial, which then says so; and for a new trial, of
    which one may be left that nobody runs, and that fails when the sweep is next resumed.
    Raises UserError when patience has an end, and for an error that waiting does not mend.
    """
    shown = url.render_as_string(hide_password=True)

    def patient(*args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        began, failures = time.monotonic(), 0
        while True:
            try:
                return call(*args, **kwargs)
            except UpdateFinishedTrialError:
                if not failures:
                    raise
                return True  # type: ignore[return-value]
            except (StorageInternalError, SQLAlchemyError) as error:
                pause = min(2**failures / 2, _LONGEST_PAUSE)
                if not _may_pass(error, url):
                    raise UserError(
                        f"the study must be writable, but {shown} is not: {_reason(error, url)};"
                        " once it is, --resume goes on"
                    ) from error
                if time.monotonic() - began + pause > PATIENCE:
                    raise UserError(
                        f"the study's database must answer, but {shown} did not for"
                        f" {PATIENCE:g} s: {_reason(error, url)}; once it does, --resume goes on"
                    ) from error
                if not failures:
                    _log.warning("%s is gone (%s): waiting for it", shown, _reason(error, url))
            failures += 1
            time.sleep(pause)

    return patient


def _may_pass(error: Exception, url: URL) -> bool:
    """Whether it is about the database being there, and not about what it was asked for."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if url.get_backend_name() == "sqlite":
        return isinstance(cause, OperationalError) and "locked" in str(cause.orig)
    if isinstance(cause, DBAPIError) and cause.connection_invalidated:
        return True
    return isinstance(cause, OperationalError | PendingRollbackError)


def _reason(error: Exception, url: URL) -> str:
    """What the database itself said, in one line."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    said = cause.orig if isinstance(cause, DBAPIError) else cause
    reason = one_line(said or error)
    return reason.replace(url.password, "***") if url.password else reason
