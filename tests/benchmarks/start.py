"""What stands between two trials: from one's last epoch to the next one's first step.

Command:   python tests/benchmarks/start.py --data DIR [--trials N]

Three sweeps of the same trials, one at a time, on the first rows of a table of photos: raymlc's in
its own warm processes, raymlc's in Ray TorchTrainers, and the plain recipe of `peer.py`. What is
told is the time from a trial's last epoch to the next one's first, less the time of that trial's
second epoch, which is an epoch and nothing else. A first trial starts from nothing, and is told
apart, with reading the table and decoding.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.rounds import processor, spread
from tests.benchmarks.sweep import Run, ours, part, plain


def gaps(run: Run) -> list[float]:
    """Seconds before the first step of every trial; of the first one, from the sweep's start."""
    trials: dict[str, list[float]] = {}
    for ended, _, trial in sorted(run.epochs):
        trials.setdefault(trial, []).append(ended)
    before, waited = 0.0, []
    for ends in trials.values():
        waited.append(ends[0] - before - (ends[1] - ends[0]))
        before = ends[-1]
    return waited


def tell(name: str, waited: Sequence[float], least: float | None) -> float:
    """Print a row of the table; the median of all but the first."""
    first, *later = waited
    median = statistics.median(later)
    share = "" if least is None else f"{median / least:.2f}"
    print(f"| {name} | {first:.1f} | {spread(list(later))} | {len(later)} | {share} |", flush=True)
    return median


def main() -> None:
    """Measure the three on the photos of one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train.csv, val.csv")
    parser.add_argument("--trials", type=int, default=6)
    options = parser.parse_args()
    options.seed, options.concurrency, options.loader_workers = 0, 1, 0
    options.backbone = "test_efficientnet"
    shared = {
        "backbone": options.backbone, "weights": "", "image_size": 64, "epochs": 2,
        "batch_size": 64,
    }  # fmt: skip
    alike = ["--sampler", "random", "--pruner", "none"]
    print(f"{processor()}; seconds to a trial's first step")
    print("| where | first trial | the others | n | share of the plain recipe's |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        data = part(options.data, Path(name) / "data", {"train": 512, "val": 128})
        theirs = plain(data, Path(name) / "plain", options, shared, ["--grace", "2"])
        least = tell("plain recipe, TorchTrainer", gaps(theirs), None)
        for place, others in {"process": alike, "torch": [*alike, "--trainer", "torch"]}.items():
            run = ours(data, Path(name) / place, options, shared, others)
            tell(f"raymlc, --trainer {place}", gaps(run), least)


if __name__ == "__main__":
    main()
