"""Samplers and pruners by their names on the command line."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Literal

import optuna

from raymlc.errors import UserError
from raymlc.search.front import RankPruner
from raymlc.search.pruner import OneEpochPruner, PromotingPruner, RungPruner
from raymlc.search.rungs import FACTOR, FIRST
from raymlc.search.sampler import RungSampler

# "rungs" are raymlc's own, made for each other; the others are Optuna's, by its names. "qmc", "gp"
# and "cmaes" learn from finished trials only, or from none.
SamplerName = Literal["rungs", "tpe", "random", "qmc", "gp", "cmaes", "nsga2"]
PrunerName = Literal[
    "rungs", "promote", "asha", "hyperband", "median", "wilcoxon", "one-epoch", "none"
]

_SAMPLERS_OF_SEVERAL = ("tpe", "random", "qmc", "gp", "nsga2")
_PRUNERS_OF_SEVERAL = ("asha", "rungs", "none")

# Packages that Optuna leaves to its user to install.
_NEEDS = {"qmc": "scipy", "gp": "scipy", "cmaes": "cmaes"}


def chosen(
    sampler: SamplerName | None, pruner: PrunerName | None, count: int
) -> tuple[SamplerName, PrunerName]:
    """Sampler and pruner of a sweep of so many objectives; None: what is best for them."""
    if count > 1:
        return sampler or "tpe", pruner or "asha"
    return sampler or "rungs", pruner or "promote"


def check_objectives(count: int, sampler: SamplerName, pruner: PrunerName) -> None:
    """Raises UserError for a sampler or a pruner that several objectives are too many for."""
    for option, name, able in (
        ("--sampler", sampler, _SAMPLERS_OF_SEVERAL),
        ("--pruner", pruner, _PRUNERS_OF_SEVERAL),
    ):
        if count > 1 and name not in able:
            raise UserError(
                f"of several metrics {option} must be one of {', '.join(able)}, but is {name};"
                " choose one of them, or one metric"
            )


def make_sampler(name: SamplerName, seed: int, epochs: int) -> optuna.samplers.BaseSampler:
    """A sampler by its name. epochs: of the longest trial.

    Raises UserError if a package is missing that Optuna's sampler needs.
    """
    package = _NEEDS.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(
            f"--sampler {name} needs {package}, which is not installed: pip install {package}"
        )
    with warnings.catch_warnings():
        # Some are marked experimental; the studies that they read are not their own format.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match name:
            case "rungs":
                return RungSampler(seed, epochs)
            case "tpe":
                return optuna.samplers.TPESampler(
                    seed=seed, multivariate=True, group=True, constant_liar=True
                )
            case "random":
                return optuna.samplers.RandomSampler(seed=seed)
            case "qmc":
                return optuna.samplers.QMCSampler(seed=seed, scramble=True)
            case "gp":
                return optuna.samplers.GPSampler(seed=seed)
            case "cmaes":
                return optuna.samplers.CmaEsSampler(seed=seed, consider_pruned_trials=True)
            case "nsga2":
                return optuna.samplers.NSGAIISampler(seed=seed)


def make_pruner(name: PrunerName, epochs: int, several: bool = False) -> optuna.pruners.BasePruner:
    """A pruner by its name. epochs: of the longest trial. several: objectives, not one.

    Optuna's halving has its first rung after a fifth of them, and further ones at each doubling.
    """
    if several and name != "none":
        first, factor = (FIRST, FACTOR) if name == "rungs" else (1 / 4, 2.0)
        return RankPruner(epochs, first, factor)
    match name:
        case "rungs":
            return RungPruner(epochs)
        case "promote":
            return PromotingPruner(epochs)
        case "one-epoch":
            return OneEpochPruner()
        case "asha":
            return optuna.pruners.SuccessiveHalvingPruner(
                min_resource=max(1, round(epochs / 5)), reduction_factor=2
            )
        case "hyperband":
            return optuna.pruners.HyperbandPruner(max_resource=epochs)
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=4)
        case "wilcoxon":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.pruners.WilcoxonPruner()
        case "none":
            return optuna.pruners.NopPruner()
