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
    changed_BCHW = _copied(pixels_BCHW)
    color_BS = (steps.ops_BS >= COLOR_OPS[0]) & (steps.ops_BS <= COLOR_OPS[-1])
    image_N, place_N = np.nonzero(color_BS)
    op_N = steps.ops_BS[image_N, place_N]
    # Sweeps over all kinds of operations, by number: an image's next operation is done in the same
    # sweep if it has a higher number than the one before, so that few are done for few images.
    first_N = np.diff(image_N, prepend=-1) != 0
    sweep_N = (~first_N & (op_N <= np.roll(op_N, 1))).cumsum()
    sweep_N -= np.maximum.accumulate(np.where(first_N, sweep_N, 0))
    key_N = sweep_N * len(Op) + op_N
    order_N = np.argsort(key_N, kind="stable")
    keys, starts = np.unique(key_N[order_N], return_index=True)
    device = pixels_BCHW.device
    index_N = on_device(image_N[order_N], device)
    args_N = steps.args_BS[image_N, place_N][order_N].astype(np.float32)
    args_N111 = on_device(args_N[:, None, None, None], device)
    rows_BN = changed_BCHW.view(len(changed_BCHW), -1)
    # Copied number by number: few wide ones. Not every other device has the widest.
    wide = torch.complex128 if device.type == "cpu" else torch.int32
    if rows_BN.shape[1] % wide.itemsize == 0:
        rows_BN = rows_BN.view(wide)
    for key, (start, end) in zip(keys, pairwise([*starts, len(order_N)]), strict=True):
        change = _CHANGES[key % len(Op)]
        for part in parts_of(changed_BCHW, start, end):
            before_GCHW = changed_BCHW.index_select(0, index_N[part])
            after_GCHW = change(before_GCHW, args_N111[part])
            after_GN = after_GCHW.view(len(after_GCHW), -1).view(rows_BN.dtype)
            rows_BN.index_copy_(0, index_N[part], after_GN)
    return changed_BCHW


def _copied(pixels_BCHW: Tensor) -> Tensor:
    """A contiguous copy."""
    if pixels_BCHW.device.type == "cpu":  # NumPy brings single bytes in order much faster
        return torch.from_numpy(np.array(pixels_BCHW.numpy(), order="C"))
    return pixels_BCHW.clone(memory_format=torch.contiguous_format)


def _auto_contrast(pixels_GCHW: Tensor, _: Tensor) -> Tensor:
    flat_GCP = pixels_GCHW.flatten(2)
    low_GC11 = flat_GCP.amin(2)[..., None, None].float()
    high_GC11 = flat_GCP.amax(2)[..., None, None].float()
    # A channel of one value stays.
    flat_GC11 = high_GC11 <= low_GC11
    low_GC11 = low_GC11.masked_fill(flat_GC11, 0)
    range_GC11 = (high_GC11 - low_GC11).masked_fill(flat_GC11, 255)
    # Multiplied first: a quotient that is whole is then exact.
    return _rounded_down(pixels_GCHW.float().sub_(low_GC11).mul_(255).div_(range_GC11))


def _equalize(pixels_GCHW: Tensor, _: Tensor) -> Tensor:
    flat_TP = pixels_GCHW.flatten(0, 1).flatten(1)
    channels, device = len(flat_TP), flat_TP.device
    index_TP = flat_TP + (torch.arange(channels, device=device) * 256)[:, None]
    index_N = index_TP.flatten()
    counts_N = torch.zeros(channels * 256, dtype=torch.int32, device=device)
    one = torch.ones((), dtype=torch.int32, device=device)
    counts_TL = counts_N.scatter_add_(0, index_N, one.expand_as(index_N)).view(-1, 256)
    darker_TL = counts_TL.cumsum(1, dtype=torch.int32) - counts_TL
    # As many pixels as there are below the brightest value that occurs.
    step_T1 = (darker_TL * (counts_TL > 0)).amax(1, keepdim=True) // 255
    # Quotients of whole numbers below 2**24 have exact whole parts in float32.
    table_TL = (darker_TL + step_T1 // 2) / step_T1.clamp(min=1).float()
    same_L = torch.arange(256, dtype=torch.float32, device=device)
    table_TL = torch.where(step_T1 == 0, same_L, table_TL).clamp_(max=255).to(torch.uint8)
    return table_TL.flatten().index_select(0, index_N).view_as(pixels_GCHW)


def _invert(pixels_GCHW: Tensor, _: Tensor) -> Tensor:
    return pixels_GCHW.bitwise_not()


def _posterize(pixels_GCHW: Tensor, mask_G111: Tensor) -> Tensor:
    return pixels_GCHW & mask_G111.to(torch.uint8)


def _solarize(pixels_GCHW: Tensor, threshold_G111: Tensor) -> Tensor:
    # 0 or -1 for each pixel, of which the last bits leave or invert it. Compared in place: a CPU
    # takes an order of magnitude longer to give a bool.
    bright_GCHW = pixels_GCHW.to(torch.int16).ge_(threshold_G111.to(torch.int16)).neg_()
    return pixels_GCHW ^ bright_GCHW.to(torch.uint8)


def _solarize_add(pixels_GCHW: Tensor, added_G111: Tensor) -> Tensor:
    dark_GCHW = pixels_GCHW.clone().lt_(128)
    return dark_GCHW.mul_(added_G111.to(torch.uint8)).add_(pixels_GCHW)


def _color(pixels_GCHW: Tensor, factor_G111: Tensor) -> Tensor:
    return _blend(_grey(pixels_GCHW), pixels_GCHW, factor_G111)


def _contrast(pixels_GCHW: Tensor, factor_G111: Tensor) -> Tensor:
    mean_G111 = _grey(pixels_GCHW).mean((1, 2, 3), keepdim=True)
    return _blend(mean_G111.add_(0.5).floor_(), pixels_GCHW, factor_G111)


def _brightness(pixels_GCHW: Tensor, factor_G111: Tensor) -> Tensor:
    return _rounded_down(pixels_GCHW.float().mul_(factor_G111))


def _sharpness(pixels_GCHW: Tensor, factor_G111: Tensor) -> Tensor:
    floats_GCHW = pixels_GCHW.float()
    rows_GCHW = (floats_GCHW[:, :, :-2] + floats_GCHW[:, :, 1:-1]).add_(floats_GCHW[:, :, 2:])
    sums_GCHW = (rows_GCHW[..., :-2] + rows_GCHW[..., 1:-1]).add_(rows_GCHW[..., 2:])
    sums_GCHW.add_(floats_GCHW[:, :, 1:-1, 1:-1], alpha=4)
    smooth_GCHW = floats_GCHW.clone()  # the outermost pixels stay
    smooth_GCHW[:, :, 1:-1, 1:-1] = sums_GCHW.div_(13).add_(0.5).floor_()
    return _blend(smooth_GCHW, pixels_GCHW, factor_G111)


def _grey(pixels_GCHW: Tensor) -> Tensor:
    """Pillow's grey as whole float32 numbers, one channel; every sum on the way is exact."""
    red_G1HW, green_G1HW, blue_G1HW = pixels_GCHW.float().tensor_split(3, dim=1)
    weighted_G1HW = (red_G1HW * 19595).add_(green_G1HW, alpha=38470).add_(blue_G1HW, alpha=7471)
    return weighted_G1HW.add_(32768).mul_(1 / 65536).floor_()


def _blend(base: Tensor, pixels_GCHW: Tensor, factor_G111: Tensor) -> Tensor:
    """From a float base (factor 0) to the pixels (1) and beyond."""
    return _rounded_down(pixels_GCHW.float().sub_(base).mul_(factor_G111).add_(base))


def _rounded_down(values_GCHW: Tensor) -> Tensor:
    # By way of int16: three times as fast on a CPU.
    return values_GCHW.clamp_(0, 255).to(torch.int16).to(torch.uint8)


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
