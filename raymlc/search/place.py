"""Where a sweep's study is kept: the words of it, before anything is opened.

That is the path of a journal file, or the URL of a database as SQLAlchemy and Optuna have it.
"""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from raymlc.errors import UserError, did_you_mean

# Those that Optuna is tested with, by the driver that raymlc's extras install. SQLAlchemy's own
# choice of driver has changed from one version to the next.
_DRIVERS = {"postgresql": "psycopg", "mysql": "pymysql", "sqlite": "pysqlite"}
_TAKES = "a postgresql://, mysql:// or sqlite:/// URL, or the path of a journal file"

_LOOKS_LIKE_A_URL = re.compile(r"\w[\w+-]+:/")
_MASK = "***"  # SQLAlchemy's

# A connection whose other end has vanished without a word is given up in this time, not in the
# quarter of an hour that the kernel would try: in seconds and in milliseconds, of libpq's.
_GIVES_UP = {"connect_timeout": "10", "tcp_user_timeout": "30000"}


def database_url(where: Path | str) -> URL | None:
    """The URL of a database; None for the path of a journal.

    Raises UserError for a URL that cannot be read, or whose password could not be told apart.
    """
    if isinstance(where, Path) or not _LOOKS_LIKE_A_URL.match(where):
        return None
    shown = f"{where.partition(':')[0]}://{_MASK}"
    try:
        url = make_url(where)
    except (ArgumentError, ValueError):  # whose words may hold the password
        url = None
    if url is None or "@" in (url.host or ""):
        raise UserError(
            "--study must be a URL such as postgresql://user:password@host/database, but"
            f" {shown} cannot be read as one; in a password, @ is written %40, : %3A and / %2F"
        )
    if any("pass" in name and name != "passfile" for name in url.query):
        raise UserError(
            f"--study takes a password before the @ of its URL, but {shown} has one after its ?;"
            " write postgresql://user:password@host/database"
        )
    return url


def engine_url(url: URL) -> str:
    """The URL, password and all, as Optuna's RDBStorage is to get it: with its driver."""
    if "+" not in url.drivername and url.drivername in _DRIVERS:
        url = url.set(drivername=f"{url.drivername}+{_DRIVERS[url.drivername]}")
    if url.drivername in ("postgresql+psycopg", "postgresql+psycopg2"):
        url = url.update_query_dict({**_GIVES_UP, **url.query})
    # Optuna fills in {SCHEMA_VERSION}, and not every SQLAlchemy writes braces in percent.
    return url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")


def without_password(where: str) -> str:
    """The place as it may be saved and shown."""
    try:
        url = database_url(where)
    except UserError:
        return f"{where.partition(':')[0]}://{_MASK}"
    return where if url is None else url.render_as_string(hide_password=True)


def lasting(where: str) -> str:
    """The place as it holds from any working folder. Raises UserError as `database_url` does."""
    url = database_url(where)
    if url is None:
        return str(Path(where).expanduser().absolute())
    file = url.database or ""
    if url.get_backend_name() == "sqlite" and file and not file.startswith((":", "file:")):
        url = url.set(database=str(Path(file).absolute()))
    return url.render_as_string(hide_password=False)


def check_storage(where: Path | str, cluster: bool) -> None:
    """Raises UserError for a place that cannot keep a study, as far as words tell.

    cluster: whether the sweep joins a Ray cluster, whose nodes share their folders by network.
    """
    url = database_url(where)
    if url is None:
        return
    kind, _, driver = url.drivername.partition("+")
    if kind not in _DRIVERS:
        way_out = did_you_mean(kind, _DRIVERS, "choose one of them")
        raise UserError(f"--study must be {_TAKES}, but begins with {kind}://; {way_out}")
    shown = url.render_as_string(hide_password=True)
    if kind == "sqlite":
        if not url.database or ":memory:" in url.database or "memory" in url.query.get("mode", ""):
            raise UserError(
                f"--study must outlive its process, but {shown} is in memory; name a file:"
                " sqlite:///study.db"
            )
        if cluster:
            raise UserError(
                "a sweep with --address keeps its study in a journal, PostgreSQL or MySQL, but"
                f" --study is {shown}, and SQLite's locks do not hold on network folders; leave"
                " --study out for a journal in the sweep's folder"
            )
    _check_driver(url, kind, driver, shown)


def _check_driver(url: URL, kind: str, driver: str, shown: str) -> None:
    standard = driver in ("", _DRIVERS[kind])
    instead = "" if standard else f"; leave +{driver} out of the URL, and"
    try:
        dialect = make_url(engine_url(url)).get_dialect()
        dialect.import_dbapi()
    except NoSuchModuleError as error:
        raise UserError(
            f"--study takes a driver that SQLAlchemy has, but {shown} asks for {driver!r}; leave"
            f" +{driver} out"
        ) from error
    except ImportError as error:
        package = _DRIVERS[kind] if standard else error.name or driver
        raise UserError(
            f"--study {shown} needs {package}, which is not installed{instead or ':'}"
            f" pip install 'raymlc[{kind}]'"
        ) from error
    if dialect.is_async:
        raise UserError(
            f"--study takes a driver that is not asynchronous, but {shown} asks for {driver}"
            f"{instead} pip install 'raymlc[{kind}]'"
        )


def resolve(given: str | None, environment: str | None, resumed: bool) -> str | None:
    """Where the study of a sweep is, as `lasting` has it; None for a journal in its own folder.

    given: --study, or what a resumed sweep has saved of it, without its password. environment: the
    variable RAYMLC_STUDY: a new sweep's --study where none is given, and a resumed one's password.
    Raises UserError for a password that is asked for again, and as `database_url` does.
    """
    where = given if resumed else given or environment
    if not where:
        return None
    where = lasting(where)
    url = database_url(where)
    if url is None or url.password != _MASK:
        return where
    shown = without_password(where)
    if environment and without_password(lasting(environment)) == shown:
        again = lasting(environment)
        if again != where:
            return again
    other = f" (RAYMLC_STUDY is {without_password(environment)})" if environment else ""
    raise UserError(
        f"a password is saved nowhere, so {shown} needs its own again{other}; give the whole URL by"
        " RAYMLC_STUDY or --study"
    )


def check_kept(given: str | None, saved: str | None) -> None:
    """Raises UserError if a resumed sweep would leave its study. given, saved: as of `resolve`."""
    new, old = (where and without_password(lasting(where)) for where in (given, saved))
    if new != old:
        own = "a journal in its own folder"
        raise UserError(
            f"a resumed run keeps its study, but that is {old or own} and not {new or own}; if it"
            " was moved, write its new place into sweep.json, else begin under another --name"
        )
