"""A whole sweep by raymlc and by the plain recipe, on the same photos: time to the same accuracy.

Command:   python tests/benchmarks/sweep.py --data DIR [--trials N] [--repeats N]

DIR is a table of photos, of which the first rows are taken. The plain recipe is `peer.py`. Both
search lr, drop_rate and drop_path_rate over the same ranges, train the same network on the same
rows for as many epochs, and have the machine to themselves, two trials at a time; raymlc runs with
its defaults, and its images are decoded within its time. A round is a sweep of each, in turns, with
a seed of its own. Two times are told, from the start of the process: to the end, and to the first
epoch whose val/accuracy is at least the best that the plain recipe came to in that round.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.peer import REPORTS
from tests.benchmarks.rounds import processor

ROOT = Path(__file__).parents[2]
SPACE = """
from raymlc.trial import TrialConfig

def space(trial):
    return TrialConfig(
        lr=trial.suggest_float("lr", 3e-4, 1e-2, log=True),
        drop_rate=trial.suggest_float("drop_rate", 0.0, 0.5),
        drop_path_rate=trial.suggest_float("drop_path_rate", 0.0, 0.3),
        normalization="imagenet",
    )
"""


@dataclass(frozen=True)
class Run:
    """A sweep: its seconds; each epoch's end, in seconds from its start, its accuracy and trial."""

    seconds: float
    epochs: list[tuple[float, float, str]]

    @property
    def best(self) -> float:
        """The highest val/accuracy of any epoch."""
        return max(accuracy for _, accuracy, _ in self.epochs)

    def reached(self, accuracy: float) -> float | None:
        """Seconds to the first epoch that was as good."""
        return next((time for time, value, _ in sorted(self.epochs) if value >= accuracy), None)


def run(command: list[str], log: Path) -> tuple[float, float]:
    """Start and seconds of a process that has to succeed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.time()
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, check=False,
            stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(log.read_text()[-4000:])
    return start, time.time() - start


def ours(
    data: Path,
    folder: Path,
    options: argparse.Namespace,
    shared: dict[str, Any],
    others: Sequence[str] = (),
) -> Run:
    """A sweep by raymlc. others: options of its own."""
    folder.mkdir()
    space = folder / "space.py"
    space.write_text(SPACE)
    settings = [
        f"{name}={json.dumps(value)}" for name, value in shared.items() if name != "backbone"
    ]
    settings = [text.replace('"', "") for text in settings]
    start, seconds = run(
        [
            "-m", "raymlc.tune", "--data", str(data), "--space", str(space), "--name", "sweep",
            "--output", str(folder), "--cache", str(folder / "cache"), "--seed", str(options.seed),
            "--trials", str(options.trials), "--concurrency", str(options.concurrency),
            *others, "--set", f"backbone={options.backbone}", "pretrained=false", *settings,
        ],
        folder / "log",
    )  # fmt: skip
    epochs = []
    for line in (folder / "sweep" / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "epoch":
            ended = datetime.fromisoformat(event["time"]).timestamp() - start
            epochs.append((ended, event["metrics"]["val/accuracy"], str(event["trial"])))
    return Run(seconds, epochs)


def plain(
    data: Path,
    folder: Path,
    options: argparse.Namespace,
    shared: dict[str, Any],
    others: Sequence[str] = (),
) -> Run:
    """A sweep by the plain recipe. others: options of its own."""
    folder.mkdir()
    shared = {**shared, "data": str(data), "loader_workers": options.loader_workers}
    start, seconds = run(
        [
            "-m", "tests.benchmarks.peer", "--folder", str(folder), "--seed", str(options.seed),
            "--trials", str(options.trials), "--concurrency", str(options.concurrency),
            *others, "--trial", json.dumps(shared),
        ],
        folder / "log",
    )  # fmt: skip
    lines = map(json.loads, (folder / REPORTS).read_text().splitlines())
    return Run(seconds, [(line["time"] - start, line["accuracy"], line["trial"]) for line in lines])


def part(data: Path, folder: Path, rows: dict[str, int]) -> Path:
    """A table of the first rows of another, with its images."""
    folder.mkdir()
    (folder / "images").symlink_to((data / "images").resolve(), target_is_directory=True)
    for name, count in rows.items():
        lines = (data / f"{name}.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"{name}.csv").write_text("".join(lines[: count + 1]), encoding="utf-8")
    return folder


def main() -> None:
    """Run rounds and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--data", type=Path, required=True, help="a folder with train.csv, val.csv, images/"
    )
    parser.add_argument("--train", type=int, default=2000, help="training rows")
    parser.add_argument("--val", type=int, default=500, help="validation rows")
    parser.add_argument("--backbone", default="test_efficientnet")
    parser.add_argument(
        "--weights", default="", help="file of the backbone's; default: random ones"
    )
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument(
        "--loader-workers", type=int, default=0, help="of the plain recipe's loaders"
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    options = parser.parse_args()
    shared = {
        "backbone": options.backbone, "weights": options.weights, "image_size": options.image_size,
        "epochs": options.epochs, "batch_size": 64,
    }  # fmt: skip
    print(f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(
        "| seed | plain | its best | raymlc | its best | plain to its best | raymlc to it | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|")
    ratios, wholes = [], []
    with tempfile.TemporaryDirectory() as name:
        data = part(options.data, Path(name) / "data", {"train": options.train, "val": options.val})
        for seed in range(options.repeats):
            options.seed = seed
            sides = {"plain": plain, "ours": ours}
            found = {
                side: sides[side](data, Path(name) / f"{side}{seed}", options, shared)
                for side in sorted(sides, reverse=bool(seed % 2))
            }
            their, our = found["plain"], found["ours"]
            slow, fast = their.reached(their.best), our.reached(their.best)
            assert slow is not None
            wholes.append(their.seconds / our.seconds)
            if fast is not None:
                ratios.append(slow / fast)
            told = "never" if fast is None else f"{fast:.0f} s"
            ratio = "" if fast is None else f"{slow / fast:.1f}"
            print(
                f"| {seed} | {their.seconds:.0f} s | {their.best:.4f} | {our.seconds:.0f} s"
                f" | {our.best:.4f} | {slow:.0f} s | {told} | {ratio} |",
                flush=True,
            )
    for what, values in (("all of a sweep", wholes), ("the same accuracy", ratios)):
        if values:
            print(
                f"{what}: {statistics.median(values):.1f} [{min(values):.1f}–{max(values):.1f}]"
                f" times faster (n = {len(values)})"
            )


if __name__ == "__main__":
    main()
