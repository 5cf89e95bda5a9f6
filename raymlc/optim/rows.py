"""Parameters end to end in one flat array, in which rows of one length are neighbours.

A row holds the weights of one output unit: all that share the first index. So one call does for all
rows of a length what would take a call for each parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Kind(NamedTuple):
    """What the rows of one matrix have in common; sorting by it makes them neighbours."""

    weight: bool  # of two or more dimensions; a vector has rows of one element
    conv: bool  # of more than three dimensions
    length: int  # elements of a row


def kind_of(param: Tensor) -> Kind:
    """The kind of a parameter's rows; one without elements counts as a vector."""
    if param.ndim < 2 or param.numel() == 0:
        return Kind(weight=False, conv=False, length=1)
    return Kind(weight=True, conv=param.ndim > 3, length=param.numel() // len(param))


def matrices_of(memory: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """For each kind of the parameters its part of the last axis, cut into rows, as a view.

    memory: any axes, then one for the elements of all parameters. params: sorted by kind.
    """
    sizes: dict[Kind, int] = {}
    for param in params:
        sizes[kind_of(param)] = sizes.get(kind_of(param), 0) + param.numel()
    blocks = memory.split_with_sizes(list(sizes.values()), dim=-1)
    return [
        block.view(*memory.shape[:-1], -1, kind.length)
        for block, kind in zip(blocks, sizes, strict=True)
    ]


class FlatArray:
    """A number for each element of some parameters, which are sorted by kind, in one flat array.

    parts: a view for each parameter, in its shape and, if that is channels_last, its order: the
        elements of a row are the same in every order, and copies are faster in one.
    matrices: a view for each kind, with a row for each row of the parameters of that kind.
    """

    def __init__(self, flat: Tensor, params: Sequence[Tensor]) -> None:
        self.flat = flat
        parts = flat.split_with_sizes([param.numel() for param in params])
        self.parts = [_shaped(part, param) for part, param in zip(parts, params, strict=True)]
        self.matrices = matrices_of(flat, params)


def _shaped(part: Tensor, param: Tensor) -> Tensor:
    if param.is_contiguous(memory_format=torch.channels_last):
        return part.as_strided(param.shape, param.stride())
    return part.view(param.shape)
