"""The simulator of sweeps keeps its books, and its peers decide as the originals do."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from raymlc.cluster.environment import prepare_environment
from raymlc.search.pruner import OneEpochPruner, PromotingPruner, RungPruner
from raymlc.search.rungs import CONFIG, REASON
from raymlc.search.sampler import RungSampler
from tests.benchmarks.search.regret import mean_over_families, runnable, sweep, table
from tests.benchmarks.search.searchers import (
    OneEpochThenTop,
    Random,
    RayAsha,
    Rows,
    StockRay,
    StudySearcher,
)
from tests.benchmarks.search.simulator import (
    Curves,
    Decision,
    Hyperparameter,
    regret_over_time,
    shown_over_time,
    simulate,
)

EPOCHS = 16


def made_curves(count: int = 200, diverging: int = 10) -> Curves:
    """Curves that fall to a bowl's height, over one plain and one log axis; the last ones burst."""
    rng = np.random.default_rng(0)
    unit_ND = rng.random((count, 2))
    axes = [
        Hyperparameter("drop", 0.0, 1.0, False, False),
        Hyperparameter("width", 1, 1000, True, True),
    ]
    raw_ND = np.stack([unit_ND[:, 0], 1000 ** unit_ND[:, 1]], axis=1)
    final_N = ((unit_ND - 0.3) ** 2).sum(1)
    loss_NE = final_N[:, None] + 1 / np.arange(1, EPOCHS + 1)
    loss_NE += 0.02 * rng.normal(size=loss_NE.shape)
    length_N = rng.integers(EPOCHS // 2, EPOCHS + 1, size=count)
    alive_N = length_N.copy()
    alive_N[count - diverging :] = 2
    loss_NE[count - diverging :, 2:] = 10.0
    seconds_N = rng.uniform(1, 3, size=count)
    ends_NE = seconds_N[:, None] * np.arange(1, EPOCHS + 1)
    return Curves("made/curves", axes, unit_ND, raw_ND, loss_NE, length_N, alive_N, ends_NE)


class Script:
    """Runs rows in order; a decision for each trial and epoch, "go" where none stands."""

    def __init__(self, rows: list[int], decisions: dict[tuple[int, int], Decision]) -> None:
        self.rows = rows
        self.decisions = decisions
        self.asked = 0
        self.paused: list[int] = []
        self.ended: list[tuple[int, bool]] = []

    def ask(self) -> tuple[int, int] | None:
        if self.asked < len(self.rows):
            self.asked += 1
            return self.asked - 1, self.rows[self.asked - 1]
        return (number := self.paused.pop(0), self.rows[number]) if self.paused else None

    def report(self, number: int, epoch: int, loss: float, last: bool) -> Decision:
        decision = self.decisions.get((number, epoch), "go")
        if decision == "pause":
            self.paused.append(number)
        return decision

    def end(self, number: int, diverged: bool) -> None:
        self.ended.append((number, diverged))


def test_epochs_take_their_time_on_workers_that_are_never_idle() -> None:
    curves = made_curves()
    script = Script([0, 1, 2], {(0, 2): "stop"})
    trace = simulate(curves, script, workers=2, until=1e9)
    ends = curves.ends_NE
    start_of_2 = ends[0, 1]  # trial 0 is stopped after two epochs, and its worker takes trial 2
    expected = sorted(
        [(ends[0, e], 0, e + 1) for e in range(2)]
        + [(ends[1, e], 1, e + 1) for e in range(curves.length_N[1])]
        + [(start_of_2 + ends[2, e], 2, e + 1) for e in range(curves.length_N[2])]
    )
    got = list(zip(trace.times, trace.rows, trace.epochs, strict=True))
    assert [(row, epoch) for _, row, epoch in got] == [(row, epoch) for _, row, epoch in expected]
    np.testing.assert_allclose(trace.times, [time for time, _, _ in expected])
    assert sorted(script.ended) == [(0, False), (1, False), (2, False)]
    assert trace.losses == [curves.loss_NE[row, epoch - 1] for _, row, epoch in got]


def test_a_paused_trial_goes_on_where_it_was_and_pays_for_no_epoch_twice() -> None:
    curves = made_curves()
    trace = simulate(curves, Script([0, 1], {(0, 3): "pause"}), workers=1, until=1e9)
    assert trace.epochs == [
        1, 2, 3, *range(1, curves.length_N[1] + 1), *range(4, curves.length_N[0] + 1)
    ]  # fmt: skip
    whole = curves.ends_NE[0, curves.length_N[0] - 1] + curves.ends_NE[1, curves.length_N[1] - 1]
    assert trace.times[-1] == pytest.approx(whole)


def test_a_diverged_run_ends_with_the_epoch_in_which_it_bursts() -> None:
    curves = made_curves()
    script = Script([199], {})
    trace = simulate(curves, script, workers=1, until=1e9)
    assert trace.epochs == [1, 2, 3]
    assert trace.losses[-1] == 10.0
    assert script.ended == [(0, True)]


def test_nothing_counts_that_would_end_after_the_time() -> None:
    curves = made_curves()
    trace = simulate(curves, Script([0], {}), workers=1, until=float(curves.ends_NE[0, 2]) + 0.01)
    assert trace.epochs == [1, 2, 3]


def test_regret_is_of_the_final_value_of_the_trial_whose_latest_value_is_best() -> None:
    curves = made_curves(count=4, diverging=0)
    curves.loss_NE[:] = np.array([[3.0], [2.0], [1.0], [3.0]])
    curves.loss_NE[0, :2] = 0.5  # good at first, and as bad as any in the end
    curves.loss_NE[1, 4:] = 1.25  # the other way round
    trace = simulate(curves, Script([1, 0], {}), workers=1, until=1e9)
    begins = trace.epochs.index(1, 1)  # of row 0, the second that runs
    times = [0.0, trace.times[0], trace.times[begins], trace.times[begins + 2]]
    # The best final loss is 1, the median 2.125; what is above it, or nothing yet, counts as 1.
    second = pytest.approx(0.25 / 1.125)
    assert regret_over_time(curves, trace, times).tolist() == [1.0, second, 1.0, second]
    assert shown_over_time(curves, trace, times).tolist() == [
        1.0, pytest.approx(1 / 1.125), 0.0, 0.0
    ]  # fmt: skip


def test_a_row_runs_once() -> None:
    curves = made_curves(count=4, diverging=0)
    rows = Rows(curves)
    assert rows.nearest(curves.unit_ND[2]) == 2
    assert rows.nearest(curves.unit_ND[2]) != 2
    rng = np.random.default_rng(0)
    assert rows.anywhere(rng) is not None
    assert rows.nearest(curves.unit_ND[2]) is not None
    assert rows.anywhere(rng) is None
    assert rows.nearest(curves.unit_ND[2]) is None


@pytest.mark.parametrize("longest", [10, 16, 50])
def test_asha_stops_what_that_of_ray_stops(longest: int) -> None:
    prepare_environment(own_ray=True)
    from ray.tune.schedulers import AsyncHyperBandScheduler

    theirs = AsyncHyperBandScheduler(time_attr="epoch", metric="loss", mode="min", max_t=longest)
    mine = RayAsha(longest)
    rng = np.random.default_rng(0)
    controller: Any = None
    stops = []
    for number in range(60):
        trial = SimpleNamespace(trial_id=str(number))
        theirs.on_trial_add(controller, trial)
        for epoch in range(1, longest + 1):
            result = {"epoch": epoch, "loss": float(rng.normal())}
            stopped = theirs.on_trial_result(controller, trial, result) == "STOP"
            assert mine.stops(number, epoch, result["loss"]) == stopped
            if stopped:
                theirs.on_trial_complete(controller, trial, result)
                stops.append(epoch)
                break
    assert {1, 4, longest} <= set(stops)


def test_one_epoch_each_then_the_best_in_full() -> None:
    curves = made_curves()
    trace = simulate(curves, OneEpochThenTop(curves, 0, first=20), workers=1, until=1e9)
    firsts, rest = trace.rows[:20], trace.rows[20:]
    assert set(trace.epochs[:20]) == {1}
    assert len(set(firsts)) == 20
    best = min(firsts, key=lambda row: curves.loss_NE[row, 0])
    assert set(rest[: curves.length_N[best] - 1]) == {best}


def test_to_stock_optuna_every_trial_is_complete_with_its_last_value() -> None:
    curves = made_curves()
    searcher = StockRay(curves, 0)
    trace = simulate(curves, searcher, workers=2, until=5 * curves.full_run)
    trials = [t for t in searcher.study.trials if t.state.is_finished()]
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    assert not any(t.intermediate_values for t in trials)
    assert trace.epochs.count(1) > 1.5 * trace.epochs.count(5) > 0


def test_to_the_study_a_trial_is_pruned_complete_or_failed_and_has_its_rows_values() -> None:
    curves = made_curves(diverging=100)
    searcher = StudySearcher(curves, RungSampler(0, EPOCHS), RungPruner(EPOCHS))
    simulate(curves, searcher, workers=2, until=15 * curves.full_run)
    trials = [t for t in searcher.study.trials if t.state.is_finished()]
    assert {t.state.name for t in trials} == {"PRUNED", "COMPLETE", "FAIL"}
    for trial in trials:
        row = int(np.abs(curves.raw_ND[:, 0] - trial.params["drop"]).argmin())
        assert trial.params["width"] == round(curves.raw_ND[row, 1])
        assert trial.user_attrs[CONFIG] == {"epochs": curves.length_N[row]}
        assert (REASON in trial.user_attrs) == (trial.state == TrialState.FAIL)
        if trial.state == TrialState.COMPLETE:
            assert max(trial.intermediate_values) == curves.length_N[row]


def test_halted_trials_run_on_in_the_study_and_those_promoted_go_on_before_new_ones() -> None:
    curves = made_curves(diverging=0)
    searcher = StudySearcher(curves, RungSampler(0, EPOCHS), PromotingPruner(EPOCHS))
    trace = simulate(curves, searcher, workers=1, until=15 * curves.full_run)
    assert {t.state.name for t in searcher.study.trials} == {"RUNNING", "COMPLETE"}
    seen = [row for row, epoch in zip(trace.rows, trace.epochs, strict=True) if epoch == 1]
    came_back = [
        row
        for before, row, epoch in zip(trace.rows, trace.rows[1:], trace.epochs[1:], strict=False)
        if row != before and epoch > 1
    ]
    assert len(came_back) > 1
    assert len(seen) == len(set(seen))  # and none began anew


def test_with_a_pruner_that_waits_for_all_the_tables_best_tenth_runs_to_its_end() -> None:
    curves = made_curves(count=30, diverging=0)
    sampler = optuna.samplers.RandomSampler(seed=0)
    searcher = StudySearcher(curves, sampler, OneEpochPruner())
    trace = simulate(curves, searcher, workers=2, until=1e9)
    assert trace.epochs[:30] == [1] * 30
    best = np.argsort(curves.loss_NE[:, 0])[:3]
    assert set(trace.rows[30:]) == set(best.tolist())
    assert len(trace.rows) == 30 + int((curves.length_N[best] - 1).sum())


def test_a_peer_whose_package_is_missing_is_left_out_with_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert runnable(["random", "syne-asha", "rungs"]) == ["random", "rungs"]
    assert "without syne-asha: syne_tune is not installed" in capsys.readouterr().out


def test_raymlcs_searcher_beats_random_search_on_a_bowl() -> None:
    curves = made_curves()
    until = 10 * curves.full_run / 2

    def regret(make: Any) -> float:
        final = [
            regret_over_time(curves, simulate(curves, make(seed), 2, until), [until])[0]
            for seed in range(5)
        ]
        return float(np.mean(final))

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    mine = regret(lambda s: StudySearcher(curves, RungSampler(s, EPOCHS), RungPruner(EPOCHS)))
    assert mine < 0.5 * regret(lambda s: Random(curves, s))


def test_siblings_count_as_one_family_and_the_table_names_every_searcher() -> None:
    lines = [
        {"searcher": "a", "task": task, "seed": 0, "regret": [x] * 20, "shown": [x] * 20,
         "trials": 3, "seconds": 0.1}
        for task, x in (("taskset/one", 0.2), ("taskset/two", 0.4), ("other/task", 0.9))
    ]  # fmt: skip
    assert mean_over_families(lines, "regret") == [pytest.approx(0.6)] * 20
    text = table(lines, ["taskset/one", "taskset/two", "other/task"], ["a"])
    assert "a                          1  0.600 [0.600 0.600]" in text


def test_a_sweep_gives_a_line_of_results() -> None:
    line = sweep(made_curves(), "random-asha", 0)
    assert line["task"] == "made/curves"
    assert len(line["regret"]) == len(line["shown"]) == 20
    assert line["regret"][-1] < line["regret"][0] <= 1
