"""The sampler: Bayesian optimisation that learns from trials of every age, finished or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from raymlc.search.encoding import Encoding, Floats, union, without_unasked
from raymlc.search.gaussian import GaussianProcess, log_expected_improvement
from raymlc.search.rungs import CONFIG, FACTOR, FIRST, fractions, losses, order, trust

_ANYWHERE, _NEAR = 200, 300  # candidates of a proposal: in the whole space; near the best trials
_BEST = 10  # trials that candidates are drawn near to
_STEP = 0.2  # of a range: how far from them
_UNLED = 5  # one trial of so many is drawn at random
_OBSERVED = 250  # trials that the process sees, at most: the better half and some of the others
_FITTED = 150  # of them, those that its lengths are fitted to
_STEPS = 12  # of a fit


class RungSampler(optuna.samplers.BaseSampler):
    """Proposes where a trial is most likely to rank above all others, by a Gaussian process.

    Trials are ranked across ages as `rungs.order` has it: stopped, running and failed ones teach
    as well as finished ones, and none is compared with another at a different age. The model is of
    normal scores of the ranks, so a metric's scale does not matter, nor that one loss exploded.
    Its question is the expected improvement (doi:10.1023/A:1008306431147), asked at points anywhere
    and near the best; proposals that run, unseen yet, count as seen with what the model expects.
    Every fifth trial is drawn at random: where most trials are as bad as chance, their ranks are
    noise that leads away from the few that learn (a share as of BOHB, arXiv:1807.01774).

    Conditional spaces, categories, whole numbers, steps and log scales are welcome.
    longest: epochs of trials that do not say how many they have. startup: trials proposed before
    the first model: each far from the ones before it. first, factor: rungs, as of `RungPruner`.
    """

    def __init__(
        self,
        seed: int,
        longest: int,
        startup: int = 8,
        first: float = FIRST,
        factor: float = FACTOR,
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._independent = optuna.samplers.RandomSampler(seed=seed)
        self._longest = longest
        self._startup = startup
        self._fractions = fractions(first, factor)
        self._space: dict[str, BaseDistribution] = {}
        self._known: dict[int, Floats] = {}
        self._process: tuple[list[str], GaussianProcess, int] | None = None

    def reseed_rng(self) -> None:
        """Take another seed, as parallel copies of a study do."""
        self._rng = np.random.default_rng()
        self._independent.reseed_rng()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Every parameter that any trial has asked for."""
        return union([other.distributions for other in study.get_trials(deepcopy=False)])

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A value at random, for a parameter that no trial before has asked for."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A value for every parameter known; the space asks for those that it needs."""
        if not search_space:
            return {}
        encoding = Encoding(search_space)
        trials = [other for other in study.get_trials(deepcopy=False) if other.params]
        points = self._points(encoding, trials)
        if trial.number % _UNLED == _UNLED - 1:
            drawn = encoding.random(self._rng, 20)
            return encoding.values(_first_new(encoding, drawn, list(points.values())))
        rungs = losses(trials, self._fractions, self._longest, study.direction)
        ranked = [number for number in order(rungs) if number in points]
        if len(trials) < self._startup or len(ranked) < self._startup // 2:
            return encoding.values(self._far(encoding, np.stack(list(points.values()))))
        waiting = [
            points[other.number]
            for other in trials
            if not other.state.is_finished() and other.number not in rungs[0]
        ]
        return encoding.values(self._best(encoding, *self._judged(rungs, ranked, points), waiting))

    def _points(self, encoding: Encoding, trials: Sequence[FrozenTrial]) -> dict[int, Floats]:
        """Every trial's point, by its number. Those of trials that asked all are kept for later."""
        if self._space != encoding.space:
            self._space, self._known = encoding.space, {}
        points = {}
        for trial in trials:
            point = self._known.get(trial.number)
            if point is None:
                point = encoding.point(trial.params)
                if CONFIG in trial.user_attrs or trial.state.is_finished():
                    self._known[trial.number] = point
            points[trial.number] = point
        return points

    def _far(self, encoding: Encoding, seen_NP: Floats) -> Floats:
        """Of some points at random, the one that is farthest from its nearest seen one."""
        candidates = encoding.random(self._rng, 32)
        apart = encoding.columns(without_unasked(candidates, seen_NP))[:, None]
        apart = apart - encoding.columns(seen_NP)[None]
        return np.asarray(candidates[(apart**2).sum(2).min(1).argmax()])

    def _judged(
        self,
        rungs: Sequence[Mapping[int, float]],
        ranked: Sequence[int],
        points: Mapping[int, Floats],
    ) -> tuple[Floats, Floats]:
        """The points and their values, the best first: normal scores of the ranks.

        Values of trials that were seen at early rungs only are drawn to the middle, the more, the
        less those rungs foretell the last one before the end.
        """
        normal = NormalDist()
        count = len(ranked)
        trusted = trust(rungs[:-1])
        values_N = np.array([normal.inv_cdf(1 - (at + 0.5) / count) for at in range(count)])
        values_N *= [1.0 if number in rungs[-2] else trusted for number in ranked]
        best_first = np.argsort(-values_N, kind="stable")
        return np.stack([points[ranked[at]] for at in best_first]), values_N[best_first]

    def _best(
        self,
        encoding: Encoding,
        ranked_NP: Floats,
        values_N: Floats,
        waiting: Sequence[Floats],
    ) -> Floats:
        """The candidate of the greatest expected improvement. ranked_NP: the best first."""
        count = len(ranked_NP)
        kept = self._kept(count)
        points_NC = encoding.columns(ranked_NP[kept])
        values_N = values_N[kept] - values_N[kept].mean()
        values_N /= max(float(values_N.std()), 1e-9)
        process = self._fitted(encoding, points_NC, values_N, count)
        process.observe(points_NC, values_N)
        waiting_WC = encoding.columns(np.array(waiting).reshape(-1, len(encoding.names)))
        best = float(process.predict(points_NC[:20], waiting_WC)[0].max())
        candidates = np.concatenate(
            [
                encoding.random(self._rng, _ANYWHERE),
                encoding.near(self._rng, ranked_NP[:_BEST], _NEAR, _STEP),
            ]
        )
        asked_MC = encoding.columns(without_unasked(candidates, ranked_NP[kept]))
        mean_M, deviation_M = process.predict(asked_MC, waiting_WC)
        gain_M = log_expected_improvement(mean_M, deviation_M, best)
        known = [*ranked_NP, *waiting]
        return _first_new(encoding, candidates[np.argsort(-gain_M)], known)

    def _kept(self, count: int) -> NDArray[np.int64]:
        """Which ranks the process sees: all, or the better half of its number and some others."""
        if count <= _OBSERVED:
            return np.arange(count)
        half = _OBSERVED // 2
        others = half + self._rng.permutation(count - half)[: _OBSERVED - half]
        return np.concatenate([np.arange(half), np.sort(others)])

    def _fitted(
        self, encoding: Encoding, points_NC: Floats, values_N: Floats, count: int
    ) -> GaussianProcess:
        """The process, fitted anew when trials have become a tenth more."""
        if self._process is None or self._process[0] != encoding.names:
            self._process = (encoding.names, GaussianProcess(encoding.parameter_of_C), 0)
        names, process, fitted_at = self._process
        if count >= fitted_at * 1.1 + 1 or count < 20:
            some = self._rng.permutation(len(values_N))[:_FITTED]
            process.fit(points_NC[some], values_N[some] - values_N[some].mean(), _STEPS)
            self._process = (names, process, count)
        return process


def _first_new(encoding: Encoding, candidates: Floats, known: Sequence[Floats]) -> Floats:
    """The first candidate whose values are not a known point's; the first one if all are."""
    known_NP = np.stack(known)
    taken_NP = _key(known_NP)
    for candidate in candidates:
        # Whole numbers and steps: several points are one value.
        point = encoding.point(encoding.values(candidate))
        if not (taken_NP == _key(without_unasked(point[None], known_NP))).all(1).any():
            return np.asarray(candidate)
    return np.asarray(candidates[0])


def _key(points_NP: Floats) -> Floats:
    return np.asarray(np.nan_to_num(points_NP, nan=-1.0).round(9))
