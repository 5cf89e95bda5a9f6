"""The study of a sweep as it begins or goes on: what it shall have, and what it takes over."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial
from rich.console import Console

from raymlc.entry import read_trial
from raymlc.errors import UserError
from raymlc.metric import higher_is_better, objectives, score_of
from raymlc.options import OF_THE_DATA, TuneOptions
from raymlc.search.budget import Budget, parse_duration, parse_trials
from raymlc.search.choice import chosen
from raymlc.search.place import resolve
from raymlc.search.read import read_study
from raymlc.search.rungs import CONFIG
from raymlc.search.space import Space
from raymlc.search.storage import OWN_NAME, open_study
from raymlc.search.study import METRICS, StudyBook
from raymlc.search.transfer import enqueue, enqueue_best, respaced, take_over
from raymlc.trial import TrialConfig

OPTIONS_FILE, SPACE_FILE, STUDY_FILE = "sweep.json", "space.py", "study.journal"  # of a sweep
STUDY_VARIABLE = "RAYMLC_STUDY"  # of the environment, in place of --study
_Say = Callable[[str], None]


def keep_space(space: Space, folder: Path) -> None:
    """Copy a space into the sweep's folder; those that it takes the place of stay numbered."""
    kept, text = folder / SPACE_FILE, space.path.read_bytes()
    if kept.is_file() and kept.read_bytes() != text:
        number = 1 + len(list(folder.glob("space_*.py")))
        os.replace(kept, folder / f"space_{number}.py")
    kept.write_bytes(text)


def open_book(
    options: TuneOptions,
    folder: Path,
    space: Space,
    configs: Sequence[TrialConfig],
    console: Console,
) -> tuple[StudyBook, TuneOptions]:
    """The book of a sweep, and its options as a resumption shall find them.

    configs: trials that may be asked for. What was taken over, and what could not be, is said.
    Raises UserError for a study that cannot be had, and for trials that cannot be read.
    """
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    sampler, pruner = chosen(options.sampler, options.pruner, len(objectives(options.metric)))
    study = open_study(
        options.study or folder / STUDY_FILE,
        options.metric,
        sampler,
        pruner,
        options.seed,
        max(config.epochs for config in configs),
        folder if options.study else None,
        options.resume,
    )
    if options.resume:
        study, unfit = respaced(study, space)
        for number, reason in unfit.items():
            say(f"trial {number} is beside the search, which cannot give it: {reason}")
    elif options.warm_start:
        _start_from(options.warm_start, options, study, space, say)
    for path in options.enqueue:
        reason = enqueue(study, space, read_trial(path, "--enqueue"))
        if reason:
            say(f"{path} teaches the search nothing, which cannot give it: {reason}")
    book = StudyBook(study, space, options.metric, 0, _budget(options))
    book.trials = parse_trials(options.trials, book.asked)
    once = dataclasses.replace(
        options, trials=str(book.trials), space=None, enqueue=(), warm_start=None
    )
    return book, once


def _budget(options: TuneOptions) -> Budget:
    seconds = parse_duration(options.time_budget) if options.time_budget else math.inf
    return Budget(seconds, options.epoch_budget or math.inf)


def _start_from(
    other: Path, options: TuneOptions, study: optuna.Study, space: Space, say: _Say
) -> None:
    """Take over what another sweep's folder has to give."""
    saved = TuneOptions.load(other / OPTIONS_FILE)
    trials = [
        trial
        for trial in _trials_of(other, saved.study)
        if not math.isnan(score_of(trial.user_attrs.get(METRICS, {}), options.metric))
    ]
    if not trials:
        raise UserError(
            f"--warm-start needs a sweep with {options.metric} of some trial, but {other} has none"
        )
    sign = -1 if higher_is_better(options.metric) else 1
    trials.sort(key=lambda t: sign * score_of(t.user_attrs[METRICS], options.metric))
    changed = [name for name in OF_THE_DATA if getattr(saved, name) != getattr(options, name)]
    if changed:
        say(
            f"the trials of {other} do not inform the search, since its {changed[0]} is"
            f" {getattr(saved, changed[0])}"
        )
    else:
        taken = take_over(study, space, trials, str(other))
        say(f"{len(taken)} finished trials of {other} inform the search")
    best = enqueue_best(study, space, trials)
    if best is None:
        say(f"{space.path.name} can take the values of none of them, so none is tried first")
    else:
        say(f"its trial {best} is tried first: its values of what {space.path.name} asks for")


def _trials_of(other: Path, saved: str | None) -> list[FrozenTrial]:
    """The trials of another sweep's study, which stays as it is. saved: its --study."""
    where = resolve(saved, os.environ.get(STUDY_VARIABLE), resumed=True)
    name = other.resolve().name if where else OWN_NAME
    study = read_study(where or other / STUDY_FILE, name)
    return [trial for trial in study.trials if CONFIG in trial.user_attrs]
