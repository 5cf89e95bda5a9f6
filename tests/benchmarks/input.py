"""What the training input costs in CPU-seconds, against timm's `create_loader` on the JPEG files.

Command:   python tests/benchmarks/input.py --data DIR [--images N] [--repeats N]

DIR is a table as raymlc reads it, of real photos: its first --images training rows are taken.
    small   the JPEG files as they are, at 64 pixels
    large   copies of them, scaled to 300 x 400 and saved as JPEG of quality 90, at 128 pixels
Both sides crop, flip, do RandAugment as `rand-m9-mstd0.5` and erase with noise, with the same
probabilities, and give normalised float32 batches. Ours come from the store, which is decoded once,
beforehand: that cost is told beside it. timm's loader has no worker processes, so that its
CPU-seconds are its own. Both have one thread. A round is a pass over all images by both, one after
the other, the order swapped each time; the first round is left out.

Before that: the share of the input in the steps of an efficientnet_b0 at 64 pixels, which also
brings the heap into the state of a process that trains. After it: how fast random rows are gathered
from a store at 224 pixels, next to a plain copy of as many bytes to one place.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import PIL
import timm
import torch
import torchvision
from PIL import Image, features
from timm.data import ImageDataset, create_loader

from raymlc.data import warp
from raymlc.data.batches import Batch, Normalization, training_batches
from raymlc.data.device import images_on_device
from raymlc.data.store import ImageSplit, open_split
from raymlc.data.table import Split, read_table
from raymlc.labels import Labels
from raymlc.model.loss import HeadLosses
from raymlc.training.evaluate import Workers
from raymlc.training.state import Training
from raymlc.training.step import Learner
from raymlc.trial import TrialConfig
from tests.benchmarks.rounds import cpu_seconds, paired, processor, ratios, spread

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POLICY = TrialConfig(pretrained=False, randaug_ops=2, erasing_prob=0.25)
STEPS = 8  # of an epoch of which the input's share is told
LARGE = (300, 400)  # width and height, which the photos have upright


def exhaust(batches: Iterable[object]) -> None:
    """Take all batches and drop them."""
    for _ in batches:
        pass


def jpegs(split: Split, folder: Path, size: tuple[int, int] | None) -> Split:
    """Copies of a split's photos in one folder, as timm reads them; size: scaled to it."""
    folder.mkdir(parents=True)
    paths = tuple(folder / f"{place:06d}.jpg" for place in range(len(split)))
    for source, path in zip(split.images, paths, strict=True):
        if size is None:
            path.write_bytes(source.read_bytes())
        else:
            with Image.open(source) as image:
                image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
    return Split(split.csv, split.rows, paths, split.targets)


def timm_batches(folder: Path, config: TrialConfig) -> Iterable[object]:
    """timm's loader with the policy of `config`; its normalisation is done in whole batches."""
    loader: Iterable[object] = create_loader(
        ImageDataset(str(folder)),
        input_size=config.image_size,
        batch_size=config.batch_size,
        is_training=True,
        re_prob=config.erasing_prob,
        re_mode=config.erasing_mode,
        re_count=config.erasing_count,
        scale=(config.crop_min_area, 1.0),
        ratio=(1 / config.crop_max_ratio, config.crop_max_ratio),
        hflip=config.hflip_prob,
        color_jitter=0.0,
        auto_augment="rand-m9-mstd0.5",
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=0,
        persistent_workers=False,
        device=CPU,
    )
    return loader


def compare(name: str, split: Split, config: TrialConfig, folder: Path, repeats: int) -> None:
    """Print the images that each side makes in a CPU-second."""
    decoded: list[ImageSplit] = []
    once = cpu_seconds(lambda: decoded.append(open_split(split, config.image_size, folder)))
    (data,) = decoded
    theirs = timm_batches(split.images[0].parents[1], config)
    epochs = iter(range(1 + repeats))
    seconds = paired(
        {
            "ours": lambda: cpu_seconds(
                lambda: exhaust(
                    training_batches(data, config, Normalization(MEAN, STD), CPU, next(epochs))
                )
            ),
            "timm": lambda: cpu_seconds(lambda: exhaust(theirs)),
        },
        repeats,
    )
    made = len(data) // config.batch_size * config.batch_size
    rates = {side: [made / spent for spent in values] for side, values in seconds.items()}
    with Image.open(split.images[0]) as image:
        width, height = image.size
    print(
        f"| {name}: {width} x {height} JPEG to {config.image_size} | {spread(rates['ours'], 0)}"
        f" | {spread(rates['timm'], 0)} | {spread(ratios(seconds, 'timm', 'ours'))} | {repeats}"
        f" | {len(data) / once:.0f} |",
        flush=True,
    )


def gather(folder: Path, repeats: int) -> None:
    """Print how fast random rows of a mapped file are gathered, next to a copy of rows in order."""
    shape, batch = (512, 224, 224, 3), 64
    path = folder / "gather.npy"
    stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    stored[:] = np.random.default_rng(0).integers(0, 256, (1, *shape[1:]), dtype=np.uint8)
    images_NHWC = np.load(path, mmap_mode="r")
    rows = np.random.default_rng(1).permutation(len(images_NHWC)).reshape(-1, batch)
    copied_BHWC = np.empty((batch, *shape[1:]), np.uint8)

    def copy() -> None:
        for start in range(0, len(images_NHWC), batch):
            np.copyto(copied_BHWC, images_NHWC[start : start + batch])

    def take() -> None:
        exhaust(images_on_device(images_NHWC, some, CPU) for some in rows)

    seconds = paired(
        {"copy": lambda: cpu_seconds(copy), "gather": lambda: cpu_seconds(take)}, repeats
    )
    shares = ratios(seconds, "copy", "gather")
    rate = stored.nbytes / 2**30 / statistics.median(seconds["gather"])
    print(
        f"gather from the store at 224 pixels: {spread(shares)} of the speed of a copy in memory,"
        f" {rate:.1f} GiB a CPU-second (n = {repeats})"
    )


def timed(batches: Iterator[Batch], spent: list[float]) -> Iterator[Batch]:
    """The batches; the CPU-seconds of each are added to `spent`."""
    while True:
        start = time.process_time()
        batch = next(batches, None)
        spent.append(time.process_time() - start)
        if batch is None:
            return
        yield batch


def share_of_step(labels: Labels, data: ImageSplit, config: TrialConfig, repeats: int) -> None:
    """Print the share of the input in the CPU-seconds of epochs."""
    training = Training(config, labels, CPU)
    learner = Learner(training, HeadLosses(config, labels, data.targets, CPU), Workers())
    learner.begin_epoch()
    shares = []
    for epoch in range(1 + repeats):
        spent: list[float] = []
        batches = training_batches(data, config, training.normalization, CPU, epoch)
        before = time.process_time()
        for batch in timed(batches, spent):
            learner.step(batch)
        shares.append(100 * sum(spent) / (time.process_time() - before))
    print(
        f"share of the input in a step of {config.backbone} at {config.image_size} pixels,"
        f" batch {config.batch_size}: {spread(shares[1:])} %"
        f" (n = {repeats} epochs of {len(data) // config.batch_size} steps)"
    )


def main() -> None:
    """Measure all on the photos of one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="a table of photos")
    parser.add_argument("--images", type=int, default=1024, help="of the table, for each pass")
    parser.add_argument("--repeats", type=int, default=7, help="rounds that count")
    options = parser.parse_args()
    torch.set_num_threads(1)
    opencv = "without OpenCV"
    if warp.cv2 is not None:
        warp.cv2.setNumThreads(1)
        opencv = f"OpenCV {warp.cv2.__version__}"
    print(
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, {opencv};"
        f" timm {timm.__version__}, Pillow {PIL.__version__} (libjpeg {features.version('jpg')});"
        f" {processor()}, one thread"
    )
    table = read_table(options.data)
    least = STEPS * POLICY.batch_size
    if not least <= options.images <= len(table.splits["train"]):
        parser.error(
            f"--images must be at least {least:,}, and at most the {len(table.splits['train']):,}"
            f" training rows of {options.data}, but is {options.images}"
        )
    split = table.splits["train"].take(range(options.images))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = jpegs(split, folder / "small" / "all", None)
        large = jpegs(split, folder / "large" / "all", LARGE)
        config = POLICY.replace({"image_size": 64})
        data = open_split(split.take(range(STEPS * config.batch_size)), 64, folder)
        share_of_step(table.labels, data, config, options.repeats)
        print("| photos | ours, images a CPU-second | timm's | ratio | n | decoded, a CPU-second |")
        print("|---|---|---|---|---|---|")
        compare("small", small, config, folder, options.repeats)
        compare("large", large, POLICY.replace({"image_size": 128}), folder, options.repeats)
        gather(folder, options.repeats)


if __name__ == "__main__":
    main()
