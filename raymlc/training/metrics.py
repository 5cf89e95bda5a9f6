"""What is measured of each head, as counts that add up over batches and workers.

Shapes: B images of a batch, N rows of a split, K classes of a head, C classes with those that only
the split has, which training never saw (C >= K), D different scores.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymlc.errors import UserError, did_you_mean
from raymlc.labels import MISSING, Head, Labels, Targets
from raymlc.metric import METRICS, check_metric, objectives
from raymlc.model.loss import summed_loss

TOP = 5  # of top5_accuracy
LARGEST_MATRIX = 1000  # classes; the matrix of as many takes 8 MB of the device

_OF_SOME = {  # heads; the other metrics are of all
    "top5_accuracy": f"single-label heads of more than {TOP} classes",
    "micro_f1": "multi-hot heads",
    "mean_average_precision": "multi-hot heads",
}


class SingleLabelCounts:
    """The counts of a single-label head, on the device, without a synchronisation.

    Rows without a label are left out. A row whose label training never saw counts as wrong, and its
    class as one more class, as scikit-learn's metrics would have it; it adds nothing to the loss.
    Up to 1,000 classes it is a confusion matrix that is counted; of more, only sums by class.
    """

    def __init__(self, head: Head, targets: Targets, device: torch.device) -> None:
        self.head = head
        self.classes = len(head.classes)
        self.names = head.classes + targets.unseen[head.name]
        self.has_matrix = len(self.names) <= LARGEST_MATRIX
        # Rows true and columns predicted; or labels, hits and predictions, by class.
        shape = (len(self.names), self.classes) if self.has_matrix else (3, len(self.names))
        self.counts = torch.zeros(shape, dtype=torch.int64, device=device)
        # Summed loss; rows whose class is among the first TOP.
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)

    def add(self, logits_BK: Tensor, target_B: Tensor) -> None:
        """Count one batch."""
        known_B = target_B != MISSING
        true_B = target_B.clamp(min=0)
        said_B = logits_BK.argmax(1)
        one_B = known_B.long()
        if self.has_matrix:
            self.counts.view(-1).index_add_(0, true_B * self.classes + said_B, one_B)
        else:
            self.counts[0].index_add_(0, true_B, one_B)
            self.counts[1].index_add_(0, true_B, one_B * (said_B == true_B))
            self.counts[2].index_add_(0, said_B, one_B)
        self.sums[0] += summed_loss(logits_BK, target_B)
        if _has(self.head, "top5_accuracy"):
            seen_B = known_B & (target_B < self.classes)
            first_B = _among_first(logits_BK, true_B.clamp(max=self.classes - 1))
            self.sums[1] += (seen_B & first_B).sum()

    def tensors(self) -> list[Tensor]:
        """The counts, which may be summed in place over workers."""
        return [self.counts, self.sums]

    def metrics(self) -> dict[str, float]:
        """accuracy, top5_accuracy (of more than 5 classes), balanced_accuracy, macro_f1, loss.

        balanced_accuracy and macro_f1 are means over the classes that occur in the split, of the
        share found and of F1 (scikit-learn's with those as its labels): a class that is predicted
        but never true is no part of the mean, though it lowers the recall of those it stands for.
        loss in nats; infinite where it is no number, so that no mean over heads leaves it out. NaN
        where there is no row to count.
        """
        true_C, hits_C, said_C = self._by_class()
        loss, first = self.sums.cpu()
        rows = true_C.sum()
        occurs_C = true_C > 0
        values = {
            "accuracy": hits_C.sum() / rows,
            "balanced_accuracy": (hits_C / true_C)[occurs_C].mean(),
            "macro_f1": (2 * hits_C / (true_C + said_C))[occurs_C].mean(),
            "loss": loss.nan_to_num(math.inf, math.inf) / true_C[: self.classes].sum(),
        }
        if _has(self.head, "top5_accuracy"):
            values["top5_accuracy"] = first / rows
        return {name: float(value) for name, value in values.items()}

    def _by_class(self) -> Tensor:
        """Labels, hits and predictions of each class, (3, C) float64 on the CPU."""
        counts = self.counts.cpu().double()
        if not self.has_matrix:
            return counts
        never = counts.new_zeros(len(self.names) - self.classes)
        hits_C = torch.cat([counts.diagonal(), never])
        return torch.stack([counts.sum(1), hits_C, torch.cat([counts.sum(0), never])])

    def confusion(self) -> dict[str, Any] | None:
        """The matrix with the names of its rows and columns; None of more than 1,000 classes."""
        if not self.has_matrix:
            return None
        return {
            "true": list(self.names),
            "predicted": list(self.head.classes),
            "counts": self.counts.tolist(),
        }


class MultiHotCounts:
    """The counts of a multi-hot head, and the scores of all rows, without a synchronisation.

    Rows without labels are left out. A class that training never saw is never found. The scores
    take 4 N K bytes of the device: an average precision needs all of them at once.
    rank, size: as `Counts` has them.
    """

    def __init__(
        self, head: Head, targets: Targets, device: torch.device, rank: int, size: int
    ) -> None:
        self.classes = len(head.classes)
        self.names = head.classes + targets.unseen[head.name]
        self.targets_NC = targets.values_NT[:, targets.columns[head.name]]
        # Positives, hits among them, negatives, hits among them, by class.
        self.by_class = torch.zeros(4, len(self.names), dtype=torch.int64, device=device)
        # Summed loss; rows all right.
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)
        self.scores_NK = torch.zeros(len(targets), self.classes, device=device)
        self._next, self._step = rank, size  # the row that comes, and the way to the one after it

    def add(self, logits_BK: Tensor, target_BC: Tensor) -> None:
        """Count one batch."""
        end = self._next + len(logits_BK) * self._step
        self.scores_NK[self._next : end : self._step] = logits_BK
        self._next = end
        said_BC = torch.zeros_like(target_BC, dtype=torch.bool)
        said_BC[:, : self.classes] = logits_BK > 0
        true_BC, absent_BC = target_BC == 1, target_BC == 0  # a missing label is neither
        counted = [true_BC, true_BC & said_BC, absent_BC, absent_BC & ~said_BC]
        self.by_class += torch.stack(counted).sum(1)
        right_B = (said_BC == target_BC).all(1)
        self.sums += torch.stack([summed_loss(logits_BK, target_BC).double(), right_B.sum()])

    def tensors(self) -> list[Tensor]:
        """The counts and the scores, which may be summed in place over workers."""
        return [self.by_class, self.sums, self.scores_NK]

    def metrics(self) -> dict[str, float]:
        """The metrics of `METRICS` but top5_accuracy; a class is predicted from a logit above 0 on.

        accuracy: rows of which all classes are right. balanced_accuracy: the mean over classes of
        the share found and the share of rows without the class that are left without it; a share of
        no rows is left out. macro_f1 and mean_average_precision: means over the classes with at
        least one positive row, of scikit-learn's f1_score and average_precision_score; both are 0
        for a class that training never saw. micro_f1: over all classes and rows together.
        loss in nats; infinite where it is no number, so that no mean over heads leaves it out. NaN
        where there is no row to count.
        """
        by_class = self.by_class.cpu().double()
        true_C, hits_C, absent_C, left_C = by_class
        said_C = hits_C + absent_C - left_C
        loss, right = self.sums.cpu()
        rows = true_C[0] + absent_C[0]
        occurs_C = true_C > 0
        shares_C = torch.stack([hits_C / true_C, left_C / absent_C]).nanmean(0)
        values = {
            "accuracy": right / rows,
            "balanced_accuracy": shares_C.mean(),
            "macro_f1": (2 * hits_C / (true_C + said_C))[occurs_C].mean(),
            "micro_f1": 2 * hits_C.sum() / (true_C + said_C).sum(),
            "mean_average_precision": self._average_precisions(occurs_C).mean(),
            "loss": loss.nan_to_num(math.inf, math.inf) / rows,
        }
        return {name: float(value) for name, value in values.items()}

    def _average_precisions(self, occurs_C: Tensor) -> Tensor:
        """Of each class that occurs, float64."""
        known = np.flatnonzero(self.targets_NC[:, 0] != MISSING)
        rows = torch.from_numpy(known).to(self.scores_NK.device)
        precisions_C = torch.zeros(len(self.names), dtype=torch.float64)
        for c in occurs_C[: self.classes].nonzero()[:, 0].tolist():
            true_N = torch.from_numpy(self.targets_NC[known, c] == 1)
            precisions_C[c] = average_precision(self.scores_NK[rows, c], true_N)
        return precisions_C[occurs_C]

    def confusion(self) -> dict[str, Any]:
        """For each class a 2 x 2 matrix: rows absent and present, columns predicted so."""
        true_C, hits_C, absent_C, left_C = self.by_class.cpu()
        counts = torch.stack([left_C, absent_C - left_C, true_C - hits_C, hits_C], 1)
        return {"classes": list(self.names), "counts": counts.view(-1, 2, 2).tolist()}


class Counts:
    """The counts of all heads of a split.

    rank, size: this worker and the number of workers; each counts the rows that
    `evaluation_batches` gives it, in their order.
    """

    def __init__(
        self, labels: Labels, targets: Targets, device: torch.device, rank: int = 0, size: int = 1
    ) -> None:
        self.heads: dict[str, SingleLabelCounts | MultiHotCounts] = {
            head.name: MultiHotCounts(head, targets, device, rank, size)
            if head.multi_hot
            else SingleLabelCounts(head, targets, device)
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
        """`{prefix}/accuracy`, the mean over heads, `{prefix}/accuracy/{head}`, and so on.

        A head without any label in the split is left out of the means, as is one that does not have
        the metric; what no head has is not there at all.
        """
        per_head = {name: counts.metrics() for name, counts in self.heads.items()}
        named: dict[str, float] = {}
        for metric in METRICS:
            values = {name: of[metric] for name, of in per_head.items() if metric in of}
            if values:
                mean = torch.tensor(list(values.values()), dtype=torch.float64).nanmean()
                named[f"{prefix}/{metric}"] = float(mean)
                named |= {f"{prefix}/{metric}/{name}": value for name, value in values.items()}
        return named

    def confusion(self) -> dict[str, dict[str, Any]]:
        """What was taken for what, as JSON values, by head; rows without a label are left out.

        A single-label head: {"true": class of each row, "predicted": class of each column,
        "counts": rows}; the classes that training never saw are the last rows. Heads of more than
        1,000 classes, these among them, have no matrix, for its memory, and are not there.
        A multi-hot head: {"classes": names, "counts": for each class [[true negatives, false
        positives], [false negatives, true positives]]}, as scikit-learn orders them.
        """
        matrices = {name: counts.confusion() for name, counts in self.heads.items()}
        return {name: matrix for name, matrix in matrices.items() if matrix is not None}


def average_precision(scores_N: Tensor, true_N: Tensor) -> float:
    """The area under one class's steps of precision over recall; NaN if `true_N` is nowhere true.

    Rows of equal score pass the threshold together, as in scikit-learn's average_precision_score.
    Scores that are not numbers are below all others. N >= 1.
    """
    scores_N, order_N = scores_N.nan_to_num(-math.inf, math.inf, -math.inf).sort(descending=True)
    hits_N = true_N.to(scores_N.device)[order_N].cumsum(0)
    differs_N = scores_N[1:] != scores_N[:-1]
    last_D = torch.cat([differs_N, differs_N.new_ones(1)]).nonzero()[:, 0]
    hits_D = hits_N[last_D].double()
    gained_D = hits_D.diff(prepend=hits_D.new_zeros(1))
    return float((gained_D * hits_D / (last_D + 1)).sum() / hits_D[-1])


def reported_metrics(labels: Labels) -> tuple[str, ...]:
    """The names of the validation metrics that an evaluation of these heads reports."""
    names: list[str] = []
    for metric in METRICS:
        heads = [head.name for head in labels.heads if _has(head, metric)]
        if heads:
            names += [f"val/{metric}", *(f"val/{metric}/{head}" for head in heads)]
    return tuple(names)


def check_metric_of(metric: str, labels: Labels) -> None:
    """Raises UserError, with the nearest names, for a metric that these heads do not report."""
    check_metric(metric, labels.names)
    known = reported_metrics(labels)
    for name in objectives(metric):
        if name not in known:
            way_out = did_you_mean(name, known, f"the metrics are {', '.join(known)}")
            raise UserError(
                f"--metric must be one that the heads report, but {name!r} is only of"
                f" {_OF_SOME[name.split('/')[1]]}; {way_out}"
            )


def _has(head: Head, metric: str) -> bool:
    if metric == "top5_accuracy":
        return not head.multi_hot and len(head.classes) > TOP
    return head.multi_hot or metric not in _OF_SOME


def _among_first(logits_BK: Tensor, class_B: Tensor) -> Tensor:
    """Whether a class is among the first TOP of its row; of equal logits the lower class is first.

    Counted instead of sorted, so that ties are the same on any device and as argmax has them. A
    class whose logit is not a number is never among them.
    """
    class_B1 = class_B[:, None]
    own_B1 = logits_BK.gather(1, class_B1)
    place_K = torch.arange(logits_BK.shape[1], device=logits_BK.device)
    not_before_BK = (logits_BK < own_B1) | ((logits_BK == own_B1) & (place_K >= class_B1))
    return not_before_BK.sum(1) > logits_BK.shape[1] - TOP


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
