"""A sweep as a job on a running cluster, submitted as the README says."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from raymlc.training.checkpoint import load_history
from raymlc.watch.recorder import trial_folder

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """A head node with a dashboard: the address for jobs, and the environment that may submit."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_"))
    } | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    port = free_port()
    with tempfile.TemporaryDirectory(
        prefix="ray", dir="/tmp"
    ) as folder:  # sockets need short paths
        log = Path(folder) / "head.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [
                    BIN / "ray", "start", "--head", "--block", "--num-cpus=2",
                    f"--port={free_port()}", f"--dashboard-port={port}",
                    f"--dashboard-agent-listen-port={free_port()}",
                    "--dashboard-host=127.0.0.1", f"--temp-dir={folder}/s",
                    "--disable-usage-stats",
                ],
                env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}", environment
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def submitted(
    head: tuple[str, dict[str, str]], options: Sequence[str | Path], *words: str | Path
) -> subprocess.CompletedProcess[str]:
    """What came of a job that is a sweep. options: of `ray job submit`; words: of the sweep."""
    address, environment = head
    for _ in range(30):
        done = subprocess.run(
            [
                BIN / "ray", "job", "submit", "--address", address, "--working-dir", ROOT, *options,
                "--", "python", "-m", "raymlc.tune", "--address", "auto", *words,
            ],
            env=environment, capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip
        if "No available agent" not in done.stdout + done.stderr:
            break
        time.sleep(1)  # the dashboard answers before the agent that starts jobs
    return done


@pytest.mark.slow
def test_a_sweep_runs_as_a_job_on_a_cluster_and_goes_on_when_it_was_stopped(
    head: tuple[str, dict[str, str]], drawn: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "job"
    place: list[str | Path] = ["--output", folder.parent, "--name", folder.name]
    begun = submitted(
        head, ["--no-wait", "--submission-id", "first"], "--data", drawn,
        "--space", ROOT / "search_spaces" / "demo.py", "--set", "epochs=24", "--trials", "2",
        "--cache", tmp_path / "cache", *place,
    )  # fmt: skip
    assert begun.returncode == 0, begun.stdout + begun.stderr
    events = folder / "events.jsonl"

    def told(event: str) -> list[int]:
        lines = events.read_text().splitlines() if events.exists() else []
        return [line["trial"] for line in map(json.loads, lines) if line["event"] == event]

    deadline = time.monotonic() + 300
    while not told("epoch"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    address, environment = head
    stop: list[str | Path] = [BIN / "ray", "job", "stop", "--address", address, "first"]
    subprocess.run(stop, env=environment, timeout=100, check=True, capture_output=True)
    before = told("trial_ended")
    assert len(before) < 2

    done = submitted(head, [], "--resume", *place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "best trial:" in done.stdout
    assert (folder / "summary.csv").is_file()
    assert sorted(told("trial_ended")) == [0, 1]
    for number in (0, 1):
        history = load_history(trial_folder(folder, number) / "last")
        epochs = [row["epoch"] for row in history]
        assert epochs == list(range(1, len(epochs) + 1))
