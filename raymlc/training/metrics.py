"""What is measured of each head, as counts that add up over batches and workers.

Shapes: B images, K classes of a head, U classes that training never saw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from raymlc.labels import MISSING, Head, Labels, Targets
from raymlc.model.loss import summed_loss


class HeadCounts:
    """The counts of one head, on the device, without a synchronisation.

    Rows without a label for the head are left out. A row whose label training never saw counts as
    wrong, and its class as one more class, as scikit-learn's metrics would have it; it adds nothing
    to the loss.
    """

    def __init__(self, head: Head, unseen: int, device: torch.device) -> None:
        self.multi_hot = head.multi_hot
        self.classes = len(head.classes)
        size = self.classes + unseen
        # Rows: single-label: labels, and hits, by class. Multi-hot: positives, hits among them,
        # negatives, hits among them, by class.
        self.by_class = torch.zeros(
            4 if head.multi_hot else 2, size, dtype=torch.float64, device=device
        )
        # Rows with a label; rows all right; summed loss; rows that the loss is over.
        self.totals = torch.zeros(4, dtype=torch.float64, device=device)

    def add(self, logits_BK: Tensor, target: Tensor) -> None:
        """Count one batch; logits (B, K); target (B,), or (B, K + U) of a multi-hot head."""
        if self.multi_hot:
            known_B = target[:, 0] != MISSING
            hits_B = self._add_multi_hot(logits_BK, target, known_B)
            in_loss_B = known_B
        else:
            known_B = target != MISSING
            hits_B = (logits_BK.argmax(1) == target) & known_B
            index_B = target.clamp(min=0)
            self.by_class[0].index_add_(0, index_B, known_B.double())
            self.by_class[1].index_add_(0, index_B, hits_B.double())
            in_loss_B = known_B & (target < self.classes)
        loss = summed_loss(logits_BK, target)
        sums = [known_B.sum(), hits_B.sum(), loss, in_loss_B.sum()]
        self.totals += torch.stack([value.double() for value in sums])

    def _add_multi_hot(self, logits_BK: Tensor, target_BC: Tensor, known_B: Tensor) -> Tensor:
        said_BC = torch.zeros_like(target_BC)
        said_BC[:, : self.classes] = logits_BK > 0
        positive_BC = (target_BC == 1) & known_B[:, None]
        negative_BC = (target_BC == 0) & known_B[:, None]
        self.by_class += torch.stack(
            [
                positive_BC.sum(0),
                (positive_BC & (said_BC == 1)).sum(0),
                negative_BC.sum(0),
                (negative_BC & (said_BC == 0)).sum(0),
            ]
        )
        return (said_BC == target_BC).all(1) & known_B

    def tensors(self) -> list[Tensor]:
        """The counts, which may be summed in place over workers."""
        return [self.by_class, self.totals]

    def metrics(self) -> dict[str, float]:
        """accuracy (multi-hot: all classes of a row right), balanced_accuracy, loss in nats.

        balanced_accuracy is the mean over classes that occur of the share found (multi-hot: the
        mean of that share and of the share of rows without the class that are left without it).
        NaN where no row has a label.
        """
        known, hits, loss, in_loss = self.totals.tolist()
        recalls = _ratios(self.by_class[0], self.by_class[1])
        if self.multi_hot:
            specificities = _ratios(self.by_class[2], self.by_class[3])
            recalls = torch.stack([recalls, specificities]).nanmean(0)
        return {
            "accuracy": hits / known if known else float("nan"),
            "balanced_accuracy": float(recalls.nanmean()),
            "loss": loss / in_loss if in_loss else float("nan"),
        }


class Counts:
    """The counts of all heads of a split."""

    def __init__(self, labels: Labels, targets: Targets, device: torch.device) -> None:
        self.heads = {
            head.name: HeadCounts(head, len(targets.unseen[head.name]), device)
            for head in labels.heads
        }

    def add(self, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        """Count one batch of every head."""
        for name, counts in self.heads.items():
            counts.add(logits[name], targets[name])

    def tensors(self) -> list[Tensor]:
        """All counts, which may be summed in place over workers."""
        return [tensor for counts in self.heads.values() for tensor in counts.tensors()]

    def metrics(self, prefix: str) -> dict[str, float]:
        """`{prefix}/accuracy/{head}` and so on, and `{prefix}/accuracy`, the mean over heads.

        A head without any label in the split is left out of the means.
        """
        per_head = {name: counts.metrics() for name, counts in self.heads.items()}
        named: dict[str, float] = {}
        for metric in ("accuracy", "balanced_accuracy", "loss"):
            values = torch.tensor(
                [per_head[name][metric] for name in per_head], dtype=torch.float64
            )
            named[f"{prefix}/{metric}"] = float(values.nanmean())
            named |= {f"{prefix}/{metric}/{name}": per_head[name][metric] for name in per_head}
        return named


def _ratios(whole: Tensor, part: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole.clamp(min=1), torch.nan)


def majority_accuracy(labels: Labels, train: Targets, split: Targets) -> dict[str, float]:
    """For each head the accuracy on `split` of always saying training's most common answer.

    For a multi-hot head that is the most common set of classes. NaN where no row has a label.
    """
    accuracy = {}
    for head in labels.heads:
        said = Counter(_answers(head, train)).most_common(1)
        answer = said[0][0] if said else ()
        if head.multi_hot:
            answer += (0,) * len(split.unseen[head.name])
        rows = _answers(head, split)
        accuracy[head.name] = rows.count(answer) / len(rows) if rows else float("nan")
    return accuracy


def _answers(head: Head, targets: Targets) -> list[tuple[int, ...]]:
    rows_NC = targets.values_NT[:, targets.columns[head.name]]
    return [tuple(row) for row in rows_NC[rows_NC[:, 0] != MISSING].tolist()]
