"""Which operations each image of a batch gets: RandAugment, AutoAugment, AugMix, colour jitter.

All is drawn on the host, so that the images of an operation are known there and a GPU is never
waited for. Operations and strengths are those of timm's `timm.data.auto_augment`. Shapes: B images,
S operations of an image, one after another, M images that are mixed into one, O kinds of `Op`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray


class Op(IntEnum):
    """What can be done to an image, and what the operation's argument is."""

    NOTHING = 0
    AUTO_CONTRAST = 1
    EQUALIZE = 2
    INVERT = 3
    POSTERIZE = 4  # the bits that are kept of a value, as a mask: 0, 128, 192, ... 255
    SOLARIZE = 5  # the least value that is inverted, 0 to 256
    SOLARIZE_ADD = 6  # what is added to values below 128, 0 to 128
    COLOR = 7  # the factor: 0 is grey, 1 the image, 2 twice as colourful
    CONTRAST = 8  # the factor: 0 is flat
    BRIGHTNESS = 9  # the factor: 0 is black
    SHARPNESS = 10  # the factor: 0 is smoothed
    ROTATE = 11  # degrees, counterclockwise, around the centre
    SHEAR_X = 12  # pixels to the side for each pixel down, from the upper edge on
    SHEAR_Y = 13  # pixels down for each pixel to the side, from the left edge on
    TRANSLATE_X = 14  # the share of the width
    TRANSLATE_Y = 15  # the share of the height


COLOR_OPS = tuple(op for op in Op if Op.NOTHING < op < Op.ROTATE)
GEOMETRIC_OPS = tuple(op for op in Op if op >= Op.ROTATE)

MAX_LEVEL = 10.0  # of an operation's strength
_Variant = Literal["plain", "original", "increasing"]


@dataclass(frozen=True)
class Steps:
    """What is done to each image.

    ops_BS: numbers of `Op`. args_BS: their arguments; those of operations without one mean nothing.
    """

    ops_BS: NDArray[np.int64]
    args_BS: NDArray[np.float64]

    def then(self, other: Steps) -> Steps:
        """These operations and then others on the same images."""
        return Steps(
            np.concatenate([self.ops_BS, other.ops_BS], axis=1),
            np.concatenate([self.args_BS, other.args_BS], axis=1),
        )


def no_steps(batch: int) -> Steps:
    """Images that are left alone."""
    return Steps(np.zeros((batch, 0), np.int64), np.zeros((batch, 0)))


def randaugment(
    rng: np.random.Generator, batch: int, count: int, magnitude: float, std: float, color: bool
) -> Steps:
    """RandAugment (arXiv:1909.13719) as timm's `rand-m9-mstd0.5` has it.

    Each image gets `count` operations, drawn alike and with replacement from all 15, or from the 5
    geometric ones alone without `color`; each is done with probability 1/2, with a strength from
    N(magnitude, std), cut off to [0, 10].
    """
    known = np.array((COLOR_OPS if color else ()) + GEOMETRIC_OPS)
    ops_BS = rng.choice(known, (batch, count))
    ops_BS[rng.random(ops_BS.shape) >= 0.5] = Op.NOTHING
    levels_BS = rng.normal(magnitude, std, ops_BS.shape).clip(0, MAX_LEVEL)
    return Steps(ops_BS, arguments(rng, ops_BS, levels_BS, "plain"))


# Pairs of (operation, probability, strength), of which each image gets one.
IMAGENET_POLICY = (
    ((Op.POSTERIZE, 0.4, 8), (Op.ROTATE, 0.6, 9)),
    ((Op.SOLARIZE, 0.6, 5), (Op.AUTO_CONTRAST, 0.6, 5)),
    ((Op.EQUALIZE, 0.8, 8), (Op.EQUALIZE, 0.6, 3)),
    ((Op.POSTERIZE, 0.6, 7), (Op.POSTERIZE, 0.6, 6)),
    ((Op.EQUALIZE, 0.4, 7), (Op.SOLARIZE, 0.2, 4)),
    ((Op.EQUALIZE, 0.4, 4), (Op.ROTATE, 0.8, 8)),
    ((Op.SOLARIZE, 0.6, 3), (Op.EQUALIZE, 0.6, 7)),
    ((Op.POSTERIZE, 0.8, 5), (Op.EQUALIZE, 1.0, 2)),
    ((Op.ROTATE, 0.2, 3), (Op.SOLARIZE, 0.6, 8)),
    ((Op.EQUALIZE, 0.6, 8), (Op.POSTERIZE, 0.4, 6)),
    ((Op.ROTATE, 0.8, 8), (Op.COLOR, 0.4, 0)),
    ((Op.ROTATE, 0.4, 9), (Op.EQUALIZE, 0.6, 2)),
    ((Op.EQUALIZE, 0.0, 7), (Op.EQUALIZE, 0.8, 8)),
    ((Op.INVERT, 0.6, 4), (Op.EQUALIZE, 1.0, 8)),
    ((Op.COLOR, 0.6, 4), (Op.CONTRAST, 1.0, 8)),
    ((Op.ROTATE, 0.8, 8), (Op.COLOR, 1.0, 2)),
    ((Op.COLOR, 0.8, 8), (Op.SOLARIZE, 0.8, 7)),
    ((Op.SHARPNESS, 0.4, 7), (Op.INVERT, 0.6, 8)),
    ((Op.SHEAR_X, 0.6, 5), (Op.EQUALIZE, 1.0, 9)),
    ((Op.COLOR, 0.4, 0), (Op.EQUALIZE, 0.6, 3)),
    ((Op.EQUALIZE, 0.4, 7), (Op.SOLARIZE, 0.2, 4)),
    ((Op.SOLARIZE, 0.6, 5), (Op.AUTO_CONTRAST, 0.6, 5)),
    ((Op.INVERT, 0.6, 4), (Op.EQUALIZE, 1.0, 8)),
    ((Op.COLOR, 0.6, 4), (Op.CONTRAST, 1.0, 8)),
    ((Op.EQUALIZE, 0.8, 8), (Op.EQUALIZE, 0.6, 3)),
)


def autoaugment(rng: np.random.Generator, batch: int) -> Steps:
    """AutoAugment's policy for ImageNet (arXiv:1805.09501), as timm's `original` has it."""
    policy = np.array(IMAGENET_POLICY, np.float64)
    drawn_BS3 = policy[rng.integers(len(policy), size=batch)]
    done_BS = rng.random((batch, 2)) < drawn_BS3[..., 1]
    ops_BS = np.where(done_BS, drawn_BS3[..., 0], Op.NOTHING).astype(np.int64)
    return Steps(ops_BS, arguments(rng, ops_BS, drawn_BS3[..., 2], "original"))


AUGMIX_OPS = tuple(op for op in Op if op not in (Op.NOTHING, Op.INVERT, Op.SOLARIZE_ADD))
_AUGMIX_CHAINS = 3
_AUGMIX_LONGEST = 3  # operations of a chain
_AUGMIX_LEVEL = 3.0  # the largest strength


def augmix(rng: np.random.Generator, batch: int) -> tuple[NDArray[np.float64], list[Steps]]:
    """The images that AugMix (arXiv:1912.02781) mixes into one, as timm's `augmix-m3` has them.

    Returns the shares (B, 4), which sum to 1, and the operations of the 4: the image itself and 3
    chains of 1 to 3 operations with strengths uniform in [0, 3]. The chains together have a share
    Beta(1, 1), of which each has one of Dirichlet(1, 1, 1).
    """
    changed_B1 = rng.beta(1, 1, (batch, 1))
    shares_BM = np.concatenate(
        [1 - changed_B1, changed_B1 * rng.dirichlet([1.0] * _AUGMIX_CHAINS, batch)], axis=1
    )
    mixed = [no_steps(batch)]
    for _ in range(_AUGMIX_CHAINS):
        length_B1 = rng.integers(1, _AUGMIX_LONGEST + 1, (batch, 1))
        ops_BS = rng.choice(np.array(AUGMIX_OPS), (batch, _AUGMIX_LONGEST))
        ops_BS[np.arange(_AUGMIX_LONGEST) >= length_B1] = Op.NOTHING
        levels_BS = rng.uniform(0, _AUGMIX_LEVEL, ops_BS.shape)
        mixed.append(Steps(ops_BS, arguments(rng, ops_BS, levels_BS, "increasing")))
    return shares_BM, mixed


def color_jitter(rng: np.random.Generator, batch: int, share: float) -> Steps:
    """Torchvision's `ColorJitter(share, share, share)`, in one order for the whole batch.

    Factors of brightness, contrast and saturation are uniform in [1 - share, 1 + share]. share: in
    [0, 1].
    """
    order = rng.permutation([Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR])
    factors_BS = rng.uniform(1 - share, 1 + share, (batch, len(order)))
    return Steps(np.tile(order, (batch, 1)), factors_BS)


def arguments(
    rng: np.random.Generator,
    ops_BS: NDArray[np.int64],
    levels_BS: NDArray[np.float64],
    variant: _Variant,
) -> NDArray[np.float64]:
    """The arguments of operations of given strengths, in [0, 10]; of moves the sign is drawn.

    variant: of the strength of some operations. "plain" has colour, contrast, brightness and
        sharpness from 0.1 (less) to 1.9 (more), and destroys less by Posterize and Solarize the
        higher the strength; "original" is the same but for Posterize, which keeps 4 to 8 bits;
        in "increasing" all grow from nothing, either way.
    """
    share_BS = levels_BS / MAX_LEVEL
    sign_BS = np.where(rng.random(ops_BS.shape) < 0.5, -1.0, 1.0)
    bits_BS, threshold_BS = np.floor(share_BS * 4), np.floor(share_BS * 256)
    factor_BS = share_BS * 1.8 + 0.1
    if variant == "original":
        bits_BS = bits_BS + 4
    if variant == "increasing":
        bits_BS, threshold_BS = 4 - bits_BS, 256 - threshold_BS
        factor_BS = np.maximum(1 + sign_BS * share_BS * 0.9, 0.1)
    by_op_OBS = np.zeros((len(Op), *ops_BS.shape))
    by_op_OBS[Op.POSTERIZE] = 256 - 2 ** (8 - bits_BS)
    by_op_OBS[Op.SOLARIZE] = threshold_BS
    by_op_OBS[Op.SOLARIZE_ADD] = np.floor(share_BS * 110)
    by_op_OBS[[Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS]] = factor_BS
    by_op_OBS[Op.ROTATE] = sign_BS * share_BS * 30
    by_op_OBS[[Op.SHEAR_X, Op.SHEAR_Y]] = sign_BS * share_BS * 0.3
    by_op_OBS[[Op.TRANSLATE_X, Op.TRANSLATE_Y]] = sign_BS * share_BS * 0.45
    args_BS: NDArray[np.float64] = np.take_along_axis(by_op_OBS, ops_BS[None], 0)[0]
    return args_BS
