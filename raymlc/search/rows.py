"""The rows that a study's trials learn from and are judged by: the same for all of them."""

from __future__ import annotations

import hashlib
import os

import optuna

from raymlc.data.table import Split, Table
from raymlc.errors import UserError

ROWS = "rows"  # a study's attribute: of each split a digest of its rows


def keep_rows(study: optuna.Study, table: Table) -> None:
    """Write down the rows of a study that begins, or see that one that goes on has them still.

    Raises UserError for other images, heads or labels than those that it was begun with. Where the
    table lies, and what the images hold, may have changed.
    """
    splits = {name: table.splits[name] for name in ("train", "val")}
    rows = {name: _digest(table, split) for name, split in splits.items()}
    before = study.user_attrs.get(ROWS)
    if before is None:
        study.set_user_attr(ROWS, rows)
        return
    for name, split in splits.items():
        if before[name] != rows[name]:
            raise UserError(
                f"a resumed sweep keeps its rows, but the {name} rows of {split.csv} are others"
                " than when it began; bring them back, or begin another one under another --name,"
                " which may learn from this one by --warm-start"
            )


def _digest(table: Table, split: Split) -> str:
    digest = hashlib.sha256(repr(table.labels.to_dict()).encode())
    for image in split.images:
        digest.update(b"\n" + os.fsencode(os.path.relpath(image, split.csv.parent)))
    digest.update(split.targets.values_NT.tobytes())
    return digest.hexdigest()
