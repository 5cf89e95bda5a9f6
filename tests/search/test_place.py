"""The words of where a study is: what is refused, what is shown and saved, what a resume needs."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import URL, make_url

from raymlc.errors import UserError
from raymlc.search.place import (
    check_kept,
    check_storage,
    engine_url,
    lasting,
    resolve,
    without_password,
)

FULL = "postgresql://me:secret@host:5432/db"
SAVED = "postgresql://me:***@host:5432/db"


def refusal(where: str | Path, cluster: bool = False) -> str:
    """What is said to a place, in one line."""
    with pytest.raises(UserError) as refused:
        check_storage(where, cluster)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("where", "shown"),
    [
        (FULL, SAVED),
        (SAVED, SAVED),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("mysql+pymysql://me:a%40b@host/db", "mysql+pymysql://me:***@host/db"),
        ("sqlite:////somewhere/study.db", "sqlite:////somewhere/study.db"),
        ("somewhere/study.journal", "somewhere/study.journal"),
        ("a@b:c/study.journal", "a@b:c/study.journal"),
        # Whatever cannot be told apart is not shown at all.
        ("postgresql://me:sec@ret@host/db", "postgresql://***"),
        ("postgresql://me:secret@host:port/db", "postgresql://***"),
        ("postgresql:/me:secret@host/db", "postgresql://***"),
        ("postgresql:///db?user=me&password=secret", "postgresql://***"),
        ("mysql://host/db?passwd=secret", "mysql://***"),
    ],
)
def test_a_place_is_shown_without_its_password(where: str, shown: str) -> None:
    assert without_password(where) == shown


@given(st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), min_size=6))
def test_no_password_is_ever_shown_and_every_one_reaches_the_database(password: str) -> None:
    url = URL.create("postgresql", "me", "x" + password, "host", 5432, "db")
    where = url.render_as_string(hide_password=False)
    assert without_password(where) == SAVED
    filled_in = engine_url(make_url(where)).format(SCHEMA_VERSION=12)  # as Optuna does
    assert make_url(filled_in).password == "x" + password


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (
            "postgres://me:secret@host/db",
            "--study must be a postgresql://, mysql:// or sqlite:/// URL, or the path of a journal"
            " file, but begins with postgres://; did you mean 'postgresql'?",
        ),
        (
            "redis://host",
            "--study must be a postgresql://, mysql:// or sqlite:/// URL, or the path of a journal"
            " file, but begins with redis://; choose one of them",
        ),
        (
            "postgresql://me:sec@ret@host/db",
            "--study must be a URL such as postgresql://user:password@host/database, but"
            " postgresql://*** cannot be read as one; in a password, @ is written %40, : %3A and /"
            " %2F",
        ),
        (
            "postgresql:///db?password=secret",
            "--study takes a password before the @ of its URL, but postgresql://*** has one after"
            " its ?; write postgresql://user:password@host/database",
        ),
        (
            "postgresql+pigeon://me:secret@host/db",
            "--study takes a driver that SQLAlchemy has, but postgresql+pigeon://me:***@host/db"
            " asks for 'pigeon'; leave +pigeon out",
        ),
        (
            "sqlite://",
            "--study must outlive its process, but sqlite:// is in memory; name a file:"
            " sqlite:///study.db",
        ),
    ],
)
def test_a_place_that_cannot_keep_a_study_is_refused(where: str, said: str) -> None:
    assert refusal(where) == said


@pytest.mark.parametrize(
    "where", ["sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true", "sqlite:///"]
)
def test_no_study_is_kept_in_memory(where: str) -> None:
    assert "is in memory" in refusal(where)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (
            "postgresql://me:secret@host/db",
            "--study postgresql://me:***@host/db needs psycopg, which is not installed: pip"
            " install 'raymlc[postgresql]'",
        ),
        (
            "mysql://me:secret@host/db",
            "--study mysql://me:***@host/db needs pymysql, which is not installed: pip install"
            " 'raymlc[mysql]'",
        ),
        (
            "mysql+mysqldb://me:secret@host/db",
            "--study mysql+mysqldb://me:***@host/db needs MySQLdb, which is not installed; leave"
            " +mysqldb out of the URL, and pip install 'raymlc[mysql]'",
        ),
    ],
)
def test_a_missing_driver_is_said_with_what_installs_it(
    where: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("psycopg", "pymysql", "MySQLdb"):
        monkeypatch.setitem(sys.modules, module, None)
    assert refusal(where) == said


def test_sqlite_is_refused_on_a_cluster_and_a_journal_is_not() -> None:
    check_storage("sqlite:///study.db", cluster=False)
    check_storage("study.journal", cluster=True)
    check_storage(Path("study.journal"), cluster=True)
    assert refusal("sqlite:///study.db", cluster=True) == (
        "a sweep with --address keeps its study in a journal, PostgreSQL or MySQL, but --study is"
        " sqlite:///study.db, and SQLite's locks do not hold on network folders; leave --study out"
        " for a journal in the sweep's folder"
    )


def test_a_place_holds_from_any_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert lasting("study.journal") == f"{tmp_path}/study.journal"
    assert lasting("~/study.journal") == "/home/me/study.journal"
    assert lasting("/there/study.journal") == "/there/study.journal"
    assert lasting("sqlite:///study.db") == f"sqlite:///{tmp_path}/study.db"
    assert lasting("sqlite:////there/study.db") == "sqlite:////there/study.db"
    assert lasting(FULL) == FULL


@pytest.mark.parametrize(
    ("given_", "environment", "resumed", "where"),
    [
        (None, None, False, None),
        (FULL, None, False, FULL),
        (None, FULL, False, FULL),
        ("/a.journal", FULL, False, "/a.journal"),
        (None, "", False, None),
        # A resumed sweep has what it saved, or what is given again, as `given`.
        (None, FULL, True, None),
        ("/a.journal", FULL, True, "/a.journal"),
        (SAVED, FULL, True, FULL),
        (FULL, None, True, FULL),
        ("postgresql://me@host/db", None, True, "postgresql://me@host/db"),
    ],
)
def test_a_study_is_where_the_option_says_or_the_environment(
    given_: str | None, environment: str | None, resumed: bool, where: str | None
) -> None:
    assert resolve(given_, environment, resumed) == where


@pytest.mark.parametrize(
    ("environment", "hint"),
    [
        (None, ""),
        (SAVED, f" (RAYMLC_STUDY is {SAVED})"),
        (
            "postgresql://me:secret@elsewhere/db",
            " (RAYMLC_STUDY is postgresql://me:***@elsewhere/db)",
        ),
    ],
)
@pytest.mark.parametrize("resumed", [True, False])
def test_a_password_that_was_not_saved_is_asked_for_again(
    environment: str | None, hint: str, resumed: bool
) -> None:
    with pytest.raises(UserError) as refused:
        resolve(SAVED, environment, resumed)
    assert str(refused.value) == (
        f"a password is saved nowhere, so {SAVED} needs its own again{hint}; give the whole URL by"
        " RAYMLC_STUDY or --study"
    )


@pytest.mark.parametrize(
    ("given_", "saved"),
    [(None, None), (FULL, SAVED), (SAVED, SAVED), ("/a/b.journal", "/a/b.journal")],
)
def test_a_resumed_sweep_may_name_its_study_again(given_: str | None, saved: str | None) -> None:
    check_kept(given_, saved)


@pytest.mark.parametrize(
    ("given_", "saved", "old", "new"),
    [
        (FULL, None, "a journal in its own folder", SAVED),
        ("/a.journal", SAVED, SAVED, "/a.journal"),
        (FULL, "postgresql://me:***@old/db", "postgresql://me:***@old/db", SAVED),
        (None, SAVED, SAVED, "a journal in its own folder"),
    ],
)
def test_a_resumed_sweep_keeps_its_study(
    given_: str | None, saved: str | None, old: str, new: str
) -> None:
    with pytest.raises(UserError) as refused:
        check_kept(given_, saved)
    assert str(refused.value) == (
        f"a resumed run keeps its study, but that is {old} and not {new}; if it was moved, write"
        " its new place into sweep.json, else begin under another --name"
    )


@pytest.mark.parametrize(
    ("where", "engine"),
    [
        (
            "postgresql://h/d",
            "postgresql+psycopg://h/d?connect_timeout=10&tcp_user_timeout=30000",
        ),
        (
            "postgresql+psycopg2://h/d?connect_timeout=3",
            "postgresql+psycopg2://h/d?connect_timeout=3&tcp_user_timeout=30000",
        ),
        ("mysql://h/d", "mysql+pymysql://h/d"),
        ("mysql+mysqldb://h/d", "mysql+mysqldb://h/d"),
    ],
)
def test_a_database_is_opened_by_the_driver_that_the_extras_install(
    where: str, engine: str
) -> None:
    assert engine_url(make_url(where)) == engine


def test_braces_in_a_files_name_are_its_own() -> None:
    filled_in = engine_url(make_url("sqlite:////a{b}.db")).format(SCHEMA_VERSION=12)
    assert make_url(filled_in).database == "/a{b}.db"
