"""A toy data set in memory, whose labels can be seen in its pixels.

Shapes: N rows, H and W pixels, C = 3 channels.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from raymlc.data.store import ImageSplit
from raymlc.labels import Labels
from raymlc.trial import TrialConfig

COLORS = ("blue", "green", "red")
SIDES = ("bottom", "top")


@pytest.fixture(scope="session")
def labels() -> Labels:
    """Two single-label heads and a multi-hot one."""
    return Labels.learn({"color": COLORS, "side": SIDES, "tags": ["dim|noisy"]})


@pytest.fixture(scope="session")
def make_split(labels: Labels) -> Callable[..., ImageSplit]:
    """make_split(rows, seed, image_size=32, missing=0.15): images, and labels with empty cells.

    The color is the strongest channel, the side is the brighter half, "dim" images are dark and
    "noisy" ones are strewn with random pixels.
    """

    def make(rows: int, seed: int, image_size: int = 32, missing: float = 0.15) -> ImageSplit:
        random = np.random.default_rng(seed)
        color_N, side_N = random.integers(0, 3, rows), random.integers(0, 2, rows)
        dim_N, noisy_N = random.integers(0, 2, (2, rows)).astype(bool)
        shape = (rows, image_size, image_size, 3)
        images_NHWC = random.uniform(0, 60, shape)
        images_NHWC[np.arange(rows), :, :, 2 - color_N] += 120
        for row, side in enumerate(side_N):
            half = slice(0, image_size // 2) if side else slice(image_size // 2, None)
            images_NHWC[row, half] += 60
        images_NHWC *= np.where(dim_N, 0.4, 1.0)[:, None, None, None]
        strewn = (random.random(shape) < 0.2) & noisy_N[:, None, None, None]
        images_NHWC = np.where(strewn, random.uniform(0, 255, shape), images_NHWC)
        tags = [
            "|".join(name for name, on in (("dim", dim), ("noisy", noisy)) if on) or "|"
            for dim, noisy in zip(dim_N, noisy_N, strict=True)
        ]
        cells = {
            "color": [COLORS[number] for number in color_N],
            "side": [SIDES[number] for number in side_N],
            "tags": tags,
        }
        for column in cells.values():
            for row in np.flatnonzero(random.random(rows) < missing).tolist():
                column[row] = ""
        return ImageSplit(images_NHWC.astype(np.uint8), np.arange(rows), labels.encode(cells))

    return make


@pytest.fixture(scope="session")
def train(make_split: Callable[..., ImageSplit]) -> ImageSplit:
    """44 rows: two steps of 16 in an epoch, and some left over."""
    return make_split(44, seed=1)


@pytest.fixture(scope="session")
def val(make_split: Callable[..., ImageSplit]) -> ImageSplit:
    """21 rows, which no batch size below them divides but 3 and 7."""
    return make_split(21, seed=2)


@pytest.fixture(scope="session")
def config() -> TrialConfig:
    """A small trial with batch norm, dropout, augmentation and a moving average."""
    return TrialConfig(
        backbone="test_efficientnet",
        pretrained=False,
        image_size=32,
        batch_size=16,
        epochs=2,
        drop_rate=0.2,
        drop_path_rate=0.1,
        erasing_prob=0.3,
    )


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sums in one order, and no fight for the cores of whoever runs the tests."""
    torch.set_num_threads(1)
