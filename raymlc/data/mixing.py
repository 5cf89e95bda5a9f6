"""Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899) of a batch with itself, last to first.

Shapes: B images, C channels, H and W pixels.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from raymlc.trial import TrialConfig


def mix_(images_BCHW: Tensor, config: TrialConfig, epoch: int, step: int) -> float:
    """Mix each image with its partner `images_BCHW.flip(0)`, in place; its own share of the result.

    The share, or CutMix's rectangle, is one for the batch, drawn from (seed, epoch, step) alone:
    all workers of a step draw the same. It is 1.0 if the step is not to be mixed: in a share
    1 - mix_prob of the steps, and in the last mix_off_epochs epochs. epoch, step: from 0.
    """
    alphas = {"mixup": config.mixup_alpha, "cutmix": config.cutmix_alpha}
    kinds = [kind for kind, alpha in alphas.items() if alpha > 0]
    # The last number sets these draws apart from those of the epoch's order.
    rng = np.random.default_rng((config.seed, epoch, step, 1))
    off = epoch >= config.epochs - config.mix_off_epochs
    if off or not kinds or rng.random() >= config.mix_prob:
        return 1.0
    kind = kinds[rng.integers(len(kinds))]
    share = float(rng.beta(alphas[kind], alphas[kind]))
    if kind == "mixup":
        partners_BCHW = images_BCHW.flip(0)
        images_BCHW.mul_(share).add_(partners_BCHW, alpha=1 - share)
        return share
    height, width = images_BCHW.shape[2:]
    top, bottom = _side(rng, height, share)
    left, right = _side(rng, width, share)
    box_BCHW = images_BCHW[:, :, top:bottom, left:right]
    box_BCHW.copy_(box_BCHW.flip(0))
    return 1 - (bottom - top) * (right - left) / (height * width)


def _side(rng: np.random.Generator, size: int, share: float) -> tuple[int, int]:
    """Where a rectangle of the area 1 - share begins and ends along one side, cut at the edges."""
    length = int(size * np.sqrt(1 - share))
    centre = int(rng.integers(size))
    return max(centre - length // 2, 0), min(centre + (length + 1) // 2, size)
