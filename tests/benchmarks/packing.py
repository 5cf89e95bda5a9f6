"""How many images a second one, two and four trials train together on this machine.

Command:   python tests/benchmarks/packing.py [--backbone NAME] [--seconds S] [--repeats N]
                                              [--device cpu]

Each trial is a process that trains steps of a network at 64 pixels, batch 64, on random images, as
a trial of a sweep does: with one thread, set as a sweep sets it. They begin together, and what
counts is what each trains within the same seconds. A round has one, two and four trials, under the
OpenMP settings as they are and under ones that would spoil it (8 threads that spin). After that, a
single training with a thread for each core, alone and beside a process that keeps one core busy,
with threads that wait as OpenMP has it and as raymlc's commands have it.

Where there is a GPU, it is of one, four and eight trials on that, and nothing else: with
efficientnet_b0 what `--trials-per-gpu` of a sweep is worth. CUDA's MPS is used if it runs.
"""

import argparse
import itertools
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np
import torch

from raymlc.data.batches import Batch, training_batches
from raymlc.data.store import ImageSplit
from raymlc.door import SPINS
from raymlc.labels import Labels
from raymlc.model.loss import HeadLosses
from raymlc.training.evaluate import Workers
from raymlc.training.memory import keep_freed_memory
from raymlc.training.state import Training
from raymlc.training.step import Learner
from raymlc.trial import TrialConfig
from tests.benchmarks.input import CPU
from tests.benchmarks.rounds import processor, spread

COUNTS = {"cpu": (1, 2, 4), "cuda": (1, 4, 8)}
BACKBONES = {"cpu": "test_efficientnet", "cuda": "efficientnet_b0"}
SPOILING = {"OMP_NUM_THREADS": "8", "OMP_WAIT_POLICY": "ACTIVE"}


def trial(
    backbone: str, device: torch.device, threads: int, seconds: float, begin: Barrier, rates: Any
) -> None:
    """Train for some seconds once all have come; tell the images a second."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    rng = np.random.default_rng(0)
    images_NHWC = rng.integers(0, 256, (64 * 100, 64, 64, 3), dtype=np.uint8)
    cells = [str(one) for one in rng.integers(0, 10, len(images_NHWC))]
    labels = Labels.learn({"digit": cells})
    targets = labels.encode({"digit": cells})
    config = TrialConfig(backbone=backbone, pretrained=False, image_size=64, epochs=99)
    data = ImageSplit(images_NHWC, np.arange(len(images_NHWC)), targets)
    training = Training(config, labels, device)
    learner = Learner(training, HeadLosses(config, labels, targets, device), Workers())
    learner.begin_epoch()
    batches = endless(data, training, config)
    for _ in range(3):
        learner.step(next(batches))
    finish(device)
    begin.wait()
    start, steps = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        learner.step(next(batches))
        steps += 1
    finish(device)
    rates.put(steps * config.batch_size / (time.monotonic() - start))


def endless(data: ImageSplit, training: Training, config: TrialConfig) -> Iterator[Batch]:
    """Batches of one epoch after another."""
    for epoch in itertools.count():
        yield from training_batches(data, config, training.normalization, training.device, epoch)


def finish(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def together(
    count: int, backbone: str, seconds: float, threads: int = 1, device: torch.device = CPU
) -> float:
    """Images a second of so many trials at the same time. threads: of each."""
    processes = multiprocessing.get_context("spawn")
    begin, rates = processes.Barrier(count), processes.Queue()
    running = [
        processes.Process(target=trial, args=(backbone, device, threads, seconds, begin, rates))
        for _ in range(count)
    ]
    for process in running:
        process.start()
    total: float = sum(rates.get() for _ in running)
    for process in running:
        process.join()
    return total


def beside(backbone: str, seconds: float, repeats: int) -> None:
    """Print what one training with all cores does alone and beside a busy process."""
    cores = os.cpu_count() or 1
    print("| threads that wait | alone, images/s | beside a busy process | n |")
    print("|---|---|---|---|")
    for name, settings in {"OpenMP's": {}, "raymlc's": {"GOMP_SPINCOUNT": SPINS}}.items():
        for variable in ("GOMP_SPINCOUNT", *SPOILING):
            os.environ.pop(variable, None)
        os.environ.update(settings)
        alone, shared = [], []
        for _ in range(repeats):
            alone.append(together(1, backbone, seconds, cores))
            with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
                shared.append(together(1, backbone, seconds, cores))
                busy.kill()
        print(f"| {name} | {spread(alone, 0)} | {spread(shared, 0)} | {repeats} |", flush=True)


def main() -> None:
    """Run rounds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backbone")
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=sorted(COUNTS), default="cuda" if has_gpu else "cpu")
    options = parser.parse_args()
    device, counts = torch.device(options.device), COUNTS[options.device]
    backbone = options.backbone or BACKBONES[options.device]
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    print(f"{on}, {os.cpu_count()} cores; {backbone}, n = {options.repeats}")
    print("| OpenMP | trials | images/s of all | times one trial's |")
    print("|---|---|---|---|")
    kinds: dict[str, dict[str, str]] = {"as it is": {}}
    if device.type == "cpu":
        kinds["spoilt"] = SPOILING
    for name, settings in kinds.items():
        os.environ.update(settings)
        rates: dict[int, list[float]] = {count: [] for count in counts}
        for _ in range(options.repeats):
            for count in counts:
                rate = together(count, backbone, options.seconds, device=device)
                rates[count].append(rate)
        for count in counts:
            ratios = [all_ / one for all_, one in zip(rates[count], rates[1], strict=True)]
            images = statistics.median(rates[count])
            print(f"| {name} | {count} | {images:.0f} | {spread(ratios)} |", flush=True)
    if device.type == "cpu":
        beside(backbone, options.seconds, options.repeats)


if __name__ == "__main__":
    main()
