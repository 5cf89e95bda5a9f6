"""The losses of the heads, leaving out labels that are missing.

Shapes: B images, K classes of a head, C target columns of a multi-hot head (at least K).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from raymlc.errors import UserError
from raymlc.fields import LossName
from raymlc.labels import MISSING, Head, Labels, Targets
from raymlc.model.class_weights import class_weights
from raymlc.trial import TrialConfig


def summed_loss(logits: Tensor, target: Tensor) -> Tensor:
    """One head's loss in nats as validation reports it, summed over the known labels of a batch.

    A single-label head, target (B,): softmax cross-entropy. A multi-hot head, target (B, C): the
    mean over its classes of binary cross-entropy. Labels that are missing, and classes that
    training never saw, add nothing. A float32 scalar; neither smoothed nor weighted, so that trials
    with other losses compare.
    """
    logits = logits.float()  # under autocast half precision would cost digits here
    classes = logits.shape[1]
    if target.dim() == 1:
        known_B = (target != MISSING) & (target < classes)
        return F.cross_entropy(
            logits,
            torch.where(known_B, target, MISSING),
            ignore_index=MISSING,
            reduction="sum",
        )
    target_BK = target[:, :classes]
    known_BK = target_BK != MISSING
    loss_BK = F.binary_cross_entropy_with_logits(
        logits, torch.where(known_BK, target_BK, 0).float(), reduction="none"
    )
    return (loss_BK * known_BK).sum() / classes


def loss_of(config: TrialConfig, head: Head) -> LossName:
    """The loss of a head, never "auto". Raises UserError for cross_entropy on a multi-hot head."""
    kind = config.head_losses.get(head.name, config.loss)
    if kind == "auto":
        return "bce" if head.multi_hot else "cross_entropy"
    if kind == "cross_entropy" and head.multi_hot:
        raise UserError(
            f"cross_entropy is a loss of single-label heads, but {head.name!r} is multi-hot; set"
            f" head_losses/{head.name} to bce, focal or asymmetric"
        )
    return kind


class HeadLosses:
    """The training loss of every head of a trial: its `head_losses`, or else its `loss`.

    With p the probability of a class, by softmax in the first line and by sigmoid in the others:
    "cross_entropy", and "focal" (arXiv:1708.02002) of a single-label head: -log p of the label,
        and that times (1 - p)^focal_gamma.
    "bce", and "focal" of a multi-hot head, without the alpha of its paper: -log p of a class that
        is present and -log(1 - p) of one that is absent; and these times (1 - p)^focal_gamma and
        p^focal_gamma.
    "asymmetric" (arXiv:2009.14119): -(1 - p)^asl_gamma_pos log p of a class that is present, and
        -m^asl_gamma_neg log(1 - m) of one that is absent, m = max(p - asl_clip, 0). The gradient
        is that of this formula, as the paper derives it; the authors' AsymmetricLoss instead takes
        the factors for constants unless told not to, their AsymmetricLossOptimized does not.
    Losses over classes are averaged over the classes of a multi-hot head. Over those of a
    single-label head, of which all but the label are absent, they are summed, so that the gradient
    of the label's own logit has the scale that cross-entropy gives it (bce: arXiv:2110.00476).

    smoothing s, of single-label heads: (1 - s) times the loss of the label and s times the mean of
    the losses that the classes would have as labels, as torch has it for cross-entropy. Class
    weights multiply a single-label row's loss by the weight of its label, and each class's term of
    a multi-hot row by the weight of its being present or absent.

    targets: of the training split, whose frequencies class weights come from.
    Raises UserError for cross_entropy on a multi-hot head.
    """

    def __init__(
        self, config: TrialConfig, labels: Labels, targets: Targets, device: torch.device
    ) -> None:
        self._config = config
        self._kinds = {head.name: loss_of(config, head) for head in labels.heads}
        self._weights = {
            head.name: class_weights(config, head, targets, device) for head in labels.heads
        }

    def __call__(
        self,
        logits: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
        mixed_targets: Mapping[str, Tensor] | None = None,
        share: float = 1.0,
    ) -> dict[str, Tensor]:
        """Each head's loss summed over the rows of a batch whose label is known; float32 scalars.

        logits: (B, K) a head. targets: (B,) or (B, C) a head, as `summed_loss` takes them; what it
        leaves out adds nothing here either. mixed_targets: of the images mixed into these; the loss
        is then `share`, in [0, 1], times that of targets plus 1 - share times that of
        mixed_targets, each over its own known labels.
        """
        sums = {}
        for name, kind in self._kinds.items():
            values = logits[name].float()  # under autocast half precision would cost digits here
            loss = self._summed(name, kind, values, targets[name])
            if mixed_targets is not None:
                other = self._summed(name, kind, values, mixed_targets[name])
                loss = share * loss + (1 - share) * other
            sums[name] = loss
        return sums

    def _summed(self, name: str, kind: LossName, logits_BK: Tensor, target: Tensor) -> Tensor:
        weights = self._weights[name]
        if target.dim() == 2:
            return self._multi_hot(kind, logits_BK, target, weights)
        known_B = (target != MISSING) & (target < logits_BK.shape[1])
        target_B = torch.where(known_B, target, 0)
        loss_B = self._single_label(kind, logits_BK, target_B)
        if weights is not None:
            loss_B = loss_B * weights[target_B]
        # Not a product with a mask: the loss of a row without a label may be infinite.
        return torch.where(known_B, loss_B, 0).sum()

    def _single_label(self, kind: LossName, logits_BK: Tensor, target_B: Tensor) -> Tensor:
        """The rows' losses, smoothed; each row's target is one of the head's classes."""
        smoothing = self._config.smoothing
        if kind == "cross_entropy":
            return F.cross_entropy(logits_BK, target_B, label_smoothing=smoothing, reduction="none")
        # These losses are linear in the label's one-hot row, so a smoothed row smooths the loss.
        even = smoothing / logits_BK.shape[1]
        target_BK = torch.full_like(logits_BK, even)
        target_BK.scatter_(1, target_B[:, None], 1 - smoothing + even)
        if kind == "focal":
            log_p_BK = F.log_softmax(logits_BK, dim=1)
            on_BK = -_focus(-torch.expm1(log_p_BK), self._config.focal_gamma) * log_p_BK
            return (target_BK * on_BK).sum(1)
        on_BK, off_BK = self._one_vs_rest(kind, logits_BK)
        return (target_BK * on_BK + (1 - target_BK) * off_BK).sum(1)

    def _multi_hot(
        self, kind: LossName, logits_BK: Tensor, target_BC: Tensor, weights_2K: Tensor | None
    ) -> Tensor:
        """Summed over the rows, the mean over classes of a one-vs-rest loss."""
        target_BK = target_BC[:, : logits_BK.shape[1]]
        on_BK, off_BK = self._one_vs_rest(kind, logits_BK)
        if weights_2K is not None:
            off_BK, on_BK = off_BK * weights_2K[0], on_BK * weights_2K[1]
        loss_BK = torch.where(target_BK == 1, on_BK, off_BK)
        return torch.where(target_BK != MISSING, loss_BK, 0).sum() / logits_BK.shape[1]

    def _one_vs_rest(self, kind: LossName, logits_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Of each class the loss if the row has it, and if it has not."""
        log_p_BK, log_q_BK = F.logsigmoid(logits_BK), F.logsigmoid(-logits_BK)
        if kind == "bce":
            return -log_p_BK, -log_q_BK
        p_BK, q_BK = log_p_BK.exp(), log_q_BK.exp()
        if kind == "focal":
            gamma = self._config.focal_gamma
            return -_focus(q_BK, gamma) * log_p_BK, -_focus(p_BK, gamma) * log_q_BK
        config = self._config
        clip = config.asl_clip
        shifted_BK = (p_BK - clip).clamp(min=0)
        # log(1 - shifted), which is log q while nothing is clipped, and 0 where all is.
        log_q_BK = torch.log((q_BK + clip).clamp(max=1)) if clip else log_q_BK
        return (
            -_focus(q_BK, config.asl_gamma_pos) * log_p_BK,
            -_focus(shifted_BK, config.asl_gamma_neg) * log_q_BK,
        )


def _focus(p: Tensor, gamma: float) -> Tensor:
    """p to the power gamma; its gradient is 0 and not infinite at p = 0 for gamma below 1."""
    return p.clamp(min=torch.finfo(p.dtype).tiny) ** gamma
