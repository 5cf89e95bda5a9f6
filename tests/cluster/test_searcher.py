"""What is read out of a result that has been through Tune, and which trials run again."""

from typing import Any

import pytest

from raymlc.cluster.packing import LACKS_MEMORY, MEMORY, GpuMemory, Packing
from raymlc.cluster.searcher import StudyScheduler, StudySearcher, epoch_metrics
from raymlc.cluster.train import FAILURE, METRICS
from raymlc.search.study import Assignment
from raymlc.trial import TrialConfig


@pytest.mark.parametrize(
    ("result", "metrics"),
    [
        (
            {"metrics": [("epoch", 2.0), ("val/accuracy/color", 0.5)], "training_iteration": 2},
            {"epoch": 2.0, "val/accuracy/color": 0.5},
        ),
        ({"failure": "the loss was not finite", "done": True, "time_total_s": 1.0}, {}),
    ],
    ids=["an epoch", "a failure"],
)
def test_a_result_gives_back_every_metric_of_its_trial_and_nothing_of_tunes(
    result: dict[str, Any], metrics: dict[str, float]
) -> None:
    assert epoch_metrics(result) == metrics


class Told:
    """In place of a recorder: hands out so many trials, and keeps what it is told."""

    def __init__(self, trials: int) -> None:
        self.numbers = list(range(trials))
        self.epochs: list[tuple[int, float]] = []
        self.ends: list[tuple[int, str]] = []
        self.finished = True

    def next(self) -> Assignment | None:
        return Assignment(self.numbers.pop(0), TrialConfig(epochs=9)) if self.numbers else None

    def epoch(self, number: int, metrics: dict[str, float], node: str) -> bool:
        self.epochs.append((number, metrics["epoch"]))
        return False

    def end(self, number: int, failure: str) -> None:
        self.ends.append((number, failure))


class Tuned:
    """As much of a Tune trial as the scheduler looks at."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def epoch_of(number: int, **metrics: float) -> dict[str, Any]:
    """A result with an epoch, after which the process holds 10 of 100 bytes."""
    told = {"epoch": float(number), "images": 64.0 * number, "images_per_second": 64.0} | metrics
    memory = GpuMemory(10, 0, 100)
    return {METRICS: list(told.items()), MEMORY: memory, "pid": 1, "time_this_iter_s": 0.0}


def sharing(trials: int) -> tuple[Told, Any, Any]:
    """A sweep on one GPU, as many trials on it as prove to pay."""
    told: Any = Told(trials)
    searcher = StudySearcher(told, Packing({1: 1, 2: 2}))
    return told, searcher, StudyScheduler(told, searcher)


def test_a_trial_that_moves_goes_on_under_its_number_and_the_study_hears_nothing() -> None:
    told, searcher, scheduler = sharing(2)
    first = searcher.suggest("a")
    assert (first["number"], first["share"]) == (0, 1)
    assert searcher.suggest("b") is None, "the first one is alone"
    assert scheduler.on_trial_result(None, Tuned("a"), epoch_of(1)) == "CONTINUE"
    assert scheduler.on_trial_result(None, Tuned("a"), epoch_of(2)) == "STOP"
    searcher.on_trial_complete("a", epoch_of(2))
    assert searcher.suggest("b") == first | {"share": 2}
    assert searcher.suggest("c")["number"] == 1
    # What it tells again is no news, and the next epoch is.
    for epoch in (1, 2, 3):
        assert scheduler.on_trial_result(None, Tuned("b"), epoch_of(epoch)) == "CONTINUE"
    searcher.on_trial_complete("b", epoch_of(9))
    assert told.epochs == [(0, 1), (0, 2), (0, 1), (0, 2), (0, 3), (0, 9)]
    assert told.ends == [(0, "")]
    assert searcher.suggest("d") is None, "the other one may move"
    searcher.on_trial_complete("c", epoch_of(9))
    assert searcher.suggest("d") == "FINISHED"


def test_a_trial_that_nobody_will_join_stays_where_it_is() -> None:
    _, searcher, scheduler = sharing(1)
    searcher.suggest("a")
    searcher._packing.number = 2
    assert searcher.suggest("b") is None
    for epoch in (1, 2):
        assert scheduler.on_trial_result(None, Tuned("a"), epoch_of(epoch)) == "CONTINUE"


@pytest.mark.parametrize("within", ["a step", "something else"])
def test_a_trial_out_of_memory_beside_another_goes_on_alone(within: str) -> None:
    told, searcher, scheduler = sharing(2)
    searcher._packing.number = 2
    searcher.suggest("a")
    searcher.suggest("b")
    lost = {FAILURE: "CUDA out of memory", LACKS_MEMORY: True, "done": True}
    if within == "a step":  # of which it takes half as many images at a time
        assert (
            scheduler.on_trial_result(None, Tuned("a"), epoch_of(1, micro_batch_size=32)) == "STOP"
        )
        lost = epoch_of(1)
    searcher.on_trial_complete("a", lost)
    assert told.ends == []
    assert searcher.suggest("c") is None
    assert scheduler.on_trial_result(None, Tuned("b"), epoch_of(1)) == "STOP"
    searcher.on_trial_complete("b", epoch_of(1))
    alone = searcher.suggest("c")
    assert (alone["number"], alone["share"]) == (0, 1)
    # With nobody beside it, it fails.
    searcher.on_trial_complete("c", {FAILURE: "out of memory", LACKS_MEMORY: True, "done": True})
    assert told.ends == [(0, "out of memory")]
