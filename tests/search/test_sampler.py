"""The sampler learns from trials of every age, over spaces of every kind."""

import math
import time
import warnings
from typing import Any, Literal

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial, TrialState, create_trial

from raymlc.search.encoding import Encoding, union, without_unasked
from raymlc.search.gaussian import GaussianProcess, log_expected_improvement
from raymlc.search.rungs import CONFIG, REASON
from raymlc.search.sampler import RungSampler

EPOCHS = 9
SPACE: dict[str, BaseDistribution] = {
    "category": CategoricalDistribution(["a", None, 3.0]),
    "float": FloatDistribution(-1.0, 3.0),
    "int": IntDistribution(0, 4),
    "log": FloatDistribution(1e-4, 1e-1, log=True),
    "log_int": IntDistribution(1, 1024, log=True),
    "stepped": FloatDistribution(0.0, 1.0, step=0.25),
    "stepped_int": IntDistribution(10, 50, step=10),
}


def sampled(seed: int, direction: Literal["minimize", "maximize"] = "minimize") -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(direction=direction, sampler=RungSampler(seed, EPOCHS))


def begin(study: optuna.Study) -> Trial:
    trial = study.ask()
    trial.set_user_attr(CONFIG, {"epochs": EPOCHS})
    return trial


def distance(trial: Trial) -> float:
    """A bowl over a log range, a plain range and a category."""
    rate = math.log10(trial.suggest_float("rate", 1e-5, 1.0, log=True)) + 2
    drop = trial.suggest_float("drop", 0.0, 1.0) - 0.3
    kind = trial.suggest_categorical("kind", ["right", "wrong", "worse"])
    return rate**2 + drop**2 + ["right", "wrong", "worse"].index(kind)


@pytest.mark.parametrize("seed", range(3))
def test_values_go_to_numbers_and_back(seed: int) -> None:
    encoding = Encoding(SPACE)
    points = encoding.random(np.random.default_rng(seed), 50)
    for point in points:
        values = encoding.values(point)
        for name, range_ in SPACE.items():
            assert range_._contains(range_.to_internal_repr(values[name])), (name, values[name])
        again = encoding.values(encoding.point(values))
        assert again == {
            name: pytest.approx(value) if isinstance(value, float) else value
            for name, value in values.items()
        }


def test_every_whole_number_step_and_category_comes_up_as_often() -> None:
    encoding = Encoding(SPACE)
    drawn = [encoding.values(p) for p in encoding.random(np.random.default_rng(0), 5000)]
    for name, count in (("int", 5), ("stepped", 5), ("stepped_int", 5), ("category", 3)):
        _, counts = np.unique([str(values[name]) for values in drawn], return_counts=True)
        assert len(counts) == count
        assert counts.min() > 0.85 * 5000 / count, name


def test_points_near_others_stay_in_the_space_and_keep_most_of_them() -> None:
    encoding = Encoding(SPACE)
    rng = np.random.default_rng(0)
    parent = encoding.random(rng, 1)
    children = encoding.near(rng, parent, 400, step=0.1)
    numbers = children[:, encoding.choices_P == 0]
    assert ((numbers >= 0) & (numbers <= 1)).all()
    categories = children[:, encoding.choices_P > 0]
    assert (categories == np.floor(categories)).all()
    assert 0 < (children != parent).mean() < 0.7
    assert np.abs(numbers - parent[:, encoding.choices_P == 0]).mean() < 0.05
    lacking = np.where(np.arange(parent.shape[1]) == 1, np.nan, parent)
    assert not np.isnan(encoding.near(rng, lacking, 400, step=0.1)).any()


def test_a_missing_number_is_seen_in_the_middle_and_a_missing_category_as_none() -> None:
    encoding = Encoding({"c": SPACE["category"], "f": SPACE["float"]})
    lacking = encoding.point({})
    assert np.isnan(lacking).all()
    assert encoding.columns(lacking[None]).tolist() == [[0.0, 0.0, 0.0, 0.5]]


def test_what_a_conditional_space_would_not_ask_is_guessed_from_the_nearest_seen_point() -> None:
    seen = np.array([[0.0, 0.4, math.nan], [1.0, 0.4, 0.7]])  # a category; a number; conditional
    points = np.array([[0.0, 0.9, 0.1], [1.0, 0.1, 0.1]])
    np.testing.assert_array_equal(
        without_unasked(points, seen), [[0.0, 0.9, math.nan], [1.0, 0.1, 0.1]]
    )
    whole = np.array([[0.0, 0.4, 0.5]])
    assert without_unasked(points, whole) is points


def test_the_union_of_spaces_is_ordered_and_leaves_out_what_has_one_value() -> None:
    one = FloatDistribution(0.0, 1.0)
    found = union([{"b": one, "only": FloatDistribution(1.0, 1.0)}, {"a": one}])
    assert list(found.items()) == [("a", one), ("b", one)]


def test_the_gradient_of_the_fit_is_that_of_its_likelihood() -> None:
    rng = np.random.default_rng(0)
    points, values = rng.random((20, 3)), rng.normal(size=20)
    process = GaussianProcess(np.array([0, 1, 1]))  # two columns of one parameter

    def likelihood(log: np.ndarray[Any, np.dtype[np.float64]]) -> float:
        lengths = np.exp(log[:-1])[[0, 1, 1]]
        apart = np.sqrt((((points[:, None] - points[None]) / lengths) ** 2).sum(2))
        matern = (1 + 5**0.5 * apart + 5 * apart**2 / 3) * np.exp(-(5**0.5) * apart)
        covariance = matern + np.exp(log[-1]) * np.eye(20)
        fit = values @ np.linalg.solve(covariance, values)
        prior = ((log - process._prior) ** 2).sum()
        return float(-0.5 * (fit + np.linalg.slogdet(covariance)[1] + prior))

    process._log = np.array([0.1, -0.4, -1.0])
    steps = np.eye(3) * 1e-5
    slopes = [(likelihood(process._log + s) - likelihood(process._log - s)) / 2e-5 for s in steps]
    np.testing.assert_allclose(process._gradient(points, values), slopes, rtol=1e-4)


def test_the_process_is_the_textbooks_and_what_waits_narrows_only_its_deviation() -> None:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import Matern

    rng = np.random.default_rng(0)
    points, values, asked = rng.random((20, 2)), rng.normal(size=20), rng.random((30, 2))
    process = GaussianProcess(np.arange(2))
    process.observe(points, values)
    kernel = Matern(list(process.lengths), "fixed", 2.5)
    reference = GaussianProcessRegressor(kernel, alpha=process.noise, optimizer=None)
    mean, deviation = reference.fit(points, values).predict(asked, return_std=True)
    mine, my_deviation = process.predict(asked, np.empty((0, 2)))
    np.testing.assert_allclose(mine, mean, atol=1e-8)
    np.testing.assert_allclose(my_deviation, deviation, atol=1e-8)

    waiting = rng.random((3, 2))
    expected = reference.predict(waiting)
    seen = np.concatenate([points, waiting]), np.concatenate([values, expected])
    mean, deviation = reference.fit(*seen).predict(asked, return_std=True)
    mine, my_deviation = process.predict(asked, waiting)
    np.testing.assert_allclose(mine, mean, atol=1e-8)
    np.testing.assert_allclose(my_deviation, deviation, atol=1e-8)


def test_the_fit_finds_which_parameter_matters() -> None:
    rng = np.random.default_rng(0)
    points = rng.random((40, 3))
    values = np.sin(6 * points[:, 1])
    process = GaussianProcess(np.arange(3))
    process.fit(points, values - values.mean(), 40)
    assert process.lengths[1] < 0.5 * min(process.lengths[0], process.lengths[2])


def test_expected_improvement_is_the_integral_and_falls_without_end() -> None:
    means, deviations = np.array([-2.0, 0.0, 0.5]), np.array([1.0, 0.5, 2.0])
    drawn = np.random.default_rng(0).normal(size=400_000)
    integral = [np.maximum(m + s * drawn, 0).mean() for m, s in zip(means, deviations, strict=True)]
    np.testing.assert_allclose(
        np.exp(log_expected_improvement(means, deviations, 0.0)), integral, rtol=0.03
    )
    far = log_expected_improvement(-np.linspace(0, 60, 200), np.ones(200), 0.0)
    assert (np.diff(far) < 0).all()


def test_the_first_trials_are_farther_apart_than_random_ones() -> None:
    def least(sampler: optuna.samplers.BaseSampler) -> float:
        study = optuna.create_study(sampler=sampler)
        points = []
        for _ in range(8):
            trial = study.ask()
            points.append([trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)])
        apart = np.linalg.norm(np.array(points)[:, None] - np.array(points)[None], axis=2)
        return float(apart[np.triu_indices(8, 1)].min())

    seeds = range(10)
    mine = np.mean([least(RungSampler(seed, EPOCHS)) for seed in seeds])
    assert mine > 1.5 * np.mean([least(optuna.samplers.RandomSampler(seed)) for seed in seeds])


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_it_finds_the_bottom_of_a_bowl_from_trials_that_were_stopped_early(
    direction: Literal["minimize", "maximize"],
) -> None:
    study = sampled(0, direction)
    sign = 1 if direction == "minimize" else -1
    found = []
    for number in range(40):
        trial = begin(study)
        loss = distance(trial)
        found.append(loss)
        trial.report(sign * (loss + 1), 1)  # values fall with the epochs: ages must not be mixed
        if number % 3:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            trial.report(sign * loss, EPOCHS)
            study.tell(trial, sign * loss)
    assert np.median(found[-10:]) < 0.3
    assert np.median(found[:8]) > 1


def test_late_values_of_trials_that_came_far_outweigh_their_early_ones() -> None:
    study = sampled(0)
    proposed = []
    for _ in range(40):
        trial = begin(study)
        x = trial.suggest_float("x", 0.0, 1.0)
        proposed.append(x)
        trial.report(x, 1)  # the higher, the worse it looks and the better it gets
        trial.report(1 - x, EPOCHS)
        study.tell(trial, 1 - x)
    assert np.median(proposed[-20:]) > 0.7


def test_what_learns_is_found_where_nearly_all_trials_are_as_bad_as_chance() -> None:
    found = []
    for seed in range(4):
        study = sampled(seed)
        learned = []
        for _ in range(80):
            trial = begin(study)
            x = [trial.suggest_float(name, 0.0, 1.0) for name in "abcdef"]
            learned.append(x[0] > 0.6 and 0.3 < x[1] < 0.6)
            # What differs between the others leads away from there.
            loss = 0.1 if learned[-1] else 0.7 + 0.001 * (x[0] + abs(x[1] - 0.9))
            trial.report(loss, 1)
            study.tell(trial, state=TrialState.PRUNED)
        found.append(sum(learned))
    assert min(found) > 8


def test_a_category_that_asks_for_nothing_else_is_proposed_once() -> None:
    study = sampled(0)
    asked = []
    for _ in range(20):
        trial = begin(study)
        one = trial.suggest_categorical("one", ["a", "b"])
        loss = float(trial.suggest_int("two", 1, 40)) if one == "a" else 0.0
        asked.append(one)
        trial.report(loss, EPOCHS)
        study.tell(trial, loss)
    assert asked.count("b") == 1


def test_a_place_where_trials_fail_is_left() -> None:
    study = sampled(0)
    proposed = []
    for _ in range(40):
        trial = begin(study)
        x = trial.suggest_float("x", 0.0, 1.0)
        proposed.append(x)
        if x > 0.5:  # where losses would be the least
            trial.set_user_attr(REASON, "the loss was not finite")
            study.tell(trial, state=TrialState.FAIL)
        else:
            trial.report(1 - x, EPOCHS)
            study.tell(trial, 1 - x)
    assert np.mean(np.array(proposed[20:]) > 0.5) < 0.5
    assert np.median([x for x in proposed[20:] if x <= 0.5]) > 0.4


def test_trials_that_run_are_not_proposed_again() -> None:
    study = sampled(0)
    for _ in range(12):
        trial = begin(study)
        loss = distance(trial)
        trial.report(loss, EPOCHS)
        study.tell(trial, loss)
    rates = []
    for _ in range(8):
        trial = begin(study)
        distance(trial)
        rates.append((trial.params["rate"], trial.params["drop"]))
    assert len(set(rates)) == 8


def test_no_trial_is_proposed_twice_while_there_are_others() -> None:
    study = sampled(0)
    asked = []
    for _ in range(24):
        trial = begin(study)
        one = trial.suggest_categorical("one", ["a", "b", "c"])
        two = trial.suggest_int("two", 1, 8)
        asked.append((one, two))
        loss = float(two + (one != "b"))
        trial.report(loss, EPOCHS)
        study.tell(trial, loss)
    assert len(set(asked)) == 24


def test_a_conditional_space_with_every_kind_of_range_is_searched_without_a_warning() -> None:
    study = sampled(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        momenta = []
        for _ in range(40):
            trial = begin(study)
            loss = 0.0
            if trial.suggest_categorical("optimizer", ["adam", "sgd"]) == "sgd":
                momenta.append(trial.suggest_float("momentum", 0.0, 1.0))
                loss = abs(momenta[-1] - 0.9) - 0.5
            trial.suggest_int("fixed", 3, 3)
            for name, range_ in SPACE.items():
                trial._suggest(name, range_)
            trial.report(loss, EPOCHS)
            study.tell(trial, loss)
    assert np.median(momenta[-8:]) > 0.7
    assert len(momenta) > 20


def test_one_seed_proposes_the_same_trials_and_another_seed_others() -> None:
    def proposals(seed: int) -> list[dict[str, Any]]:
        study = sampled(seed)
        for _ in range(12):
            trial = begin(study)
            loss = distance(trial)
            trial.report(loss, EPOCHS)
            study.tell(trial, loss)
        return [trial.params for trial in study.trials]

    assert proposals(0) == proposals(0)
    assert proposals(0) != proposals(1)


def test_a_proposal_takes_a_fraction_of_a_second_after_a_thousand_trials() -> None:
    study = sampled(0)
    rng = np.random.default_rng(0)
    ranges: dict[str, BaseDistribution] = {f"x{n}": FloatDistribution(0.0, 1.0) for n in range(8)}
    study.add_trials(
        [
            create_trial(
                state=TrialState.PRUNED,
                params={name: float(rng.random()) for name in ranges},
                distributions=ranges,
                intermediate_values={epoch: float(rng.random()) for epoch in range(1, EPOCHS)},
                user_attrs={CONFIG: {"epochs": EPOCHS}},
            )
            for _ in range(1000)
        ]
    )
    study.ask(ranges)
    began = time.process_time()
    for _ in range(5):
        study.ask(ranges)
    assert (time.process_time() - began) / 5 < 0.5  # some 0.04 s on an idle core
