"""A PostgreSQL server of a test's own, on a socket and a port that only this machine sees."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
USER, PASSWORD = "me", "p@ss/w{o}rd:%40"


class Postgres:
    """A server in a temporary folder, begun by `start`, ended for good by `remove`.

    programs: the folder of initdb and pg_ctl.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        # The server will not run as root, and its user must get at its folder.
        names = [user.pw_name for user in pwd.getpwall()]
        self._user = None
        if os.geteuid() == 0:
            self._user = "postgres" if "postgres" in names else "nobody"
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        word = self._folder / "password"
        word.write_text(PASSWORD)
        if self._user is not None:
            shutil.chown(self._folder, self._user)
            shutil.chown(word, self._user)
        with socket.socket() as free:
            free.bind(("localhost", 0))
            self._port = free.getsockname()[1]
        self._call(
            "initdb", "--username", USER, "--auth", "scram-sha-256", "--pwfile", str(word),
            "--no-sync", "--encoding", "UTF8", "--locale", "C",
        )  # fmt: skip

    def start(self) -> None:
        """Start it, or start it again, and wait until it answers."""
        options = f"-p {self._port} -k {self._folder} -c listen_addresses=localhost"
        options += " -c fsync=off"  # the machine under it will not crash
        log = str(self._folder / "log")
        self._call("pg_ctl", "start", "--wait", "--log", log, "--options", options)

    def stop(self, mode: str = "fast") -> None:
        """End it and its connections: fast, in order; immediate, as a crash would."""
        self._call("pg_ctl", "stop", "--wait", "--mode", mode)

    def remove(self) -> None:
        """End it, if it runs, and delete its folder."""
        if (self._folder / "data" / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self._folder)

    def url(self, database: str, user: str = USER, password: str = PASSWORD) -> str:
        """The URL of one of its databases, password and all."""
        url = URL.create("postgresql", user, password, "localhost", self._port, database)
        return url.render_as_string(hide_password=False)

    def _call(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), "-D", str(self._folder / "data"), *arguments]
        done = subprocess.run(
            command,
            cwd="/",
            user=self._user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # The server that pg_ctl starts keeps what pg_ctl has open: a pipe would never end.
            stderr=subprocess.DEVNULL,
            timeout=120,
        )
        assert done.returncode == 0, f"{program} failed; see {self._folder}"


@contextmanager
def serving() -> Iterator[Postgres]:
    """A server that runs for the block; the test is skipped where none can be had."""
    if not PROGRAMS:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    server = Postgres(PROGRAMS[-1].parent)
    try:
        server.start()
        yield server
    finally:
        server.remove()
