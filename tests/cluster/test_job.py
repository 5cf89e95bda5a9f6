"""A sweep as a job on a running cluster, submitted as the README says."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

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


@pytest.mark.slow
def test_a_sweep_runs_as_a_job_on_a_cluster(
    head: tuple[str, dict[str, str]], drawn: Path, tmp_path: Path
) -> None:
    address, environment = head
    for _ in range(30):
        done = subprocess.run(
            [
                BIN / "ray", "job", "submit", "--address", address, "--working-dir", ROOT, "--",
                "python", "-m", "raymlc.tune", "--address", "auto", "--data", drawn,
                "--space", ROOT / "search_spaces" / "demo.py", "--set", "epochs=2",
                "--trials", "2", "--output", tmp_path / "runs", "--name", "job",
                "--cache", tmp_path / "cache",
            ],
            env=environment, capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip
        if "No available agent" not in done.stdout + done.stderr:
            break
        time.sleep(1)  # the dashboard answers before the agent that starts jobs
    assert done.returncode == 0, done.stdout + done.stderr
    assert "best trial:" in done.stdout
    assert (tmp_path / "runs" / "job" / "summary.csv").is_file()
