"""Probabilities that mean what they say: a temperature a head, and thresholds of multi-hot heads.

Both are fitted to labels that training did not see, and neither changes a logit. Shapes: N rows, K
classes of a head, M cells of a head or rows of it, T thresholds that are tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from raymlc.errors import UserError
from raymlc.labels import MISSING, Head, Labels, Targets
from raymlc.training.files import read_object, replace_text, to_json

CALIBRATION = "calibration.json"  # beside a checkpoint's weights
BINS = 15  # of the expected calibration error, of equal width
COLDEST, HOTTEST = 0.05, 20.0  # temperatures
FEW = 20  # positives of a class that weigh as much as all other classes of its head

_CUTS_T = np.arange(5, 96) / 100  # thresholds that are tried
_REGION = 13  # temperatures that are tried, before the best is refined
_REFINEMENTS = 24  # each narrows the region to 0.62 of what it was


@dataclass(frozen=True)
class HeadCalibration:
    """How the logits of one head become probabilities and classes.

    temperature: what they are divided by, in [0.05, 20]. thresholds: of a multi-hot head, for each
    class the probability above which it is said, in [0, 1]; else none. labels: known rows that it
    was fitted to. ece: expected calibration error before and after, in [0, 1]. f1: of a multi-hot
    head the mean over its classes that occur, with thresholds of 0.5 and with these, or None.
    """

    temperature: float
    thresholds: tuple[float, ...]
    labels: int
    ece: tuple[float, float]
    f1: tuple[float, float] | None


@dataclass(frozen=True)
class Calibration:
    """Of each head that could be calibrated. split: the name of the rows, of which there were rows.

    A head without a known label there is not in it, and keeps its probabilities as they are.
    """

    split: str
    rows: int
    heads: Mapping[str, HeadCalibration]


def probabilities(head: Head, logits_NK: Tensor, by: Calibration | None) -> Tensor:
    """The probabilities of a head's logits, (N, K); calibrated where `by` has the head."""
    if by is not None and head.name in by.heads:
        logits_NK = logits_NK / by.heads[head.name].temperature
    return logits_NK.sigmoid() if head.multi_hot else logits_NK.softmax(1)


def thresholds(head: Head, by: Calibration | None) -> NDArray[np.float32] | float:
    """The probability above which each class of a multi-hot head is said: (K,), or 0.5."""
    if by is not None and head.name in by.heads:
        return np.array(by.heads[head.name].thresholds, np.float32)
    return 0.5


def fit_calibration(
    labels: Labels, logits: Mapping[str, Tensor], targets: Targets, split: str
) -> Calibration:
    """What makes the logits of each head fit known labels.

    logits: (N, K) a head, on the CPU, of the rows of `targets`, which training must not have seen.
    The temperature minimises the cross entropy (Guo et al., arXiv:1706.04599), of a multi-hot head
    the binary one over all of its classes. It is held to 1 as a log-normal prior of spread 1 would,
    which hundreds of rows do not feel, so that a few rows without a mistake do not make a network
    sure of everything. A label that training never saw has no logit and no say in it.

    A multi-hot head has a threshold for each class, since the best one for F1 is half of the F1
    that can be had (Lipton et al., arXiv:1402.1892): low for rare and hard classes. Counts of the
    whole head are added, scaled to FEW positives, so a class with few of its own has nearly the
    threshold that is best for all cells together, and one with many its own. Of equals the one
    nearest to 0.5 is taken; a head with fewer than FEW positives keeps 0.5.
    """
    heads = {}
    for head in labels.heads:
        fitted = _fitted(head, logits[head.name], targets)
        if fitted is not None:
            heads[head.name] = fitted
    return Calibration(split, len(targets), heads)


def calibration_error(confidence_M: Tensor, right_M: Tensor) -> float:
    """The expected calibration error: mean distance of confidence and truth over 15 equal bins.

    confidence_M: in [0, 1]; of a single-label head that of the class that is said, of a multi-hot
    head the probability of each class of each row. right_M: whether it was so. M >= 1.
    """
    bin_M = (confidence_M.double() * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    gap = torch.zeros(BINS, dtype=torch.float64)
    gap.index_add_(0, bin_M, confidence_M.double() - right_M.double())
    return float(gap.abs().sum() / len(confidence_M))


def save_calibration(folder: Path, calibration: Calibration, labels: Labels, sha256: str) -> None:
    """Write it beside the weights that it is of, whose digest is sha256."""
    heads = {head.name: head for head in labels.heads}
    values = {
        "sha256": sha256,
        "split": calibration.split,
        "rows": calibration.rows,
        "heads": {
            name: {
                "temperature": its.temperature,
                "thresholds": dict(zip(heads[name].classes, its.thresholds, strict=True))
                if heads[name].multi_hot
                else None,
                "labels": its.labels,
                "ece": list(its.ece),
                "f1": list(its.f1) if its.f1 else None,
            }
            for name, its in calibration.heads.items()
        },
    }
    replace_text(folder / CALIBRATION, to_json(values))


def read_calibration(folder: Path, labels: Labels, sha256: str) -> Calibration | None:
    """The calibration of a checkpoint; None where it has none.

    Raises UserError for one of other weights or heads, and for values that cannot be.
    """
    path = folder / CALIBRATION
    if not path.is_file():
        return None
    values = read_object(path)
    if values.get("sha256") != sha256:
        raise UserError(f"{CALIBRATION} must be of these weights, but is of others; remove it")
    _check("split", values.get("split"), isinstance(values.get("split"), str), "a text")
    _check_count("rows", values.get("rows"))
    given = values.get("heads")
    known = {head.name: head for head in labels.heads}
    fine = isinstance(given, dict) and given.keys() <= known.keys()
    _check("heads", given, fine, f"an object with some of the heads {', '.join(known)}")
    heads = {name: _read_head(known[name], its) for name, its in values["heads"].items()}
    return Calibration(values["split"], values["rows"], heads)


def _read_head(head: Head, its: Any) -> HeadCalibration:
    _check(f"head {head.name!r:.60}", its, isinstance(its, dict), "an object")
    of = f"of head {head.name!r:.60}"
    temperature = its.get("temperature")
    fine = _is_in(temperature, COLDEST, HOTTEST)
    _check(f"temperature {of}", temperature, fine, f"a number from {COLDEST:g} to {HOTTEST:g}")
    cuts = its.get("thresholds")
    if head.multi_hot:
        fine = isinstance(cuts, dict) and cuts.keys() == set(head.classes)
        fine = fine and all(_is_in(cut, 0, 1) for cut in cuts.values())
        _check(f"thresholds {of}", cuts, fine, "a number from 0 to 1 for each class")
    else:
        _check(f"thresholds {of}", cuts, cuts is None, "null, since it has one class a row")
    _check_count(f"labels {of}", its.get("labels"))
    f1 = its.get("f1")
    _check(f"ece {of}", its.get("ece"), _is_pair(its.get("ece")), "2 numbers from 0 to 1")
    _check(f"f1 {of}", f1, f1 is None or _is_pair(f1), "2 numbers from 0 to 1, or null")
    return HeadCalibration(
        temperature,
        tuple(cuts[label] for label in head.classes) if head.multi_hot else (),
        its["labels"],
        (its["ece"][0], its["ece"][1]),
        (f1[0], f1[1]) if f1 else None,
    )


def _check(name: str, value: Any, fine: bool, law: str) -> None:
    if not fine:
        raise UserError(f"{CALIBRATION} must hold {name} as {law}, but holds {value!r:.60}")


def _check_count(name: str, value: Any) -> None:
    _check(name, value, type(value) is int and value >= 0, "a whole number from 0 on")


def _is_in(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_in(x, 0, 1) for x in value)


def _fitted(head: Head, logits_NK: Tensor, targets: Targets) -> HeadCalibration | None:
    values_NC = torch.from_numpy(targets.values_NT[:, targets.columns[head.name]])
    known_N = (values_NC[:, 0] != MISSING) & logits_NK.isfinite().all(1)
    if not known_N.any():
        return None
    logits_NK, values_NC = logits_NK[known_N].double(), values_NC[known_N]
    if head.multi_hot:
        return _multi_hot(logits_NK, values_NC[:, : len(head.classes)] == 1)
    return _single_label(logits_NK, values_NC[:, 0])


def _single_label(logits_NK: Tensor, class_N: Tensor) -> HeadCalibration | None:
    seen_N = class_N < logits_NK.shape[1]
    seen_NK, own_N = logits_NK[seen_N], class_N[seen_N]
    if not len(own_N):
        return None
    temperature = _best_temperature(
        lambda scale: float(functional.cross_entropy(seen_NK / scale, own_N, reduction="sum"))
    )
    right_N = logits_NK.argmax(1) == class_N
    before, after = (
        calibration_error((logits_NK / scale).softmax(1).amax(1), right_N)
        for scale in (1.0, temperature)
    )
    return HeadCalibration(temperature, (), len(class_N), (before, after), None)


def _multi_hot(logits_NK: Tensor, true_NK: Tensor) -> HeadCalibration:
    wanted_NK = true_NK.double()
    temperature = _best_temperature(
        lambda scale: float(
            functional.binary_cross_entropy_with_logits(
                logits_NK / scale, wanted_NK, reduction="sum"
            )
        )
    )
    before, after = (
        calibration_error((logits_NK / scale).sigmoid().flatten(), true_NK.flatten())
        for scale in (1.0, temperature)
    )
    found_NK = (logits_NK / temperature).sigmoid()
    cuts_K = _best_thresholds(found_NK, true_NK)
    occurs_K = true_NK.any(0)
    f1 = None
    if occurs_K.any():
        f1 = tuple(
            float(_f1(found_NK > cut, true_NK)[occurs_K].mean())
            for cut in (torch.tensor(0.5), torch.from_numpy(cuts_K))
        )
    return HeadCalibration(
        temperature,
        tuple(float(cut) for cut in cuts_K),
        len(logits_NK),
        (before, after),
        (f1[0], f1[1]) if f1 else None,
    )


def _f1(said_NK: Tensor, true_NK: Tensor) -> Tensor:
    """Of each class, (K,); NaN for one that is neither said nor true."""
    return 2 * (said_NK & true_NK).sum(0) / (said_NK.sum(0) + true_NK.sum(0))


def _best_temperature(loss: Callable[[float], float]) -> float:
    """The temperature at which a summed loss and the prior are least, by golden section."""

    def total(log: float) -> float:
        return loss(math.exp(log)) + log**2 / 2

    places = np.linspace(math.log(COLDEST), math.log(HOTTEST), _REGION)
    best = int(np.argmin([total(place) for place in places]))
    low, high = float(places[max(best - 1, 0)]), float(places[min(best + 1, _REGION - 1)])
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = total(left), total(right)
    for _ in range(_REFINEMENTS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = total(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = total(right)
    return min(max(math.exp((low + high) / 2), COLDEST), HOTTEST)


def _best_thresholds(found_NK: Tensor, true_NK: Tensor) -> NDArray[np.float64]:
    """Of each class, (K,)."""
    positives_K = true_NK.sum(0).double().numpy()
    total = positives_K.sum()
    if total < FEW:
        return np.full(len(positives_K), 0.5)
    said = [found_NK > float(cut) for cut in _CUTS_T]
    said_TK = np.stack([cells_NK.sum(0).numpy() for cells_NK in said])
    hits_TK = np.stack([(cells_NK & true_NK).sum(0).numpy() for cells_NK in said])
    share = FEW / total
    hits_TK = hits_TK + share * hits_TK.sum(1, keepdims=True)
    said_TK = said_TK + share * said_TK.sum(1, keepdims=True)
    f1_TK = 2 * hits_TK / (said_TK + positives_K + FEW)
    distance_T1 = np.abs(_CUTS_T - 0.5)[:, None]
    best_TK = f1_TK >= f1_TK.max(0) - 1e-12
    best: NDArray[np.float64] = _CUTS_T[np.where(best_TK, distance_T1, 1.0).argmin(0)]
    return best
