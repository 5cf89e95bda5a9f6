"""The loss over all heads, leaving out labels that are missing.

Shapes: B images, K classes of a head.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from raymlc.labels import MISSING


def summed_loss(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """One head's loss in nats, summed over the known labels of a batch; a float32 scalar.

    A single-label head, target (B,): softmax cross-entropy. A multi-hot head, target (B, K): the
    mean over classes of binary cross-entropy. Labels that are missing, and classes that training
    never saw, add nothing.
    smoothing: share of a single label spread over all classes, in [0, 1) (arXiv:1512.00567).
    """
    logits = logits.float()  # under autocast half precision would cost digits here
    classes = logits.shape[1]
    if target.dim() == 1:
        known_B = (target != MISSING) & (target < classes)
        return F.cross_entropy(
            logits,
            torch.where(known_B, target, MISSING),
            ignore_index=MISSING,
            label_smoothing=smoothing,
            reduction="sum",
        )
    target_BK = target[:, :classes]
    known_BK = target_BK != MISSING
    loss_BK = F.binary_cross_entropy_with_logits(
        logits, torch.where(known_BK, target_BK, 0).float(), reduction="none"
    )
    return (loss_BK * known_BK).sum() / classes


def multi_head_loss(
    logits: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    known: Mapping[str, float],
    smoothing: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean over heads of each head's mean loss, and the heads' summed losses.

    logits, targets: one entry a head, as `summed_loss` takes them.
    known: how many labels each head's mean is over; a head with none is left out of the mean, and
        gets no gradient. All heads weigh the same.
    Returns a scalar in nats, and for each head its detached sum. A batch without any label gives 0
    with zero gradients.
    """
    sums = {head: summed_loss(logits[head], targets[head], smoothing) for head in logits}
    present = [head for head in logits if known[head] > 0]
    parts = [sums[head] * (1 / known[head] if head in present else 0.0) for head in logits]
    loss = torch.stack(parts).sum() / max(len(present), 1)
    return loss, {head: value.detach() for head, value in sums.items()}
