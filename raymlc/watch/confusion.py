"""What the best trial takes for what: a checkpoint's confusion.json, as a report shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raymlc.watch.markup import Node, header, node, note, row, table

_MOST = 15  # classes whose matrix is shown whole
_PAIRS, _CLASSES = 12, 20  # that are listed of more classes


@dataclass(frozen=True)
class Confusion:
    """The counts of one head, as `Counts.confusion` has them.

    true, predicted: the classes of the rows and the columns of `counts`; of a multi-hot head
    `true` has its classes, `predicted` none, and `counts` has two rows and columns for each class.
    """

    true: tuple[str, ...]
    predicted: tuple[str, ...]
    counts: NDArray[np.int64]

    @property
    def multi_hot(self) -> bool:
        """Whether the counts are of each class by itself."""
        return self.counts.ndim == 3


def read_confusion(checkpoint: Path) -> dict[str, Confusion]:
    """The counts of each head of a checkpoint; none where they cannot be read."""
    try:
        values = json.loads((checkpoint / "confusion.json").read_text(encoding="utf-8"))
        return {str(head): _confusion(value) for head, value in values.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return {}


def _confusion(value: Mapping[str, Sequence[object]]) -> Confusion:
    true = tuple(map(str, value["classes" if "classes" in value else "true"]))
    predicted = () if "classes" in value else tuple(map(str, value["predicted"]))
    counts = np.array(value["counts"], np.int64)
    if counts.shape != ((len(true), len(predicted)) if predicted else (len(true), 2, 2)):
        raise ValueError(f"counts of shape {counts.shape}")
    return Confusion(true, predicted, counts)


def confusions(heads: Mapping[str, Confusion]) -> list[Node]:
    """For each head its matrix, or of many classes the largest and those most confused."""
    shown: list[Node] = []
    for head, one in heads.items():
        shown.append(node("h3", {}, head))
        if one.multi_hot:
            shown += _multi_hot(head, one)
        elif len(one.true) <= _MOST:
            shown.append(_matrix(head, one))
        else:
            shown.append(node("div", {"class": "side"}, _pairs(head, one), _largest(head, one)))
    return shown


def _matrix(head: str, one: Confusion) -> Node:
    rows = []
    for at, (name, counts) in enumerate(zip(one.true, one.counts, strict=True)):
        total = int(counts.sum())
        cells = []
        for column, count in enumerate(counts.tolist()):
            share = count / total if total else 0.0
            about = {
                "class": "heat right" if column == at else "heat",
                "style": f"--s:{share:.3f}",
                "title": f"{name} taken for {one.predicted[column]}: {share:.1%}",
            }
            cells.append(node("td", about, f"{count:,}" if count else "·"))
        rows.append(row(name, *cells, _share(_hits(one)[at], total)))
    says = f"Confusion matrix of {head}: rows are true, columns what the network said"
    return table(says, header("true ↓ said →", *one.predicted, "found"), rows, "matrix")


def _pairs(head: str, one: Confusion) -> Node:
    """The pairs of classes that are confused most."""
    wrong = one.counts.copy()
    own = range(len(one.predicted))  # the first rows are of the same classes
    wrong[own, own] = 0
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    rows = []
    for true, said in zip(*np.unravel_index(order, wrong.shape), strict=True):
        count, total = int(wrong[true, said]), int(one.counts[true].sum())
        if count:
            taken = one.predicted[said]
            rows.append(row(one.true[true], taken, f"{count:,}", _share(count, total)))
    top = header("true", "taken for", "rows", "of its rows")
    return table(f"The most confused pairs of classes of {head}", top, rows)


def _largest(head: str, one: Confusion) -> Node:
    totals, hits = one.counts.sum(1).tolist(), _hits(one)
    order = sorted(range(len(totals)), key=lambda at: -totals[at])[:_CLASSES]
    rows = [row(one.true[at], f"{totals[at]:,}", _share(hits[at], totals[at])) for at in order]
    top = header(f"largest of {len(totals):,} classes", "rows", "found")
    return table(f"The largest classes of {head}", top, rows)


def _multi_hot(head: str, one: Confusion) -> list[Node]:
    # As scikit-learn orders them: [[true negatives, false positives], [false negatives, hits]].
    counts = one.counts.tolist()
    order = sorted(range(len(counts)), key=lambda at: -sum(counts[at][1]))[:_CLASSES]
    rows = []
    for at in order:
        (_, wrong), (missed, hits) = counts[at]
        has, said = missed + hits, hits + wrong
        shares = _share(hits, has), _share(hits, said)
        rows.append(row(one.true[at], f"{has:,}", f"{said:,}", *shares))
    top = header("class", "rows with it", "said", "found (recall)", "right (precision)")
    shown = table(f"The classes of {head}, each by itself", top, rows)
    if len(rows) == len(one.true):
        return [shown]
    return [shown, note(f"The {len(rows)} largest classes of {len(one.true):,}.")]


def _hits(one: Confusion) -> list[int]:
    """Of each row's class; 0 of those that training never saw, which come last."""
    hits = one.counts.diagonal().tolist()
    return [*hits, *[0] * (len(one.true) - len(hits))]


def _share(part: int, total: int) -> str:
    return f"{part / total:.1%}" if total else "–"
