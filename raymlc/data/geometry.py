"""Crops, flips and geometric operations, composed into one resampling of each image.

A matrix takes a place in the result to the place in the image that is seen there, both as (x, y, 1)
with the image spanning [-1, 1] either way. What happens to an image first stands leftmost in a
product. Shapes: B images, S operations of an image, G those of all images that move it, C channels,
H and W pixels, K candidates of a random rectangle, 33 a matrix.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from raymlc.data.device import on_device
from raymlc.data.policy import GEOMETRIC_OPS, Op, Steps

Array = NDArray[np.float64]

CANDIDATES = 10  # rectangles drawn for an image; the first that fits is taken


def crops(rng: np.random.Generator, batch: int, min_area: float, max_ratio: float) -> Array:
    """Matrices of random resized crops (arXiv:1409.4842), as torchvision draws them.

    A crop covers from the share min_area to all of a square image, with an aspect ratio log-uniform
    in [1 / max_ratio, max_ratio]; an image whose candidates all stick out stays whole.
    """
    height_BK, width_BK = rectangles(rng, batch, (min_area, 1.0), max_ratio)
    fits_BK = (height_BK <= 1) & (width_BK <= 1)
    height_B = first_fit(height_BK, fits_BK, otherwise=1.0)
    width_B = first_fit(width_BK, fits_BK, otherwise=1.0)
    matrices_B33 = _identities(batch)
    matrices_B33[:, 0, 0] = width_B
    matrices_B33[:, 1, 1] = height_B
    matrices_B33[:, 0, 2] = rng.uniform(-1, 1, batch) * (1 - width_B)
    matrices_B33[:, 1, 2] = rng.uniform(-1, 1, batch) * (1 - height_B)
    return matrices_B33


def flips(rng: np.random.Generator, batch: int, hflip_prob: float, vflip_prob: float) -> Array:
    """Matrices that mirror images left to right, and top to bottom, with these probabilities."""
    matrices_B33 = _identities(batch)
    matrices_B33[rng.random(batch) < hflip_prob, 0, 0] = -1
    matrices_B33[rng.random(batch) < vflip_prob, 1, 1] = -1
    return matrices_B33


def moves(steps: Steps, height: int, width: int) -> Array:
    """Matrices of the geometric operations of `steps`, in their order; others are passed over."""
    matrices_SB33 = _identities(steps.ops_BS.size).reshape(*steps.ops_BS.T.shape, 3, 3)
    place_G, image_G = np.nonzero(GEOMETRIC_OPS[0] <= steps.ops_BS.T)
    ops_G, args_G = steps.ops_BS[image_G, place_G], steps.args_BS[image_G, place_G]
    turn_G, right_G, down_G, across_G, along_G = (
        np.where(ops_G == int(op), args_G, 0.0)
        for op in (Op.ROTATE, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y)
    )
    cos_G, sin_G = np.cos(np.radians(turn_G)), np.sin(np.radians(turn_G))
    move_G33 = _identities(len(ops_G))
    move_G33[:, 0, 0] = move_G33[:, 1, 1] = cos_G
    move_G33[:, 0, 1] = (right_G - sin_G) * height / width
    move_G33[:, 1, 0] = (down_G + sin_G) * width / height
    move_G33[:, 0, 2] = right_G * height / width + 2 * across_G
    move_G33[:, 1, 2] = down_G * width / height + 2 * along_G
    matrices_SB33[place_G, image_G] = move_G33
    return reduce(np.matmul, matrices_SB33, _identities(len(steps.ops_BS)))


def central(batch: int, share: float) -> Array:
    """Matrices that keep the central part of images; share: of each side."""
    matrices_B33 = _identities(batch)
    matrices_B33[:, 0, 0] = matrices_B33[:, 1, 1] = share
    return matrices_B33


def resample(
    images_BCHW: Tensor, matrices_B33: Array, interpolation: Literal["bilinear", "bicubic"]
) -> Tensor:
    """The images as the matrices show them; the same tensor if none changes anything.

    What lies beyond an image's edge is 0: the mean colour, where images are normalised. timm fills
    so, and no object is seen twice, as mirrored at the edge it would be. Bicubic values may
    overshoot those of the image.
    """
    batch, _, height, width = images_BCHW.shape
    if (matrices_B33 == np.eye(3)).all():
        return images_BCHW
    device = images_BCHW.device
    lines_23B11 = matrices_B33[:, :2].transpose(1, 2, 0)[..., None, None].astype(np.float32)
    column_W, row_H = (
        (torch.arange(size, dtype=torch.float32, device=device) + 0.5) * (2 / size) - 1
        for size in (width, height)
    )
    # The places' x and y as two planes: on a CPU far faster than pairs of them.
    shape = (2, batch, height, width)
    planes_2BHW = torch.empty(shape, dtype=torch.float32, device=device)
    for plane_BHW, line_3B11 in zip(planes_2BHW, on_device(lines_23B11, device), strict=True):
        torch.add(
            line_3B11[0] * column_W, line_3B11[1] * row_H[:, None] + line_3B11[2], out=plane_BHW
        )
    seen_BCHW = functional.grid_sample(
        images_BCHW,
        planes_2BHW.permute(1, 2, 3, 0),
        interpolation,
        padding_mode="border",
        align_corners=False,
    )
    if beyond(matrices_B33, height, width).any():
        x_BHW, y_BHW = planes_2BHW.abs_()
        seen_BCHW.mul_(torch.maximum(x_BHW, y_BHW).le_(1)[:, None])
    return seen_BCHW


def rectangles(
    rng: np.random.Generator, batch: int, areas: tuple[float, float], max_ratio: float
) -> tuple[Array, Array]:
    """Heights and widths of candidates, as shares of the image's: (B, K) each.

    areas: uniform between these shares; aspect ratios, as a square image has them, log-uniform in
        [1 / max_ratio, max_ratio].
    """
    area_BK = rng.uniform(*areas, (batch, CANDIDATES))
    most = math.log(max_ratio)
    ratio_BK = np.exp(rng.uniform(-most, most, area_BK.shape))
    return np.sqrt(area_BK / ratio_BK), np.sqrt(area_BK * ratio_BK)


def first_fit(sizes_BK: Array, fits_BK: NDArray[np.bool_], otherwise: float) -> Array:
    """The size of each image's first candidate that fits, `otherwise` where none does."""
    first_B = fits_BK.argmax(1)
    rows_B = np.arange(len(sizes_BK))
    return np.where(fits_BK.any(1), sizes_BK[rows_B, first_B], otherwise)


def beyond(matrices_B33: Array, height: int, width: int) -> NDArray[np.bool_]:
    """Which results hold a pixel whose centre is outside of the image."""
    reach_B2 = np.abs(matrices_B33[:, :2, :2]) @ np.array([1 - 1 / width, 1 - 1 / height])
    return np.asarray((reach_B2 + np.abs(matrices_B33[:, :2, 2]) > 1).any(1))


def _identities(batch: int) -> Array:
    return np.broadcast_to(np.eye(3), (batch, 3, 3)).copy()
