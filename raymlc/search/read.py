"""A study as it is told to people: opened as it stands, while a sweep may be writing to it.

Nothing here changes a study. Whether a trial that has not ended is being trained now cannot be
seen in it: it may as well have been halted by a budget or a kill.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from raymlc.errors import UserError
from raymlc.metric import higher_is_better, score_of
from raymlc.search.front import vectors_of
from raymlc.search.place import database_url, without_password
from raymlc.search.rungs import CONFIG, PAUSED, REASON
from raymlc.search.storage import open_storage
from raymlc.search.study import CHECKPOINT, IMAGES, METRICS, NODE, SECONDS
from raymlc.search.transfer import ORIGIN, newest, values_of
from raymlc.trial import TrialConfig

OPEN = "OPEN"  # the state of a trial that is running, or was halted and can go on


@dataclass(frozen=True)
class Told:
    """One trial, as its study tells it.

    state: COMPLETE, PRUNED, FAIL, PAUSED (at a rung) or OPEN. epochs: how many reached the study,
    of `length` in all. score and metrics: of the checkpoint that it stored; NaN and empty without
    one. params and ranges: of what was searched. config: all fields. curve: the objectives' values
    at each epoch. reason: why it failed. seconds: spent on it, NaN while unknown. images: trained
    on so far, NaN while unknown. node: the host it ran on last. began, ended: Unix time, NaN while
    unknown.
    """

    number: int
    state: str
    epochs: int
    length: int
    score: float
    metrics: dict[str, float]
    params: dict[str, Any]
    ranges: dict[str, BaseDistribution]
    config: dict[str, Any]
    curve: dict[int, list[float]]
    reason: str
    seconds: float
    images: float
    node: str
    checkpoint: str
    began: float
    ended: float


def read_study(where: Path | str, name: str) -> optuna.Study:
    """The study of a sweep, which stays as it is, though another process may be writing to it.

    where: the path of a journal, or a database as `place.resolve` gives it. name: of the study,
    which is the name of the sweep's folder where others keep theirs in that place too, and else
    `storage.OWN_NAME`.
    Raises UserError where there is none.
    """
    shown = without_password(str(where))
    url = database_url(where)
    file = url.database if url is not None and url.get_backend_name() == "sqlite" else where
    # What is not there would be made.
    if (url is None or file is not where) and not Path(str(file)).is_file():
        raise UserError(
            f"the study of a sweep must be where it was kept, but there is no {shown}; if it was"
            " moved, write its new place into sweep.json"
        )
    storage = open_storage(where)
    name = newest(storage, name)
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError as error:
        known = ", ".join(study.study_name for study in storage.get_all_studies())
        if not known:
            raise UserError(
                f"the study of a sweep must be where it was kept, but {shown} holds none; bring it"
                " back"
            ) from error
        raise UserError(
            f"the study of a sweep has its folder's name, but {shown} has no {name!r}"
            f" (it has {known}); give the folder its own name again"
        ) from error


def read_trials(study: optuna.Study, metric: str) -> list[Told]:
    """The trials that a study has asked for itself, in the order of `StudyBook.rows`."""
    trials = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.WAITING and ORIGIN not in trial.user_attrs
    ]
    ranges = {name: it for trial in trials for name, it in trial.distributions.items()}
    told = [_told(trial, metric, ranges) for trial in trials]
    sign = -1 if higher_is_better(metric) else 1
    unscored = [one for one in told if math.isnan(one.score)]
    scored = [one for one in told if not math.isnan(one.score)]
    return sorted(scored, key=lambda one: (sign * one.score, one.number)) + unscored


def _beside(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    try:
        values = values_of(TrialConfig.from_dict(config))
    except UserError:  # of another version, whose fields were others
        return {}
    return {name: values[name] for name in names if name in values}


def _told(trial: FrozenTrial, metric: str, ranges: Mapping[str, BaseDistribution]) -> Told:
    attributes = trial.user_attrs
    curve = vectors_of(trial) or {e: [v] for e, v in trial.intermediate_values.items()}
    config = attributes.get(CONFIG, {})
    metrics = attributes.get(METRICS, {})
    params = trial.params
    if not params and config:  # beside the search, but it has the fields
        params = _beside(config, ranges)
    reason = attributes.get(REASON, "")
    if trial.state == TrialState.FAIL and not reason:
        reason = "killed before it could begin"
    state = trial.state.name
    if trial.state == TrialState.RUNNING:
        state = "PAUSED" if attributes.get(PAUSED) else OPEN
    return Told(
        number=trial.number,
        state=state,
        epochs=max(curve, default=0),
        length=int(config.get("epochs", 0)),
        score=score_of(metrics, metric),
        metrics=metrics,
        params=params,
        ranges={name: ranges[name] for name in params if name in ranges},
        config=config,
        curve=dict(sorted(curve.items())),
        reason=reason,
        seconds=attributes.get(SECONDS, math.nan),
        images=attributes.get(IMAGES, math.nan),
        node=attributes.get(NODE, ""),
        checkpoint=attributes.get(CHECKPOINT, ""),
        began=trial.datetime_start.timestamp() if trial.datetime_start else math.nan,
        ended=trial.datetime_complete.timestamp() if trial.datetime_complete else math.nan,
    )
