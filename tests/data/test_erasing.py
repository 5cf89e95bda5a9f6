"""Erased batches have the distribution of timm's and torchvision's erased images.

Shapes: B images, C channels, H and W pixels, N samples or pixels.
"""

import math
import random
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from raymlc.data.erasing import erase_

SIDE = 32
Mode = Literal["pixel", "color", "zero"]
Samples = NDArray[np.float64]


def erased(
    batch: int,
    prob: float = 1.0,
    mode: Mode = "zero",
    count: int = 1,
    side: int = SIDE,
    seed: int = 0,
) -> Tensor:
    """Images of nothing but 9, of which some are erased in part."""
    torch.manual_seed(seed)
    nines_BCHW = torch.full((batch, 3, side, side), 9.0).contiguous(
        memory_format=torch.channels_last
    )
    erase_(nines_BCHW, np.random.default_rng(seed), prob, mode, count)
    return nines_BCHW


def masks(images_BCHW: Tensor) -> NDArray[np.bool_]:
    """Which pixels are erased; the same ones in every channel."""
    erased_BCHW = (images_BCHW != 9).numpy()
    assert (erased_BCHW == erased_BCHW[:, :1]).all()
    masks_BHW: NDArray[np.bool_] = erased_BCHW[:, 0]
    return masks_BHW


def reference(batch: int, count: int, side: int) -> NDArray[np.bool_]:
    """The same of timm's."""
    random.seed(0)
    erase = RandomErasing(1.0, mode="const", max_count=count, device="cpu")
    return masks(torch.stack([erase(torch.full((3, side, side), 9.0)) for _ in range(batch)]))


def sides(masks_BHW: NDArray[np.bool_]) -> tuple[Samples, Samples]:
    """Heights and widths of each image's rectangle."""
    return masks_BHW.any(2).sum(1).astype(float), masks_BHW.any(1).sum(1).astype(float)


@pytest.mark.parametrize("mode", ["pixel", "color", "zero"])
def test_no_image_is_erased_with_probability_0(mode: Mode) -> None:
    assert not masks(erased(50, prob=0.0, mode=mode)).any()


def test_what_is_erased_once_is_one_rectangle_inside_each_image() -> None:
    masks_BHW = masks(erased(500))
    rows_BH, columns_BW = masks_BHW.max(2), masks_BHW.max(1)
    assert (masks_BHW == (rows_BH[:, :, None] & columns_BW[:, None, :])).all()
    for lines_BL in (rows_BH, columns_BW):
        # A rectangle's rows, or columns, begin once and end once.
        padded_BL = np.pad(lines_BL, ((0, 0), (1, 1))).astype(int)
        assert (np.abs(np.diff(padded_BL, axis=1)).sum(1) == 2).all()
        assert not lines_BL.all(1).any()


@pytest.mark.parametrize("side", [16, 40])
def test_rectangles_have_timms_sizes_and_places(
    assert_one_distribution: Callable[[Samples, Samples], None], side: int
) -> None:
    ours_BHW, theirs_BHW = masks(erased(4000, side=side)), reference(2000, 1, side)
    (ours_h_N, ours_w_N), (theirs_h_N, theirs_w_N) = sides(ours_BHW), sides(theirs_BHW)
    assert_one_distribution(ours_h_N, theirs_h_N)
    assert_one_distribution(ours_w_N, theirs_w_N)
    assert_one_distribution(ours_h_N * ours_w_N, theirs_h_N * theirs_w_N)
    assert_one_distribution(ours_h_N / ours_w_N, theirs_h_N / theirs_w_N)
    for axis in (1, 2):
        ours_N, theirs_N = (
            masks_BHW.any(axis).argmax(1).astype(float) for masks_BHW in (ours_BHW, theirs_BHW)
        )
        assert_one_distribution(ours_N, theirs_N)


@pytest.mark.parametrize("count", [2, 5])
def test_several_rectangles_share_the_area_as_timms_do(
    assert_one_distribution: Callable[[Samples, Samples], None], count: int
) -> None:
    ours_N = masks(erased(4000, count=count)).mean((1, 2))
    assert_one_distribution(ours_N, reference(2000, count, SIDE).mean((1, 2)))


@pytest.mark.parametrize("prob", [0.3, 1.0])
def test_the_share_of_erased_images_is_the_asked_one(prob: float) -> None:
    share = masks(erased(2000, prob)).any((1, 2)).mean()
    assert abs(share - prob) <= 4 * math.sqrt(prob * (1 - prob) / 2000)


@pytest.mark.parametrize("count", [1, 3])
def test_zero_fills_with_the_mean(count: int) -> None:
    images_BCHW = erased(50, mode="zero", count=count)
    assert ((images_BCHW == 0) | (images_BCHW == 9)).all()
    assert (images_BCHW == 0).flatten(1).any(1).all()


def test_pixel_fills_with_normal_noise_for_each_pixel_and_channel() -> None:
    images_BCHW = erased(200, mode="pixel")
    pixels_NC = images_BCHW.permute(0, 2, 3, 1)[torch.from_numpy(masks(images_BCHW))]
    assert len(pixels_NC) > 20_000
    assert pixels_NC.mean().abs() < 0.02
    assert (pixels_NC.std() - 1).abs() < 0.02
    assert len(np.unique(pixels_NC)) > 0.9 * pixels_NC.numel()
    correlation_CC = np.corrcoef(pixels_NC.T)
    assert np.abs(correlation_CC - np.eye(3)).max() < 0.03


def test_color_fills_each_rectangle_with_one_normal_value_a_channel() -> None:
    images_BCHW = erased(1000, mode="color")
    colors = []
    for image_CHW, mask_HW in zip(images_BCHW, masks(images_BCHW), strict=True):
        pixels_CN = image_CHW[:, torch.from_numpy(mask_HW)]
        assert (pixels_CN == pixels_CN[:, :1]).all()
        colors.append(pixels_CN[:, 0])
    colors_NC = torch.stack(colors)
    assert colors_NC.mean().abs() < 0.08
    assert (colors_NC.std() - 1).abs() < 0.05
    assert np.abs(np.corrcoef(colors_NC.T) - np.eye(3)).max() < 0.15


def test_each_of_several_rectangles_has_its_own_color() -> None:
    images_BCHW = erased(300, mode="color", count=3)
    numbers = [len(np.unique(image_CHW[0])) - 1 for image_CHW in images_BCHW]
    # One may hide another.
    assert {1, 2, 3} == set(numbers)
    assert abs(np.mean(numbers) - 2) < 0.2


def test_one_seed_erases_alike() -> None:
    first_BCHW, same_BCHW, other_BCHW = (erased(8, 0.5, "pixel", 2, seed=s) for s in (1, 1, 2))
    assert torch.equal(first_BCHW, same_BCHW)
    assert not torch.equal(first_BCHW, other_BCHW)
