"""How much each class counts in the loss of its head, by how often training has it.

Shapes: N rows of the training split, K classes of a head.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymlc.labels import MISSING, Head, Targets
from raymlc.trial import TrialConfig


def class_weights(
    config: TrialConfig, head: Head, targets: Targets, device: torch.device
) -> Tensor | None:
    """The weights of a head's classes by config.class_weighting; None where all are 1.

    targets: of the training split. Of a single-label head a float32 (K,): the weight of a row with
    that label. Of a multi-hot head (2, K), as each of its classes is a problem of two: the weights
    of rows without the class, and of rows with it.
    "inverse": N / (K n) for a class with n of the N known labels. "effective": proportional to
    (1 - beta) / (1 - beta^n) (arXiv:1901.05555). Both have a mean of 1 over the known training
    labels, and "inverse" is what scikit-learn calls balanced. K counts the classes that occur; one
    that does not weighs 0, as it has no row that the weight could be of.
    """
    if config.class_weighting == "none":
        return None
    values_NT = targets.values_NT[:, targets.columns[head.name]]
    known_NT = values_NT[values_NT[:, 0] != MISSING]
    if head.multi_hot:
        with_K = known_NT[:, : len(head.classes)].sum(0)
        counts_2K = np.stack([len(known_NT) - with_K, with_K])
        columns = [_weights(config, counts_2) for counts_2 in counts_2K.T]
        weights = np.stack(columns, axis=1)
    else:
        counts_C = np.bincount(known_NT[:, 0], minlength=len(head.classes))
        weights = _weights(config, counts_C[: len(head.classes)])
    return torch.from_numpy(weights).to(device, torch.float32)


def _weights(config: TrialConfig, counts_K: NDArray[np.int64]) -> NDArray[np.float64]:
    share_K = counts_K.astype(np.float64)
    if config.class_weighting == "effective":
        # (1 - beta^n); 1 - beta, the same for all classes, falls out of the ratio below.
        share_K = -np.expm1(share_K * math.log(config.class_weight_beta))
    raw_K = np.divide(1.0, share_K, out=np.zeros_like(share_K), where=counts_K > 0)
    total = (raw_K * counts_K).sum()
    scaled_K: NDArray[np.float64] = raw_K * (counts_K.sum() / total) if total else raw_K
    return scaled_K
