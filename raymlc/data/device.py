"""What the device that trains is given: arrays from the host, and so many images at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CACHED = 2**18  # float32 values that stay in a CPU's cache from one operation to the next


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array as a tensor there, without waiting for a GPU. On the CPU both share their memory.

    The array must be writable, and must not change afterwards.
    """
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # from other memory a copy may wait for the GPU's queue
    return tensor.to(device, non_blocking=True)


def images_on_device(
    images_NHWC: NDArray[np.uint8], rows_B: NDArray[np.int64], device: torch.device
) -> Tensor:
    """These rows of the images as a tensor there, (B, H, W, C), without waiting for a GPU.

    The host copies them once, into memory that a GPU reads by itself.
    """
    shape = (len(rows_B), *images_NHWC.shape[1:])
    images_BHWC = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    # By its other modes NumPy fills an array of its own first.
    np.take(images_NHWC, rows_B, axis=0, out=images_BHWC.numpy(), mode="clip")
    return images_BHWC.to(device, non_blocking=True)


def parts_of(images_BCHW: Tensor, start: int, end: int) -> Iterator[slice]:
    """The rows from start to end, so many at a time as suit the images' device: on a GPU all."""
    rows = end - start
    if images_BCHW.device.type == "cpu":
        rows = max(_CACHED // images_BCHW[0].numel(), 1)
    for first in range(start, end, rows):
        yield slice(first, min(first + rows, end))
