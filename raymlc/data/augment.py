"""Augmentation of whole batches, on the device that trains.

What happens to which image is drawn on the host, so that a GPU is never waited for; only the images
of an operation pass through it, and all geometry of an image is one resampling. Shapes: B images,
C = 3 channels, H and W pixels, M images that are mixed into one, 33 a matrix of geometry.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymlc.data.color import apply_colors
from raymlc.data.device import on_device, parts_of
from raymlc.data.erasing import erase_
from raymlc.data.geometry import crops, flips, moves, resample
from raymlc.data.policy import Steps, augmix, autoaugment, color_jitter, no_steps, randaugment
from raymlc.trial import TrialConfig

_View = Callable[
    [
        Tensor,
        Steps,
        NDArray[np.float64],
        Literal["bilinear", "bicubic"],
        Callable[[Tensor], Tensor],
    ],
    Tensor,
]


def augment(
    pixels_BCHW: Tensor, config: TrialConfig, normalize: Callable[[Tensor], Tensor]
) -> Tensor:
    """The batch after every augmentation of single images that `config` asks for.

    pixels_BCHW: uint8, left as they are. normalize: uint8 images as normalised float32 ones.
    Returns normalised float32 images, channels last in memory.

    The colour operations of an image are done first, in their order; then its geometric ones, the
    crop and the flips, as one resampling: what leaves the image in one operation is not lost if the
    next brings it back. The images that AugMix mixes are cropped, flipped and jittered alike.
    All is a function of the state of torch's default generators. On the CPU, OpenCV does it where
    it is installed: the same draws, on pixels that are rounded a little otherwise.
    """
    batch, _, height, width = pixels_BCHW.shape
    device = pixels_BCHW.device
    rng = np.random.default_rng(torch.randint(2**62, (2,), device="cpu").numpy())
    shares_BM, mixed = _policy(rng, batch, config)
    if config.color_jitter > 0:
        jitter = color_jitter(rng, batch, config.color_jitter)
        mixed = [steps.then(jitter) for steps in mixed]
    frame_B33 = crops(rng, batch, config.crop_min_area, config.crop_max_ratio) @ flips(
        rng, batch, config.hflip_prob, config.vflip_prob
    )
    matrices = [moves(steps, height, width) @ frame_B33 for steps in mixed]
    view = _fastest_view(device.type)
    views = (
        view(pixels_BCHW, steps, matrices_B33, config.interpolation, normalize)
        for steps, matrices_B33 in zip(mixed, matrices, strict=True)
    )
    images_BCHW = next(views)
    if len(mixed) > 1:
        shares_MB111 = on_device(shares_BM.T.astype(np.float32)[..., None, None, None], device)
        images_BCHW.mul_(shares_MB111[0])
        for view_BCHW, share_B111 in zip(views, shares_MB111[1:], strict=True):
            images_BCHW.addcmul_(view_BCHW, share_B111)
    if config.erasing_prob > 0:
        erase_(images_BCHW, rng, config.erasing_prob, config.erasing_mode, config.erasing_count)
    return images_BCHW


def batched_view(
    pixels_BCHW: Tensor,
    steps: Steps,
    matrices_B33: NDArray[np.float64],
    interpolation: Literal["bilinear", "bicubic"],
    normalize: Callable[[Tensor], Tensor],
) -> Tensor:
    """The images after the colour operations of `steps`, seen as the matrices show them.

    pixels_BCHW: uint8, on any device. Returns normalised float32 images, channels last in memory.
    """
    colored_BCHW = apply_colors(pixels_BCHW, steps)
    images_BCHW = torch.empty_like(
        pixels_BCHW, dtype=torch.float32, memory_format=torch.channels_last
    )
    for part in parts_of(pixels_BCHW, 0, len(pixels_BCHW)):
        images_BCHW[part] = resample(
            normalize(colored_BCHW[part]), matrices_B33[part], interpolation
        )
    return images_BCHW


@lru_cache
def _fastest_view(device: str) -> _View:
    """`batched_view`, or on the CPU OpenCV's, where that can be imported. device: its type."""
    if device != "cpu":
        return batched_view
    from raymlc.data import warp  # OpenCV takes a moment to import, and is only needed here

    return batched_view if warp.cv2 is None else warp.view


def _policy(
    rng: np.random.Generator, batch: int, config: TrialConfig
) -> tuple[NDArray[np.float64], list[Steps]]:
    """What is mixed into each image: shares (B, M) that sum to 1, and M lists of operations."""
    if config.augmix:
        return augmix(rng, batch)
    if config.autoaugment:
        steps = autoaugment(rng, batch)
    elif config.randaug_ops:
        steps = randaugment(
            rng,
            batch,
            config.randaug_ops,
            config.randaug_magnitude,
            config.randaug_std,
            config.randaug_color,
        )
    else:
        steps = no_steps(batch)
    return np.ones((batch, 1)), [steps]
