"""What is predicted: heads, their classes, and the way from a table's cells to numbers and back.

Shapes: N rows of a table, T target columns (one for a single-label head, one for each class of a
multi-hot head).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlc.errors import UserError

MISSING = -1  # the target of an empty cell: no loss and no metric for that head in that row
SEPARATOR = "|"  # between the classes in a cell of a multi-hot head


@dataclass(frozen=True)
class Head:
    """One attribute: its column's name and its classes in the order of its logits.

    A single-label head has exactly one of its classes in each row (softmax); a multi-hot head has
    any number of them (sigmoid), written `a|b` in the table, and `|` alone for none.
    """

    name: str
    classes: tuple[str, ...]
    multi_hot: bool = False


@dataclass(frozen=True)
class Targets:
    """The labels of one split as numbers.

    values_NT: int64. For a single-label head the class number; for a multi-hot head one column of
        0 and 1 a class; MISSING for an empty cell. A class that training never saw has a number
        (or a column) after the head's own classes, so that no prediction can meet it.
    columns: each head's columns of values_NT. multi_hot: whether a head is.
    unseen: each head's classes that training never saw, in the order of their numbers.
    """

    values_NT: NDArray[np.int64]
    columns: dict[str, slice]
    multi_hot: dict[str, bool]
    unseen: dict[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.values_NT)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Targets:
        """The targets of some of the rows, with the same columns."""
        return dataclasses.replace(self, values_NT=self.values_NT[np.asarray(rows, np.int64)])


@dataclass(frozen=True)
class Labels:
    """All heads of a model. Saved in every checkpoint, so that inference needs no table."""

    heads: tuple[Head, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The heads' names, in order."""
        return tuple(head.name for head in self.heads)

    @classmethod
    def learn(cls, cells: Mapping[str, Sequence[str]]) -> Labels:
        """Heads and classes from a training table: {column name: one cell a row}.

        Classes are text, in code-point order. A column with `|` in any cell is a multi-hot head.
        Raises UserError for a column from which nothing can be learnt.
        """
        heads = []
        for name, column in cells.items():
            multi_hot = any(SEPARATOR in cell for cell in column)
            found = {label for cell in column for label in _split(cell, multi_hot)}
            classes = tuple(sorted(found))
            if not classes:
                raise UserError(
                    f"head {name!r} has no label in any training row; fill its column or leave the"
                    " head out with --heads"
                )
            if len(classes) == 1 and not multi_hot:
                raise UserError(
                    f"a head needs at least 2 classes, but every label of {name!r} in the training"
                    f" rows is {classes[0]!r}; leave the head out with --heads"
                )
            heads.append(Head(name, classes, multi_hot))
        return cls(tuple(heads))

    def encode(self, cells: Mapping[str, Sequence[str]]) -> Targets:
        """Cells of any split as numbers. `cells` has a column for each head."""
        parts: list[NDArray[np.int64]] = []
        columns: dict[str, slice] = {}
        unseen: dict[str, tuple[str, ...]] = {}
        start = 0
        for head in self.heads:
            number = {label: index for index, label in enumerate(head.classes)}
            rows = [_split(cell, head.multi_hot) for cell in cells[head.name]]
            new = sorted({label for row in rows for label in row if label not in number})
            number |= {label: len(number) + index for index, label in enumerate(new)}
            part = (
                _multi_hot(rows, cells[head.name], number)
                if head.multi_hot
                else (np.array([[number[row[0]] if row else MISSING] for row in rows], np.int64))
            )
            part = part.reshape(len(rows), -1)
            parts.append(part)
            columns[head.name] = slice(start, start + part.shape[1])
            unseen[head.name] = tuple(new)
            start += part.shape[1]
        multi_hot = {head.name: head.multi_hot for head in self.heads}
        return Targets(np.concatenate(parts, axis=1), columns, multi_hot, unseen)

    def unseen_lines(self, targets: Targets) -> list[str]:
        """A line for each head that has rows with labels that training never saw, naming them."""
        lines = []
        for head in self.heads:
            new = targets.unseen[head.name]
            values_NC = targets.values_NT[:, targets.columns[head.name]]
            own = len(head.classes)
            unseen_N = (
                (values_NC[:, own:] == 1).any(1) if head.multi_hot else values_NC[:, 0] >= own
            )
            if new:
                named = ", ".join(map(repr, new[:5])) + (", …" if len(new) > 5 else "")
                lines.append(
                    f"head {head.name}: labels that training never saw count as wrong,"
                    f" in {unseen_N.sum()} rows: {named}"
                )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The heads as JSON values."""
        return {
            "heads": [
                {"name": head.name, "classes": list(head.classes), "multi_hot": head.multi_hot}
                for head in self.heads
            ]
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Labels:
        """The labels of `to_dict`. Raises UserError for anything else."""
        try:
            heads = tuple(
                Head(str(head["name"]), tuple(map(str, head["classes"])), bool(head["multi_hot"]))
                for head in values["heads"]
            )
        except (KeyError, TypeError) as error:
            raise UserError(
                f"labels must be heads with name, classes, multi_hot: {error!r}"
            ) from error
        return cls(heads)


def _split(cell: str, multi_hot: bool) -> list[str]:
    """The labels in one cell: none if it is empty, or `|` alone in a multi-hot head."""
    if not multi_hot:
        return [cell] if cell else []
    return [label for label in (part.strip() for part in cell.split(SEPARATOR)) if label]


def _multi_hot(
    rows: Sequence[Sequence[str]], cells: Sequence[str], number: Mapping[str, int]
) -> NDArray[np.int64]:
    values_NC = np.zeros((len(rows), len(number)), np.int64)
    for index, (row, cell) in enumerate(zip(rows, cells, strict=True)):
        if not cell:
            values_NC[index] = MISSING
        for label in row:
            values_NC[index, number[label]] = 1
    return values_NC
