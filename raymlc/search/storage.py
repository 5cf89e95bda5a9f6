"""Opens the study of a sweep, whatever keeps it."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from raymlc.errors import UserError
from raymlc.metric import higher_is_better
from raymlc.search.choice import PrunerName, SamplerName, make_pruner, make_sampler


def open_study(
    journal: Path, metric: str, sampler: SamplerName, pruner: PrunerName, seed: int, epochs: int
) -> optuna.Study:
    """Open the study in a journal file, or begin it.

    metric: what trials are ranked by, as `metric_names` has it. epochs: of the longest trial, from
    which Optuna's pruners have their rungs.
    Raises UserError if the file cannot be written, or holds a study of another metric, or a package
    is missing that the sampler needs.
    """
    try:
        journal.parent.mkdir(parents=True, exist_ok=True)
        _mend(journal)
        storage = JournalStorage(JournalFileBackend(str(journal)))
        study = optuna.create_study(
            study_name="raymlc",
            storage=storage,
            direction="maximize" if higher_is_better(metric) else "minimize",
            load_if_exists=True,
        )
    except OSError as error:
        raise UserError(f"the study must be writable, but {journal} is not: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the study {journal} cannot be read: {error!r}") from error
    ranked_by = study.user_attrs.get("metric", metric)
    if ranked_by != metric:
        raise UserError(
            f"a sweep keeps its metric, but {journal} ranks by {ranked_by} and --metric is {metric}"
        )
    study.set_user_attr("metric", metric)
    # A sampler that starts anew with the same seed would draw the same trials once more.
    study.sampler = make_sampler(sampler, seed + len(study.trials), epochs)
    study.pruner = make_pruner(pruner, epochs)
    return study


def _mend(journal: Path) -> None:
    """Take off what a killed process left: half a line at the journal's end, and its lock."""
    if not journal.exists():
        return
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    with journal.open("rb+") as file:
        text = file.read()
        if text and not text.endswith(b"\n"):
            file.truncate(text.rfind(b"\n") + 1)
