"""An epoch from the store against one from JPEG files, as timm's training script does it.

Command:   python tests/benchmarks/epoch.py --data DIR [--images N] [--repeats N] [--large]

DIR is a table of photos, whose first --images training rows are taken. Both train the same network
with crops, flips, RandAugment as `rand-m9-mstd0.5` and erasing, AdamP, EMA, channels last, batches
of 64. The plain recipe (`peer.py`) has two threads and the best of 0, 1 and 2 loader processes,
which is found first; raymlc has no loader process and one thread, half of the cores, or two, and a
process set up as its commands do that. The floor is the backbone's own arithmetic in such a
process, forward and backward on a batch in memory, on one thread. A round is an epoch of each, in
turns, by the clock; the first is left out. --large: copies of the photos of 300 x 400, at 128.
"""

import argparse
import csv
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timm
import torch

from raymlc.data.batches import training_batches
from raymlc.data.store import open_split
from raymlc.data.table import Split, read_table
from raymlc.door import SPINS
from raymlc.labels import Labels
from raymlc.model.loss import HeadLosses
from raymlc.training.evaluate import Workers
from raymlc.training.memory import keep_freed_memory
from raymlc.training.state import Training
from raymlc.training.step import Learner
from raymlc.trial import TrialConfig
from tests.benchmarks.input import CPU, LARGE, MEAN, STD, jpegs
from tests.benchmarks.peer import Training as PlainTraining
from tests.benchmarks.rounds import paired, processor, ratios, spread

BACKBONES = ("test_efficientnet", "efficientnet_b0")

Epoch = Callable[[], None]
Seconds = Callable[[], float]  # does an epoch, and tells how long it took by the clock


@contextmanager
def side(make: Callable[[], Epoch], threads: int, spins: str | None) -> Iterator[Seconds]:
    """What `make` returns, in a process of its own. Raises EOFError if that fails."""
    connection, theirs = multiprocessing.Pipe()
    # A process reads it when it loads OpenMP.
    os.environ.pop("GOMP_SPINCOUNT", None)
    if spins is not None:
        os.environ["GOMP_SPINCOUNT"] = spins
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(make, threads, theirs))
    process.start()
    theirs.close()

    def seconds() -> float:
        connection.send(None)
        return float(connection.recv())

    try:
        yield seconds
    finally:
        connection.close()
        process.join()


def _serve(make: Callable[[], Epoch], threads: int, asked: Connection) -> None:
    torch.set_num_threads(threads)
    epoch = make()
    while True:
        try:
            asked.recv()
        except EOFError:
            return
        start = time.perf_counter()
        epoch()
        asked.send(time.perf_counter() - start)


def plain(config: dict[str, Any]) -> Epoch:
    """An epoch of the plain recipe's."""
    return PlainTraining(config).epoch


def ours(labels: Labels, split: Split, config: TrialConfig, cache: Path) -> Epoch:
    """An epoch of raymlc's."""
    keep_freed_memory()
    train = open_split(split, config.image_size, cache)
    training = Training(config, labels, CPU)
    learner = Learner(training, HeadLosses(config, labels, train.targets, CPU), Workers())
    epochs = iter(range(config.epochs))

    def epoch() -> None:
        learner.begin_epoch()
        for batch in training_batches(train, config, training.normalization, CPU, next(epochs)):
            learner.step(batch)

    return epoch


def part(data: Path, folder: Path, images: int, size: tuple[int, int] | None) -> Path:
    """A table of the first rows of another, its images copied, and scaled if a size is given."""
    split = read_table(data).splits["train"].take(range(images))
    copied = jpegs(split, folder / "images", size)
    with (data / "train.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    place = header.index("image_path")
    for row, path in zip(rows, copied.images, strict=False):
        row[place] = f"images/{path.name}"
    for name, count in {"train": images, "val": 64}.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows[:count]])
    return folder


def compare(data: Path, cache: Path, backbone: str, image_size: int, repeats: int) -> None:
    """Print the images a second of both sides."""
    config = TrialConfig(
        backbone=backbone, pretrained=False, image_size=image_size, epochs=99,
        randaug_ops=2, erasing_prob=0.25,
    )  # fmt: skip
    shared = {
        "data": str(data), "backbone": backbone, "weights": "", "image_size": image_size,
        "batch_size": 64, "epochs": 99, "lr": config.lr, "drop_rate": config.drop_rate,
        "drop_path_rate": 0.0, "auto_augment": "rand-m9-mstd0.5", "re_prob": 0.25,
    }  # fmt: skip
    table = read_table(data)
    train = table.splits["train"]
    steps = len(train) // config.batch_size
    tried = {}
    for workers in (0, 1, 2):
        with side(partial(plain, {**shared, "loader_workers": workers}), 2, None) as seconds:
            seconds()
            tried[workers] = seconds()
    best = min(tried, key=tried.__getitem__)
    own = partial(ours, table.labels, train, config, cache)
    alone = partial(network_alone, config, steps)
    with (
        side(partial(plain, {**shared, "loader_workers": best}), 2, None) as plain_2,
        side(own, 1, SPINS) as ours_1,
        side(own, 2, SPINS) as ours_2,
        side(alone, 1, SPINS) as alone_1,
    ):
        sides = {
            "plain, 2 threads": plain_2,
            "ours, 1 thread": ours_1,
            "ours, 2 threads": ours_2,
            "the network alone, 1 thread": alone_1,
        }
        spent = paired(sides, repeats)
    for name, own_spent in spent.items():
        faster = ratios(spent, "plain, 2 threads", name)
        print(
            f"| {backbone} | {image_size} | {name} |"
            f" {steps * config.batch_size / statistics.median(own_spent):.0f} | {spread(faster)} |",
            flush=True,
        )
    print(f"| {backbone} | {image_size} | loader processes of plain: {best}; n = {repeats} | | |")


def network_alone(config: TrialConfig, steps: int, keeps_memory: bool = True) -> Epoch:
    """So many times forward and backward through the backbone alone, with one random batch."""
    if keeps_memory:
        keep_freed_memory()
    model = timm.create_model(config.backbone, num_classes=0).to(memory_format=torch.channels_last)
    images_BCHW = torch.rand(config.batch_size, 3, config.image_size, config.image_size)
    images_BCHW = images_BCHW.to(memory_format=torch.channels_last)

    def epoch() -> None:
        for _ in range(steps):
            model(images_BCHW).square().mean().backward()
            model.zero_grad(set_to_none=True)

    return epoch


def main() -> None:
    """Measure both networks on the photos of one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train.csv")
    parser.add_argument("--images", type=int, default=2000, help="training rows")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count")
    parser.add_argument("--large", action="store_true", help="photos of 300 x 400, at 128 pixels")
    options = parser.parse_args()
    print(f"{processor()}; normalised by {MEAN}, {STD}")
    print("| network | pixels | who | images/s | times plain's, median [range] |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        size = LARGE if options.large else None
        data = part(options.data, Path(name) / "data", options.images, size)
        for backbone in BACKBONES:
            compare(data, Path(name), backbone, 128 if options.large else 64, options.repeats)


if __name__ == "__main__":
    main()
