"""Trials that a study takes over: of a space that was changed, of another sweep, of a file.

One law decides: a trial belongs to a space if the space, answered with the trial's own values,
gives this very trial. Names, ranges, conditions and fixed fields are all in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from raymlc.errors import UserError
from raymlc.fields import PerHead
from raymlc.search.rungs import ASIDE, CONFIG
from raymlc.search.space import Space
from raymlc.trial import TrialConfig

ORIGIN = "origin"  # a trial's attribute: where it was taken over from
_WHOLE = "whole"  # a study's attribute: all trials have been copied
_SEED = "seed"  # the one field that makes no trial another one


class Unfit(ValueError):
    """A trial that a space cannot give, and why, in a clause."""


@dataclass(frozen=True)
class Answers:
    """What a space asks for to give a certain trial, and what it has to be told."""

    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]


def answers(space: Space, config: TrialConfig) -> Answers:
    """The answers by which `space` gives `config`, whatever its seed. Raises Unfit if none do."""
    fit, given = _asked(space, config)
    new, old = given.to_dict(), config.to_dict()
    other = [name for name in new if new[name] != old[name] and name != _SEED]
    if other:
        raise Unfit(f"{other[0]} is {old[other[0]]!r}, but the space gives {new[other[0]]!r}")
    return fit


def _asked(space: Space, config: TrialConfig) -> tuple[Answers, TrialConfig]:
    """A space answered with a trial's values, and what it gives. Raises Unfit for a range."""
    values = values_of(config)
    trial = FixedTrial(values)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a range: said below, in fewer words
            given = space(trial)
    except UserError as error:
        raise Unfit(str(error)) from error
    for name, distribution in trial.distributions.items():
        if not distribution._contains(distribution.to_internal_repr(values[name])):
            raise Unfit(f"{name} is {values[name]}, which {_range(distribution)} does not hold")
    return Answers(trial.params, trial.distributions), given


def values_of(config: TrialConfig) -> dict[str, Any]:
    """The values of a trial by every name that a space may ask for, `field/head` among them."""
    values = config.to_dict()
    for name in list(values):
        value = getattr(config, name)
        if isinstance(value, PerHead):
            values |= {f"{name}/{head}": one for head, one in value.items()}
    return values


def newest(storage: BaseStorage, name: str) -> str:
    """The name of the study that a sweep goes on with: its own, or the last of those after it."""
    after = [
        study.study_name
        for study in storage.get_all_studies()
        if study.study_name != name
        and _base(study.study_name) == name
        and _WHOLE in study.user_attrs  # not one whose copying was cut short
    ]
    return max(after, key=_number, default=name)


def respaced(study: optuna.Study, space: Space) -> tuple[optuna.Study, dict[int, str]]:
    """The study for a space that has changed, and which of its trials do not belong to it, and why.

    Where all do, in the ranges that they had, it is the same study. Else it is a new one in the
    same storage with all of the trials under their numbers; those that do not belong are beside
    the search: the sampler knows nothing of them, and no trial is compared with them.
    """
    unfit: dict[int, str] = {}
    copies: list[FrozenTrial] = []
    changed = False
    for trial in study.get_trials(deepcopy=False):
        copy, reason = _in_space(deepcopy(trial), space)
        changed |= copy.params != trial.params or copy.distributions != trial.distributions
        copies.append(copy)
        if reason:
            unfit[trial.number] = reason
    if not changed:
        return study, unfit
    return _copied(study, copies), unfit


def take_over(
    study: optuna.Study, space: Space, trials: Sequence[FrozenTrial], origin: str
) -> list[int]:
    """Let finished trials of another study inform the sampler of this one, which is empty.

    trials: with CONFIG, of the same data and metric. Only those that ran to their end and belong to
    `space` are taken; their numbers in the other study are returned.
    """
    taken = []
    for trial in trials:
        if trial.state != TrialState.COMPLETE or CONFIG not in trial.user_attrs:
            continue
        try:
            fit = answers(space, TrialConfig.from_dict(trial.user_attrs[CONFIG]))
        except (Unfit, UserError):
            continue
        study.add_trial(
            create_trial(
                values=trial.values,
                params=fit.params,
                distributions=fit.distributions,
                user_attrs={ASIDE: True, ORIGIN: f"{origin} trial {trial.number}"},
            )
        )
        taken.append(trial.number)
    return taken


def enqueue_best(study: optuna.Study, space: Space, trials: Sequence[FrozenTrial]) -> int | None:
    """Have the first of some trials run whose values `space` can take; its number, or None.

    trials: of another study, the best first. What the space does not ask for is as it gives it.
    """
    for trial in trials:
        try:
            fit, _ = _asked(space, TrialConfig.from_dict(trial.user_attrs[CONFIG]))
        except (Unfit, UserError):
            continue
        study.enqueue_trial(fit.params)
        return trial.number
    return None


def enqueue(study: optuna.Study, space: Space, config: TrialConfig) -> str:
    """Have a given trial run before others; why the sampler cannot learn from it, or nothing."""
    try:
        fit = answers(space, config)
    except Unfit as error:
        study.enqueue_trial({}, user_attrs={CONFIG: config.to_dict()})
        return str(error)
    study.enqueue_trial(fit.params, user_attrs={CONFIG: config.to_dict()})
    return ""


def _in_space(trial: FrozenTrial, space: Space) -> tuple[FrozenTrial, str]:
    """The trial as a study over `space` has it, and why it does not belong there, if so."""
    stored = trial.user_attrs.get(CONFIG)
    if stored is None:
        return trial, ""
    try:
        fit = answers(space, TrialConfig.from_dict(stored))
    except (Unfit, UserError) as error:
        trial.params, trial.distributions = {}, {}
        trial.user_attrs[ASIDE] = True
        return trial, str(error)
    trial.distributions, trial.params = fit.distributions, fit.params
    if ORIGIN not in trial.user_attrs:
        trial.user_attrs.pop(ASIDE, None)
    return trial, ""


def _copied(study: optuna.Study, trials: Sequence[FrozenTrial]) -> optuna.Study:
    storage = study._storage
    base = _base(study.study_name)
    names = [one.study_name for one in storage.get_all_studies()]
    number = 1 + max(_number(name) for name in names if _base(name) == base)
    name = f"{base}#{number}"
    copy = optuna.create_study(
        storage=storage,
        study_name=name,
        directions=study.directions,
        sampler=study.sampler,
        pruner=study.pruner,
    )
    _copy_attributes(copy, study.user_attrs)
    copy.add_trials(trials)
    copy.set_user_attr(_WHOLE, True)
    return copy


def _copy_attributes(study: optuna.Study, attributes: Mapping[str, Any]) -> None:
    for name, value in attributes.items():
        if name != _WHOLE:
            study.set_user_attr(name, value)


def _base(name: str) -> str:
    base, mark, number = name.rpartition("#")
    return base if mark and number.isdigit() else name


def _number(name: str) -> int:
    return 1 if _base(name) == name else int(name.rpartition("#")[2])


def _range(distribution: BaseDistribution) -> str:
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    assert isinstance(
        distribution,
        optuna.distributions.FloatDistribution | optuna.distributions.IntDistribution,
    )
    return f"{distribution.low} to {distribution.high}"
