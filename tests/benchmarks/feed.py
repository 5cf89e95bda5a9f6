"""What it costs to feed the device that trains, next to batches that lie on it already.

Command:   python tests/benchmarks/feed.py [--backbone NAME] [--image-size PIXELS] [--batch-size N]
                                           [--steps N] [--repeats N] [--device cuda|cpu] [--compile]

The same steps (forward, backward, AdamP, moving average, in the device's own precision) are taken
    resident    on batches that were made beforehand and lie on the device
    store       on batches from a mapped store of as many random images, only normalised
    augmented   on batches from it with random resized crop, flip, RandAugment and erasing
A round is a stretch of steps of each, one after the other, the order swapped each time; the first
one is left out. Beside the images a second stands how many cores the process kept busy. On a GPU,
where the answer matters, efficientnet_b0 at 224 pixels is the default; on a CPU a small network.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch

from raymlc.data.batches import Batch
from raymlc.data.store import ImageSplit
from raymlc.labels import Labels
from raymlc.model.loss import HeadLosses
from raymlc.training.evaluate import Workers
from raymlc.training.memory import keep_freed_memory
from raymlc.training.state import Training
from raymlc.training.step import Learner
from raymlc.trial import TrialConfig
from tests.benchmarks.packing import endless, finish
from tests.benchmarks.rounds import paired, processor, ratios, spread

DEFAULTS = {"cuda": ("efficientnet_b0", 224, 256), "cpu": ("test_efficientnet", 64, 64)}
CLASSES = {"gender": 5, "article": 116, "color": 45}
RESIDENT = 4  # batches
AUGMENTED = {"randaug_ops": 2, "erasing_prob": 0.25}


def stored(folder: Path, image_size: int, rows: int) -> tuple[Labels, ImageSplit]:
    """A store of random images with random labels of three heads."""
    rng = np.random.default_rng(0)
    path, shape = folder / "images.npy", (rows, image_size, image_size, 3)
    filled = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    for image_HWC in filled:
        image_HWC[:] = rng.integers(0, 256, shape[1:], dtype=np.uint8)
    filled.flush()
    cells = {
        head: [str(label) for label in rng.integers(0, count, rows)]
        for head, count in CLASSES.items()
    }
    labels = Labels.learn(cells)
    images_NHWC = np.load(path, mmap_mode="r")
    return labels, ImageSplit(images_NHWC, np.arange(rows), labels.encode(cells))


def seconds_of(steps: int, batches: Iterator[Batch], learner: Learner, spent: list[float]) -> float:
    """Seconds of so many steps; those of all cores are added to `spent`."""
    finish(learner.training.device)
    start, cpu = time.perf_counter(), time.process_time()
    for batch in itertools.islice(batches, steps):
        learner.step(batch)
    finish(learner.training.device)
    spent.append(time.process_time() - cpu)
    return time.perf_counter() - start


def main() -> None:
    """Print a table."""
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=sorted(DEFAULTS), default="cuda" if has_gpu else "cpu")
    parser.add_argument("--backbone", help="default: efficientnet_b0, on a CPU test_efficientnet")
    parser.add_argument("--image-size", type=int, help="pixels; default: 224, on a CPU 64")
    parser.add_argument("--batch-size", type=int, help="default: 256, on a CPU 64")
    parser.add_argument("--steps", type=int, default=30, help="of a stretch")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count")
    parser.add_argument("--compile", action="store_true", help="the network, by torch.compile")
    options = parser.parse_args()
    backbone, image_size, batch_size = DEFAULTS[options.device]
    config = TrialConfig(
        backbone=options.backbone or backbone,
        pretrained=False,
        image_size=options.image_size or image_size,
        batch_size=options.batch_size or batch_size,
        compile=options.compile,
    )
    keep_freed_memory()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    on = torch.cuda.get_device_name() if device.type == "cuda" else processor()
    print(
        f"{on}; torch {torch.__version__}, timm {timm.__version__}; {config.backbone},"
        f" {config.image_size} px, batch {config.batch_size}, n = {options.repeats}"
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = 2 * max(options.steps, RESIDENT) * config.batch_size
        labels, data = stored(Path(folder), config.image_size, rows)
        measure(data, labels, config, device, options.steps, options.repeats)


def measure(
    data: ImageSplit,
    labels: Labels,
    config: TrialConfig,
    device: torch.device,
    steps: int,
    repeats: int,
) -> None:
    """Print the images a second of each kind of batches."""
    training = Training(config, labels, device)
    learner = Learner(training, HeadLosses(config, labels, data.targets, device), Workers())
    learner.begin_epoch()
    kinds = {
        "store": endless(data, training, config.replace({"augment": False})),
        "augmented": endless(data, training, config.replace(AUGMENTED)),
    }
    kinds["resident"] = itertools.cycle(list(itertools.islice(kinds["augmented"], RESIDENT)))
    spent: dict[str, list[float]] = {kind: [] for kind in kinds}
    sides: dict[str, Callable[[], float]] = {
        kind: partial(seconds_of, steps, batches, learner, spent[kind])
        for kind, batches in kinds.items()
    }
    seconds = paired(sides, repeats)
    print("| batches | images/s | share of the speed of resident ones | cores |")
    print("|---|---|---|---|")
    for kind in ("resident", "store", "augmented"):
        rates = [steps * config.batch_size / one for one in seconds[kind]]
        busy = [cpu / wall for cpu, wall in zip(spent[kind][1:], seconds[kind], strict=True)]
        shares = spread(ratios(seconds, "resident", kind))
        print(f"| {kind} | {spread(rates, 0)} | {shares} | {spread(busy)} |", flush=True)


if __name__ == "__main__":
    main()
