"""A thousand trivial trials, sixteen at a time: what a sweep takes of its machine, and gives back.

Command:   python tests/benchmarks/load.py [--trials N] [--concurrency N]

A sweep of one-epoch trials of a small network on 64 drawn pictures. While it runs, its own process
is looked at: memory, open files, and the processes below it; a row is printed after each tenth of
the trials. At the end nothing below it may be left. Linux only: it reads /proc.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from raymlc.data.demo import draw_demo
from tests.benchmarks.rounds import processor

ROOT = Path(__file__).parents[2]
SPACE = """
from raymlc.trial import TrialConfig

def space(trial):
    return TrialConfig(
        backbone="test_efficientnet", pretrained=False, image_size=32, batch_size=32, epochs=1,
        warmup_epochs=0.1, ema_decay=0.0, lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True),
        drop_rate=trial.suggest_float("drop_rate", 0.0, 0.5),
    )
"""


def parents() -> dict[int, int]:
    """Every process that runs, with the one that began it."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if fields[0] != "Z":
            found[int(path.parent.name)] = int(fields[1])
    return found


def below(pid: int) -> set[int]:
    """The processes that one began, and those that these did."""
    begun = parents()
    found, more = set[int](), {pid}
    while more:
        more = {child for child, parent in begun.items() if parent in more}
        found |= more
    return found


def resident(pid: int) -> float:
    """MiB of memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Run the sweep and print what it takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=16)
    options = parser.parse_args()
    share = (os.cpu_count() or 1) / options.concurrency
    print(f"{processor()}, {os.cpu_count()} cores; {options.concurrency} trials at a time")
    print("| trials ended | seconds | driver, MiB | its open files | processes below it |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_demo(folder / "data", rows=64)
        (folder / "space.py").write_text(SPACE)
        start = time.monotonic()
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [
                    sys.executable, "-m", "raymlc.tune", "--data", str(folder / "data"),
                    "--space", str(folder / "space.py"), "--trials", str(options.trials),
                    "--concurrency", str(options.concurrency), "--cpus-per-worker", f"{share:.4f}",
                    "--output", str(folder), "--cache", str(folder / "cache"), "--name", "load",
                ],
                cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        events, told, seen = folder / "load" / "events.jsonl", 0, set[int]()
        while process.poll() is None:
            time.sleep(2)
            ended = events.read_text().count('"trial_ended"') if events.exists() else 0
            children = below(process.pid)
            seen |= children
            if children and ended >= told:
                files = len(os.listdir(f"/proc/{process.pid}/fd"))
                took = time.monotonic() - start
                memory = resident(process.pid)
                print(
                    f"| {ended} | {took:.0f} | {memory:.0f} | {files} | {len(children)} |",
                    flush=True,
                )
                told += options.trials // 10
        took = time.monotonic() - start
        deadline = time.monotonic() + 30
        while (left := seen & parents().keys()) and time.monotonic() < deadline:
            time.sleep(1)
        print(f"exit code {process.returncode} after {took:.0f} s; processes left: {len(left)}")
        if process.returncode:
            raise SystemExit((folder / "log").read_text()[-4000:])


if __name__ == "__main__":
    main()
