"""Colour operations on batches of uint8 images, each with the values that Pillow's gives.

Shapes: B images, C = 3 channels (RGB), H and W pixels, S operations of an image, N operations of
all images, G images that get one operation, P pixels, T channels of all images, L = 256 values.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from raymlc.data.device import on_device, parts_of
from raymlc.data.policy import COLOR_OPS, Op, Steps


def apply_colors(pixels_BCHW: Tensor, steps: Steps) -> Tensor:
    """Each image after its colour operations, in their order; others of `steps` are passed over.

    pixels_BCHW: uint8, left as they are. The result is contiguous.
    """
    changed_BCHW = pixels_BCHW.clone(memory_format=torch.contiguous_format)
    color_BS = np.isin(steps.ops_BS, COLOR_OPS)
    image_N, place_N = np.nonzero(color_BS)
    # All that one operation changes as the first, or as the second, of an image is changed at once.
    turn_N = color_BS.cumsum(1)[image_N, place_N]
    key_N = turn_N * len(Op) + steps.ops_BS[image_N, place_N]
    order_N = np.argsort(key_N, kind="stable")
    keys, starts = np.unique(key_N[order_N], return_index=True)
    device = pixels_BCHW.device
    index_N = on_device(image_N[order_N], device)
    args_N = steps.args_BS[image_N, place_N][order_N].astype(np.float32)
    args_N111 = on_device(args_N[:, None, None, None], device)
    rows_BN = changed_BCHW.view(len(changed_BCHW), -1)
    if rows_BN.shape[1] % 4 == 0:
        rows_BN = rows_BN.view(torch.int32)  # a CPU copies numbers one by one
    for key, (start, end) in zip(keys, pairwise([*starts, len(order_N)]), strict=True):
        change = _CHANGES[key % len(Op)]
        for part in parts_of(changed_BCHW, start, end):
            before_GCHW = changed_BCHW.index_select(0, index_N[part])
            after_GCHW = change(before_GCHW, args_N111[part])
            after_GN = after_GCHW.view(len(after_GCHW), -1).view(rows_BN.dtype)
            rows_BN.index_copy_(0, index_N[part], after_GN)
    return changed_BCHW


def _auto_contrast(pixels_GCHW: Tensor, _: Tensor) -> Tensor:
    flat_GCP = pixels_GCHW.flatten(2)
    low_GC11 = flat_GCP.amin(2)[..., None, None].float()
    high_GC11 = flat_GCP.amax(2)[..., None, None].float()
    # A channel of one value stays.
    flat_GC11 = high_GC11 <= low_GC11
    low_GC11 = low_GC11.masked_fill(flat_GC11, 0)
    range_GC11 = (high_GC11 - low_GC11).masked_fill(flat_GC11, 255)
    # Multiplied first: a quotient that is whole is then exact.
    return _rounded_down((pixels_GCHW - low_GC11).mul_(255).div_(range_GC11))


def _equalize(pixels_GCHW: Tensor, _: Tensor) -> Tensor:
    flat_TP = pixels_GCHW.flatten(0, 1).flatten(1)
    channels, pixels = flat_TP.shape
    device = flat_TP.device
    index_TP = flat_TP + (torch.arange(channels, device=device) * 256)[:, None]
    index_N = index_TP.flatten()
    counts_N = torch.zeros(channels * 256, dtype=torch.int32, device=device)
    one = torch.ones((), dtype=torch.int32, device=device)
    counts_TL = counts_N.scatter_add_(0, index_N, one.expand_as(index_N)).view(-1, 256)
    brightest_T1 = counts_TL.gather(1, flat_TP.amax(1, keepdim=True).long())
    step_T1 = (pixels - brightest_T1) // 255
    darker_TL = counts_TL.cumsum(1, dtype=torch.int32) - counts_TL
    table_TL = (darker_TL + step_T1 // 2) // step_T1.clamp(min=1)
    same_L = torch.arange(256, dtype=torch.int32, device=device)
    table_TL = torch.where(step_T1 == 0, same_L, table_TL.clamp(max=255)).to(torch.uint8)
    return table_TL.flatten().index_select(0, index_N).view_as(pixels_GCHW)


def _invert(pixels_GCHW: Tensor, _: Tensor) -> Tensor:
    return pixels_GCHW.bitwise_not()


def _posterize(pixels_GCHW: Tensor, mask_G111: Tensor) -> Tensor:
    return pixels_GCHW & mask_G111.to(torch.uint8)


def _solarize(pixels_GCHW: Tensor, threshold_G111: Tensor) -> Tensor:
    # 0 or 255 for each pixel, which leaves or inverts it: on a CPU far faster than a `where`.
    bright_GCHW = pixels_GCHW.to(torch.int16) >= threshold_G111.to(torch.int16)
    return pixels_GCHW ^ bright_GCHW.view(torch.uint8).neg()


def _solarize_add(pixels_GCHW: Tensor, added_G111: Tensor) -> Tensor:
    dark_GCHW = (pixels_GCHW < 128).view(torch.uint8)
    return pixels_GCHW + dark_GCHW * added_G111.to(torch.uint8)


def _color(pixels_GCHW: Tensor, factor_G111: Tensor) -> Tensor:
    return _blend(_grey(pixels_GCHW), pixels_GCHW, factor_G111)


def _contrast(pixels_GCHW: Tensor, factor_G111: Tensor) -> Tensor:
    mean_G111 = _grey(pixels_GCHW).mean((1, 2, 3), keepdim=True)
    return _blend(mean_G111.add_(0.5).floor_(), pixels_GCHW, factor_G111)


def _brightness(pixels_GCHW: Tensor, factor_G111: Tensor) -> Tensor:
    return _rounded_down(pixels_GCHW * factor_G111)


def _sharpness(pixels_GCHW: Tensor, factor_G111: Tensor) -> Tensor:
    floats_GCHW = pixels_GCHW.float()
    rows_GCHW = floats_GCHW[:, :, :-2] + floats_GCHW[:, :, 1:-1] + floats_GCHW[:, :, 2:]
    sums_GCHW = rows_GCHW[..., :-2] + rows_GCHW[..., 1:-1] + rows_GCHW[..., 2:]
    inner_GCHW = floats_GCHW[:, :, 1:-1, 1:-1]
    smooth_GCHW = floats_GCHW.clone()  # the outermost pixels stay
    smooth_GCHW[:, :, 1:-1, 1:-1] = (sums_GCHW + 4 * inner_GCHW).div_(13).add_(0.5).floor_()
    return _blend(smooth_GCHW, pixels_GCHW, factor_G111)


def _grey(pixels_GCHW: Tensor) -> Tensor:
    """Pillow's grey as whole float32 numbers, one channel; every sum on the way is exact."""
    red_G1HW, green_G1HW, blue_G1HW = pixels_GCHW.float().tensor_split(3, dim=1)
    weighted_G1HW = red_G1HW * 19595 + green_G1HW * 38470 + blue_G1HW * 7471
    return weighted_G1HW.add_(32768).div_(65536).floor_()


def _blend(base: Tensor, pixels_GCHW: Tensor, factor_G111: Tensor) -> Tensor:
    """From a float base (factor 0) to the pixels (1) and beyond."""
    return _rounded_down((pixels_GCHW - base).mul_(factor_G111).add_(base))


def _rounded_down(values_GCHW: Tensor) -> Tensor:
    return values_GCHW.clamp_(0, 255).to(torch.uint8)


_CHANGES: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
    Op.AUTO_CONTRAST: _auto_contrast,
    Op.EQUALIZE: _equalize,
    Op.INVERT: _invert,
    Op.POSTERIZE: _posterize,
    Op.SOLARIZE: _solarize,
    Op.SOLARIZE_ADD: _solarize_add,
    Op.COLOR: _color,
    Op.CONTRAST: _contrast,
    Op.BRIGHTNESS: _brightness,
    Op.SHARPNESS: _sharpness,
}
