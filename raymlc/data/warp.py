"""Colours and geometry by OpenCV, an image at a time: on a CPU faster than in batches.

Nothing here works without OpenCV. The same is drawn, and the same is done to an image; values are
rounded otherwise. Shapes: B images, H and W pixels, C = 3 channels (RGB), S operations of an
image, 33 and 23 matrices, 34 factors and summands of channels, L = 256 values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymlc.data.geometry import beyond
from raymlc.data.policy import Op, Steps

try:
    cv2: Any = import_module("cv2")
except ImportError:  # not installed, or a library that it needs is not
    cv2 = None

Array = NDArray[np.float64]
Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

_LEVELS_L = np.arange(256, dtype=np.uint8)
_FLOATS_L = _LEVELS_L.astype(np.float32)
_GREY_C = np.array([19595, 38470, 7471]) / 65536  # Pillow's weights
_SMOOTH_33 = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
_CENTRE_33 = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
_DOWN = -0.49  # rounded to the nearest then, as Pillow rounds down; a whole value stays itself


def view(
    pixels_BCHW: Tensor,
    steps: Steps,
    matrices_B33: Array,
    interpolation: Literal["bilinear", "bicubic"],
    normalize: Callable[[Tensor], Tensor],
) -> Tensor:
    """The images after the colour operations of `steps`, seen as the matrices show them.

    pixels_BCHW: uint8, on the CPU. normalize: uint8 images as float32 ones, by a factor and a
        summand for each channel. Returns normalised float32 images, channels last in memory.

    What is seen upright and whole is a box of whole pixels, drawn and enlarged as by torchvision.
    Beyond an image's edge there is 0.
    """
    pixels_BHWC = np.from_dlpack(pixels_BCHW.permute(0, 2, 3, 1).contiguous())
    ops, args = steps.ops_BS.tolist(), steps.args_BS.tolist()
    changed = [colored(*image) for image in zip(pixels_BHWC, ops, args, strict=True)]
    if (matrices_B33 == np.eye(3)).all():
        return normalize(torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2))
    height, width = pixels_BHWC.shape[1:3]
    kind = cv2.INTER_LINEAR if interpolation == "bilinear" else cv2.INTER_CUBIC
    scale_34 = _scale(normalize)
    beyond_B = beyond(matrices_B33, height, width)
    slanted_B = (matrices_B33[:, 0, 1] != 0) | (matrices_B33[:, 1, 0] != 0)
    boxed = (~slanted_B & ~beyond_B).tolist()
    boxes = _boxes(matrices_B33, height, width)
    inverse_B23 = _in_pixels(matrices_B33, height, width)
    seen_BHWC = np.empty(pixels_BHWC.shape, np.float32)
    for image, (changed_HWC, seen_HWC) in enumerate(zip(changed, seen_BHWC, strict=True)):
        if boxed[image]:
            cut_HWC = _scaled(_cut(changed_HWC, *boxes[image]), scale_34)
            cv2.resize(cut_HWC, (width, height), seen_HWC, interpolation=kind)
        else:
            scaled_HWC = _scaled(changed_HWC, scale_34)
            _warp(scaled_HWC, inverse_B23[image], kind, bool(beyond_B[image]), seen_HWC)
    return torch.from_numpy(seen_BHWC).permute(0, 3, 1, 2)


def colored(pixels_HWC: Pixels, ops_S: Sequence[int], args_S: Sequence[float]) -> Pixels:
    """An image after its colour operations, in their order; others are passed over.

    The image is left as it is. Values are Pillow's, or one off.
    """
    for op, arg in zip(ops_S, args_S, strict=True):
        if op in _CHANGES:
            pixels_HWC = _CHANGES[op](pixels_HWC, arg)
    return pixels_HWC


@lru_cache(maxsize=8)
def _scale(normalize: Callable[[Tensor], Tensor]) -> Array:
    """Each channel's factor, in its own column, and its summand, in the last one."""
    ends_2C11 = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 1, 1)
    first_C, last_C = np.from_dlpack(normalize(ends_2C11)[..., 0, 0]).astype(np.float64)
    return np.column_stack([np.diag((last_C - first_C) / 255), first_C])


def _scaled(pixels_HWC: Pixels, scale_34: Array) -> Floats:
    scaled_HWC: Floats = cv2.transform(pixels_HWC.astype(np.float32), scale_34)
    return scaled_HWC


def _boxes(matrices_B33: Array, height: int, width: int) -> list[tuple[list[int], list[bool]]]:
    """What upright matrices cut out: [left, top, right, lower] edge; whether x and y are turned.

    The size is rounded to whole pixels. Of all places that a box of this size can have, it gets the
    one that is as far along as the exact one is among its own: all alike likely, if those were.
    """
    ends_2 = np.array([width, height])
    share_B2 = np.abs(matrices_B33[:, [0, 1], [0, 1]])
    sizes_B2 = np.rint(share_B2 * ends_2).clip(1, ends_2)
    room_B2 = np.maximum(1 - share_B2, 1e-9)
    along_B2 = (matrices_B33[:, :2, 2] + room_B2) / (2 * room_B2)
    first_B2 = np.floor(along_B2 * (ends_2 - sizes_B2 + 1)).clip(0, ends_2 - sizes_B2)
    edges_B4 = np.concatenate([first_B2, first_B2 + sizes_B2], axis=1).astype(np.int64)
    turned_B2 = matrices_B33[:, [0, 1], [0, 1]] < 0
    return list(zip(edges_B4.tolist(), turned_B2.tolist(), strict=True))


def _cut(pixels_HWC: Pixels, edges: list[int], turned: list[bool]) -> Pixels:
    left, top, right, lower = edges
    cut_HWC = pixels_HWC[top:lower, left:right]
    if any(turned):
        cut_HWC = cv2.flip(cut_HWC, -1 if all(turned) else 0 if turned[1] else 1)
    return cut_HWC


def _warp(
    image_HWC: Floats, inverse_23: Array, kind: int, is_beyond: bool, seen_HWC: Floats
) -> None:
    """Write into seen_HWC what the matrix shows of the image."""
    size, flags = seen_HWC.shape[1::-1], kind | cv2.WARP_INVERSE_MAP
    if not is_beyond:
        cv2.warpAffine(image_HWC, inverse_23, size, seen_HWC, flags, cv2.BORDER_REPLICATE)
        return
    moved_HWC = cv2.warpAffine(image_HWC, inverse_23, size, None, flags, cv2.BORDER_REPLICATE)
    whole_HW = np.ones(image_HWC.shape[:2], np.uint8)
    nearest = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    inside_HW = cv2.warpAffine(whole_HW, inverse_23, size, None, nearest)
    seen_HWC.fill(0)
    cv2.copyTo(moved_HWC, inside_HW, seen_HWC)


def _in_pixels(matrices_B33: Array, height: int, width: int) -> Array:
    """The matrices for places in pixels, the first one's centre being (0, 0), without last row."""
    x, y = width / 2, height / 2
    to_pixels_33 = np.array([[x, 0, x - 0.5], [0, y, y - 0.5], [0, 0, 1]])
    return (to_pixels_33 @ matrices_B33 @ np.linalg.inv(to_pixels_33))[:, :2]


def _by_table(pixels_HWC: Pixels, table: NDArray[np.generic]) -> Pixels:
    """table: values for all channels (L,), or for each its own (C, L); cut off and rounded down."""
    if table.dtype != np.uint8:
        table = table.clip(0, 255).astype(np.uint8)
    if table.ndim > 1:
        table = np.ascontiguousarray(table.T)[None]
    changed_HWC: Pixels = cv2.LUT(pixels_HWC, table)
    return changed_HWC


def _auto_contrast(pixels_HWC: Pixels, _: float) -> Pixels:
    ends_2C = np.array([cv2.minMaxLoc(pixels_HW)[:2] for pixels_HW in cv2.split(pixels_HWC)]).T
    low_C1, high_C1 = ends_2C[..., None]
    range_C1 = high_C1 - low_C1
    spread_CL = (_FLOATS_L - low_C1) * 255 / np.maximum(range_C1, 1)
    return _by_table(pixels_HWC, np.where(range_C1 > 0, spread_CL, _FLOATS_L))


def _equalize(pixels_HWC: Pixels, _: float) -> Pixels:
    counts = [
        cv2.calcHist([pixels_HW], [0], None, [256], [0, 256]).ravel()
        for pixels_HW in cv2.split(pixels_HWC)
    ]
    counts_CL = np.array(counts, np.int64)
    darker_CL = counts_CL.cumsum(1) - counts_CL
    # Below the brightest value there are as many pixels as are darker than it.
    step_C1 = np.where(counts_CL > 0, darker_CL, 0).max(1, keepdims=True) // 255
    table_CL = (darker_CL + step_C1 // 2) // np.maximum(step_C1, 1)
    return _by_table(pixels_HWC, np.where(step_C1 > 0, table_CL, _LEVELS_L))


def _color(pixels_HWC: Pixels, factor: float) -> Pixels:
    mixed_33 = factor * np.eye(3) + (1 - factor) * _GREY_C
    changed_HWC: Pixels = cv2.transform(pixels_HWC, np.column_stack([mixed_33, [_DOWN] * 3]))
    return changed_HWC


def _contrast(pixels_HWC: Pixels, factor: float) -> Pixels:
    grey = np.floor(np.dot(cv2.mean(pixels_HWC)[:3], _GREY_C) + 0.5)
    return _by_table(pixels_HWC, (_FLOATS_L - grey) * np.float32(factor) + grey)


def _sharpness(pixels_HWC: Pixels, factor: float) -> Pixels:
    kernel_33 = factor * _CENTRE_33 + (1 - factor) * _SMOOTH_33
    changed_HWC: Pixels = cv2.filter2D(pixels_HWC, -1, kernel_33, delta=_DOWN)
    for edge in (0, -1):  # the outermost pixels stay
        changed_HWC[edge] = pixels_HWC[edge]
        changed_HWC[:, edge] = pixels_HWC[:, edge]
    return changed_HWC


_CHANGES: dict[int, Callable[[Pixels, float], Pixels]] = {
    Op.AUTO_CONTRAST: _auto_contrast,
    Op.EQUALIZE: _equalize,
    Op.INVERT: lambda image, _: ~image,
    Op.POSTERIZE: lambda image, mask: image & np.uint8(mask),
    Op.SOLARIZE: lambda image, least: _by_table(
        image, np.where(least > _FLOATS_L, _LEVELS_L, ~_LEVELS_L)
    ),
    Op.SOLARIZE_ADD: lambda image, added: _by_table(
        image, np.where(_LEVELS_L < 128, _LEVELS_L + np.uint8(added), _LEVELS_L)
    ),
    Op.COLOR: _color,
    Op.CONTRAST: _contrast,
    Op.BRIGHTNESS: lambda image, factor: _by_table(image, _FLOATS_L * np.float32(factor)),
    Op.SHARPNESS: _sharpness,
}
