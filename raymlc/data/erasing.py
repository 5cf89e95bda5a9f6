"""Random erasing (arXiv:1708.04896) of normalised batches.

Shapes: B images, C channels, H and W pixels, G images that are erased in part, N pixels of all
images, K rectangles of an image, or candidates for one.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymlc.data.device import on_device
from raymlc.data.geometry import first_fit, rectangles

_AREAS = (0.02, 1 / 3)  # of all of an image's rectangles, as shares of the image
_MAX_RATIO = 1 / 0.3


def erase_(
    images_BCHW: Tensor,
    rng: np.random.Generator,
    prob: float,
    mode: Literal["pixel", "color", "zero"],
    count: int,
) -> None:
    """Erase rectangles of random images, in place.

    images_BCHW: normalised, channels last in memory. prob: the share of images that are erased in
        part. mode: a rectangle holds a normal value for each pixel and channel, one for each
        channel, or 0. count: an image gets from 1 to this many rectangles, alike likely; each
        covers 2 % to 33 % of the image, divided by their number, with an aspect ratio (of a
        square image) log-uniform in [0.3, 1 / 0.3], and is left out if 10 candidates do not fit.
    Places and colours come from rng; noise, from the default generator of the images' device, which
    `torch.manual_seed` seeds too.
    """
    chosen_G = np.flatnonzero(rng.random(len(images_BCHW)) < prob)
    channels, height, width = images_BCHW.shape[1:]
    number_N = _rectangles(rng, len(chosen_G), count, height, width).ravel()
    erased_N = np.flatnonzero(number_N > 0)  # of booleans: four times as fast
    image_N = erased_N // (height * width)
    place_N = erased_N + (chosen_G - np.arange(len(chosen_G)))[image_N] * (height * width)
    device = images_BCHW.device
    shape = (len(place_N), channels)
    if mode == "pixel":
        value_NC = torch.randn(shape, dtype=torch.float32, device=device)
    elif mode == "color":
        color_GKC = rng.standard_normal((len(chosen_G), count, channels), np.float32)
        value_NC = on_device(color_GKC[image_N, number_N[erased_N] - 1], device)
    else:
        value_NC = torch.zeros(shape, dtype=torch.float32, device=device)
    flat_NC = images_BCHW.permute(0, 2, 3, 1).view(-1, channels)
    flat_NC.index_copy_(0, on_device(place_N, device), value_NC)


def _rectangles(
    rng: np.random.Generator, batch: int, count: int, height: int, width: int
) -> NDArray[np.uint8]:
    """For each pixel of each image the number of the last rectangle that covers it; 0 for none."""
    covered_GHW = np.zeros((batch, height, width), np.uint8)
    number_G = rng.integers(1, count + 1, batch)
    row_H, column_W = np.arange(height), np.arange(width)
    for number in range(1, count + 1):
        height_GK, width_GK = rectangles(rng, batch, _AREAS, _MAX_RATIO)
        shrunk_G1 = np.sqrt(number_G)[:, None]
        height_GK = np.rint(height_GK / shrunk_G1 * height)
        width_GK = np.rint(width_GK / shrunk_G1 * width)
        fits_GK = (height_GK < height) & (width_GK < width)
        height_G = first_fit(height_GK, fits_GK, otherwise=0.0)
        width_G = first_fit(width_GK, fits_GK, otherwise=0.0)
        top_G1 = np.floor(rng.random(batch) * (height - height_G + 1))[:, None]
        left_G1 = np.floor(rng.random(batch) * (width - width_G + 1))[:, None]
        rows_GH = (row_H >= top_G1) & (row_H < top_G1 + height_G[:, None])
        columns_GW = (column_W >= left_G1) & (column_W < left_G1 + width_G[:, None])
        rows_GH &= (number <= number_G)[:, None]
        np.copyto(covered_GHW, np.uint8(number), where=rows_GH[:, :, None] & columns_GW[:, None, :])
    return covered_GHW
