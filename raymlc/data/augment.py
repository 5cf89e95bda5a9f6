"""Augmentation of whole batches, on the device that trains.

Shapes: B images, C = 3 channels, H and W pixels, K candidates of a random rectangle. Random numbers
come from torch's default generator of the images' device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

_CANDIDATES = 10  # rectangles drawn an image; the first that fits is taken


def crop_and_flip(images_BCHW: Tensor, min_area: float, hflip_prob: float) -> Tensor:
    """Random resized crops, some mirrored, in one bilinear resampling. Float images.

    min_area: a crop covers from this share to all of the image, its aspect ratio log-uniform in
        [3/4, 4/3] (as arXiv:1409.4842); an image whose candidates all stick out stays whole.
    hflip_prob: the share of images that are mirrored left to right.
    """
    batch = len(images_BCHW)
    device = images_BCHW.device
    height_B, width_B = _rectangles(batch, (min_area, 1.0), 4 / 3, device)
    whole_B = height_B == 0
    height_B = torch.where(whole_B, 1.0, height_B)
    width_B = torch.where(whole_B, 1.0, width_B)
    # In grid_sample's coordinates the image spans [-1, 1], so a free margin of 1 - size moves the
    # centre by as much either way.
    centre_y_B = (2 * torch.rand(batch, device=device) - 1) * (1 - height_B)
    centre_x_B = (2 * torch.rand(batch, device=device) - 1) * (1 - width_B)
    mirror_B = 1.0 - 2.0 * (torch.rand(batch, device=device) < hflip_prob)
    affine_B23 = torch.zeros(batch, 2, 3, device=device)
    affine_B23[:, 0, 0] = width_B * mirror_B
    affine_B23[:, 0, 2] = centre_x_B
    affine_B23[:, 1, 1] = height_B
    affine_B23[:, 1, 2] = centre_y_B
    size = list(images_BCHW.shape)
    grid_BHW2 = functional.affine_grid(affine_B23, size, align_corners=False)
    return functional.grid_sample(
        images_BCHW, grid_BHW2, padding_mode="reflection", align_corners=False
    )


def erase(images_BCHW: Tensor, prob: float) -> Tensor:
    """Random erasing (arXiv:1708.04896): in a share `prob` of the images a rectangle of noise.

    Normalised images; the rectangle covers 2 % to 33 % of the area, with an aspect ratio
    log-uniform in [0.3, 1/0.3], and holds a normal value for each pixel and channel.
    """
    batch, _, height, width = images_BCHW.shape
    device = images_BCHW.device
    height_B, width_B = _rectangles(batch, (0.02, 1 / 3), 1 / 0.3, device)
    top_B = torch.rand(batch, device=device) * (1 - height_B)
    left_B = torch.rand(batch, device=device) * (1 - width_B)
    row_H = (torch.arange(height, device=device) + 0.5) / height
    column_W = (torch.arange(width, device=device) + 0.5) / width
    rows_BH = (row_H >= top_B[:, None]) & (row_H < (top_B + height_B)[:, None])
    columns_BW = (column_W >= left_B[:, None]) & (column_W < (left_B + width_B)[:, None])
    chosen_B = torch.rand(batch, device=device) < prob
    erased_B1HW = (chosen_B[:, None, None] & rows_BH[:, :, None] & columns_BW[:, None, :])[:, None]
    return torch.where(erased_B1HW, torch.randn_like(images_BCHW), images_BCHW)


def randaugment(images_BCHW: Tensor, ops: int, magnitude: int) -> Tensor:
    """RandAugment (arXiv:1909.13719) of each uint8 image: `ops` operations of one strength.

    Colour operations are among them, so a head that names colours pays for it.
    """
    one = v2.RandAugment(num_ops=ops, magnitude=magnitude)
    return torch.stack([one(image_CHW) for image_CHW in images_BCHW])


def _rectangles(
    batch: int, areas: tuple[float, float], max_ratio: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Heights and widths of random rectangles as shares of the image; 0 where none fits."""
    area_BK = torch.empty(batch, _CANDIDATES, device=device).uniform_(*areas)
    ratio_BK = torch.empty_like(area_BK).uniform_(-math.log(max_ratio), math.log(max_ratio)).exp()
    width_BK = (area_BK * ratio_BK).sqrt()
    height_BK = (area_BK / ratio_BK).sqrt()
    fits_BK = (width_BK <= 1) & (height_BK <= 1)
    first_B1 = fits_BK.to(torch.uint8).argmax(1, keepdim=True)
    fits_B = fits_BK.gather(1, first_B1)[:, 0]
    return (
        height_BK.gather(1, first_B1)[:, 0] * fits_B,
        width_BK.gather(1, first_B1)[:, 0] * fits_B,
    )
