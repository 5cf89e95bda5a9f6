"""How costs grow: of the store and of an epoch with the rows, of a sweep with its trials.

Command:   python -m tests.benchmarks.growth --data DIR [--rows N …] [--trials N …] [--packed N …]

Three tables, each with the cost a piece, which is a constant where growth is linear:
    rows     of the first --rows training rows of DIR at 64 pixels: to decode them into a store, to
             open it again, and an epoch of `test_efficientnet`, batch 64, one thread. Runs that are
             short are repeated: three times up to 5,000 rows.
    trials   what the driver of a sweep does for its trials, 16 at a time, with the study in a
             journal and all that it writes, and no training (`search/long.py`); n = 3
    packed   memory of a sweep that trains so many trials at a time, each with half a core, on the
             first 2,000 rows: PSS of all its processes, which counts a page that k of them share
             as 1/k in each; once every trial has ended an epoch, read three times, 2 s apart
CPU-seconds are this process's; by the clock, others on the machine count, too. Linux only.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import optuna
import torch

from raymlc.data.store import open_split
from raymlc.data.table import Split, Table, read_table
from raymlc.trial import TrialConfig
from tests.benchmarks.epoch import ours
from tests.benchmarks.load import ROOT, below
from tests.benchmarks.rounds import processor, spread
from tests.benchmarks.search.long import sweep
from tests.benchmarks.sweep import part

PIXELS, BATCH = 64, 64
SHORT = 5000  # rows: up to as many a run is repeated
SPACE = """
from raymlc.trial import TrialConfig

def space(trial):
    return TrialConfig(
        backbone="test_efficientnet", pretrained=False, image_size=64, batch_size=64, epochs=100,
        lr=trial.suggest_float("lr", 1e-4, 1e-3, log=True),
    )
"""


def spent(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of CPU that one call takes."""
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - cpu


def repeated(work: Callable[[], object], times: int) -> tuple[list[float], list[float]]:
    """Seconds by the clock, and of CPU, of each call."""
    clocks, cpus = zip(*(spent(work) for _ in range(times)), strict=True)
    return list(clocks), list(cpus)


def in_folders(work: Callable[[Path], object], times: int) -> tuple[list[float], list[float]]:
    """Seconds by the clock, and of CPU, of each call with an empty folder."""
    clocks, cpus = [], []
    for _ in range(times):
        with tempfile.TemporaryDirectory() as name:
            clock, cpu = spent(partial(work, Path(name)))
        clocks.append(clock)
        cpus.append(cpu)
    return clocks, cpus


def rows_table(table: Table, counts: Sequence[int]) -> None:
    """Print what rows cost."""
    print(
        "| rows | store: seconds | CPU-s | µs of CPU a row | bytes a row | open again: ms"
        " | µs a row | epoch: seconds | CPU-s | µs of CPU a row | n |"
    )
    print("|" + "---|" * 11)
    for count in counts:
        rows_row(table, table.splits["train"].take(range(min(count, len(table.splits["train"])))))


def rows_row(table: Table, split: Split) -> None:
    """Print what the rows of one split cost."""
    config = TrialConfig(
        backbone="test_efficientnet", pretrained=False, image_size=PIXELS, batch_size=BATCH,
        epochs=99, randaug_ops=2, erasing_prob=0.25,
    )  # fmt: skip
    rows, times = len(split), 3 if len(split) <= SHORT else 1
    stores, stores_cpu = in_folders(lambda cache: open_split(split, PIXELS, cache), times)
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)
        open_split(split, PIXELS, cache)
        held = sum(file.stat().st_size for file in cache.iterdir())
        _, opens = repeated(lambda: open_split(split, PIXELS, cache), 3)
        epoch = ours(table.labels, split, config, cache)
        if times > 1:
            epoch()  # the first one warms up
        epochs, epochs_cpu = repeated(epoch, times)
    trained = rows // BATCH * BATCH
    print(
        f"| {rows} | {told(stores)} | {told(stores_cpu)} | {a_piece(stores_cpu, rows):.0f}"
        f" | {held / rows:.0f} | {told([1000 * one for one in opens])} | {a_piece(opens, rows):.0f}"
        f" | {told(epochs)} | {told(epochs_cpu)} | {a_piece(epochs_cpu, trained):.0f} | {times} |",
        flush=True,
    )


def trials_table(counts: Sequence[int]) -> None:
    """Print what trials cost their driver."""
    print("| trials | seconds | CPU-s | ms of CPU a trial | n |")
    print("|---|---|---|---|---|")
    for count in counts:
        clocks, cpus = in_folders(partial(sweep, trials=count, concurrency=16, rows=()), times=3)
        cost = f"{a_piece(cpus, count) / 1000:.1f}"
        print(f"| {count} | {told(clocks)} | {told(cpus)} | {cost} | {len(cpus)} |", flush=True)


def packed_table(data: Path, counts: Sequence[int]) -> None:
    """Print what trials at a time take of memory."""
    print("| trials at a time | all, MiB | of it the trials' | more than with fewer, a trial | n |")
    print("|---|---|---|---|---|")
    before = 0, 0.0
    for count in counts:
        readings = packed(data, count)
        total = statistics.median(all_ for all_, _ in readings)
        more = f"{(total - before[1]) / (count - before[0]):.0f}" if before[0] else ""
        print(
            f"| {count} | {spread([all_ for all_, _ in readings], 0)}"
            f" | {spread([own for _, own in readings], 0)} | {more} | {len(readings)} |",
            flush=True,
        )
        before = count, total


def packed(data: Path, count: int) -> list[tuple[float, float]]:
    """MiB of all processes of a sweep, and of those that train, three times."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "space.py").write_text(SPACE)
        process = subprocess.Popen(
            [
                sys.executable, "-m", "raymlc.tune", "--data", str(data),
                "--space", str(folder / "space.py"), "--trials", str(count), "--pruner", "none",
                "--concurrency", str(count), "--cpus-per-worker", "0.5",
                "--output", str(folder), "--cache", str(folder / "cache"), "--name", "packed",
            ],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
        )  # fmt: skip
        events = folder / "packed" / "events.jsonl"
        try:
            while not events.exists() or len(begun(events)) < count:
                if process.poll() is not None:
                    raise SystemExit(f"the sweep ended with exit code {process.returncode}")
                time.sleep(1)
            readings = []
            for _ in range(3):
                time.sleep(2)
                shares = {pid: pss(pid) for pid in {process.pid, *below(process.pid)}}
                own = sum(share for pid, share in shares.items() if trains(pid))
                readings.append((sum(shares.values()), own))
        finally:
            process.terminate()
            process.wait()
    return readings


def begun(events: Path) -> set[str]:
    """The trials that have ended an epoch."""
    lines = [line for line in events.read_text().splitlines() if '"event": "epoch"' in line]
    return {line.partition('"trial": ')[2].partition(",")[0] for line in lines}


def pss(pid: int) -> float:
    """MiB of memory that a process holds, its share of what others hold, too."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended meanwhile
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def trains(pid: int) -> bool:
    """Whether a process is one that trains a trial."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return command.startswith(b"ray::") and not command.startswith(b"ray::IDLE")


def a_piece(values: list[float], count: int) -> float:
    """Of so many, the median in microseconds."""
    return 1e6 * statistics.median(values) / count


def told(values: list[float]) -> str:
    """Median and range; a single value as it is."""
    return spread(values) if len(values) > 1 else f"{values[0]:.2f}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train.csv, val.csv")
    parser.add_argument("--rows", type=int, nargs="*", default=[1000, 4000, 16_000, 32_000])
    parser.add_argument("--trials", type=int, nargs="*", default=[10, 50, 100])
    parser.add_argument("--packed", type=int, nargs="*", default=[1, 2, 4])
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    print(f"{processor()}, {os.cpu_count()} cores; load {os.getloadavg()[0]:.0f} at the start")
    if options.packed:
        with tempfile.TemporaryDirectory() as name:
            data = part(options.data, Path(name) / "data", {"train": 2000, "val": 200})
            packed_table(data, options.packed)
    if options.trials:
        trials_table(options.trials)
    if options.rows:
        rows_table(read_table(options.data), options.rows)


if __name__ == "__main__":
    main()
