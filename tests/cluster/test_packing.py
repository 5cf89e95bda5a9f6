"""How many trials share a GPU, decided from what is measured of them."""

import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raymlc.cluster import launch, sweep
from raymlc.cluster.packing import (
    GAIN,
    RESERVE,
    STEPS,
    GpuMemory,
    Packing,
    SharedEpoch,
    gpu_memory,
    mps_line,
    trials_per_gpu,
)
from raymlc.cluster.probe import Node
from raymlc.cluster.sweep import Resources, place, share_gpus
from raymlc.options import TuneOptions

GIB = 2**30


@pytest.mark.parametrize(
    ("taken", "rates", "lost", "number"),
    [
        (1, {}, (), 1),  # how fast one is comes first
        (1, {1: 100}, (), 2),
        (1, {1: 100, 2: 190}, (), 4),
        (1, {1: 100, 2: 190, 4: 300}, (), 8),
        (1, {1: 100, 2: 190, 4: 300, 8: 500}, (), 8),
        # A step that does not pay is the last one; the fastest number is kept.
        (1, {1: 100, 2: 190, 4: 300, 8: 290}, (), 4),
        (1, {1: 100, 2: 109}, (), 2),
        (1, {1: 100, 2: 100}, (), 1),
        (1, {1: 100, 2: 60}, (), 1),
        (1, {1: 100, 2: 111}, (), 4),
        # Of 80, 72 are there for trials.
        (9, {1: 100, 2: 190, 4: 300}, (), 8),
        (10, {1: 100, 2: 190, 4: 300}, (), 4),
        (36, {1: 100}, (), 2),
        (37, {1: 100}, (), 1),
        (79, {}, (), 1),  # one alone may take all
        (37, {1: 100, 2: 190, 4: 300}, (), 1),  # a later trial takes more
        # Where memory did not do, there is one step less, however fast that was.
        (1, {1: 100, 2: 190, 4: 300}, (8,), 4),
        (1, {1: 100, 2: 190}, (4,), 2),
        (1, {1: 100, 2: 190, 4: 300, 8: 500}, (8, 4), 2),
        (1, {1: 100}, (2,), 1),
        (1, {1: 100}, (1,), 1),
    ],
)
def test_one_step_more_as_long_as_memory_allows_it_and_the_last_one_paid(
    taken: int, rates: dict[int, float], lost: tuple[int, ...], number: int
) -> None:
    assert trials_per_gpu(taken, 80, rates, lost) == number


class Gpu:
    """A GPU as a sweep would find it: so much memory, and so many images a second by number."""

    def __init__(self, taken: int, total: int, speeds: dict[int, float]) -> None:
        self.lines: list[str] = []
        self.packing = Packing({step: step for step in STEPS}, self.lines.append)
        self.memory = GpuMemory(taken, 0, total)
        self.speeds = speeds
        self.now = 0.0

    def round(self) -> None:
        """An epoch of each trial that runs, in processes that are new where the number is."""
        share, began = self.packing.number, self.now
        self.now += 10
        for at in range(share):
            self.packing.epoch(
                SharedEpoch(
                    share,
                    f"{share}:{at}",
                    began,
                    self.now,
                    images=1000,
                    seconds=1000 * share / self.speeds[share],
                    memory=self.memory,
                ),
                running=share,
            )


@given(
    taken=st.integers(1, 100),
    speeds=st.lists(st.floats(1, 1e5), min_size=len(STEPS), max_size=len(STEPS)),
    losses=st.lists(st.booleans(), max_size=20),
)
def test_never_more_than_fit_never_more_after_a_loss_and_the_fastest_in_the_end(
    taken: int, speeds: list[float], losses: list[bool]
) -> None:
    gpu = Gpu(taken, 100, dict(zip(STEPS, speeds, strict=True)))
    numbers: list[int] = []
    lost_at: list[int] = []
    for loss in [*losses, *[False] * 12]:
        number = gpu.packing.number
        gpu.round()
        if loss and number == gpu.packing.number > 1:
            assert gpu.packing.lose(number)
            lost_at.append(len(numbers))
            assert gpu.packing.number < number
        numbers.append(gpu.packing.number)
    assert all(n == 1 or n * taken <= 100 * (1 - RESERVE) for n in numbers)
    for index in lost_at:
        assert max(numbers[index:]) == numbers[index]
    assert numbers[-1] == numbers[-3], "it settles"
    # Each number up to the last that was tried paid, but perhaps the last.
    tried = sorted({1, *numbers})
    for smaller, larger in pairwise(tried[:-1]):
        assert gpu.speeds[larger] >= (1 + GAIN) * gpu.speeds[smaller] * (1 - 1e-9)
    allowed = [n for n in tried if not lost_at or n <= numbers[lost_at[-1]]]
    assert gpu.speeds[numbers[-1]] == max(gpu.speeds[n] for n in allowed)


def test_a_number_is_judged_by_whole_epochs_of_warm_processes_while_all_places_are_taken() -> None:
    told: list[str] = []
    packing = Packing({1: 1, 2: 2}, told.append)
    memory = GpuMemory(3 * GIB, GIB, 80 * GIB)

    def epoch(share: int, process: str, began: float, ended: float, seconds: float) -> int:
        packing.epoch(SharedEpoch(share, process, began, ended, 1000, seconds, memory), share)
        return packing.number

    assert epoch(1, "a", 0, 10, seconds=9) == 1  # what a process does first takes longer
    assert epoch(1, "a", 10, 15, seconds=5) == 2
    assert told[-1] == (
        "2 trials a GPU from here on: one takes 4.0 of 80.0 GiB, images/s are 200 by 1"
    )
    assert packing.concurrency == 2
    assert epoch(1, "a", 15, 20, seconds=5) == 2  # of one that has not moved yet
    for end in (30, 40, 50):
        epoch(2, "b", end - 10, end, seconds=5)  # alone while the other one's process starts
    epoch(2, "c", 20, 52, seconds=9)
    epoch(2, "b", 50, 60, seconds=10)  # began when the other one had not yet told anything
    epoch(2, "c", 52, 62, seconds=8)
    epoch(2, "b", 60, 70, seconds=8)
    assert packing.number == 2
    assert told[-1].endswith("images/s are 200 by 1, 250 by 2")


def test_the_share_of_the_context_is_that_of_a_trial_alone_and_the_peak_that_of_the_largest() -> (
    None
):
    packing = Packing({1: 1, 2: 2, 4: 4})
    first, second = GpuMemory(10, 5, 100), GpuMemory(40, 60, 100)
    packing.epoch(SharedEpoch(1, "a", 0, 1, 10, 1, first), 1)
    packing.epoch(SharedEpoch(1, "a", 1, 2, 10, 1, first), 1)
    assert packing.number == 2
    packing.epoch(SharedEpoch(2, "b", 2, 3, 10, 1, second), 2)  # 40 and 5: 2 of them still fit
    assert packing.number == 2
    packing.epoch(SharedEpoch(2, "b", 3, 4, 10, 1, second._replace(peak=41)), 2)
    assert packing.number == 1


def test_without_cuda_nothing_is_measured_and_no_gpu_shared() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert gpu_memory() is None
    packing = Packing({1: 1, 2: 2})
    for end in range(1, 5):
        packing.epoch(SharedEpoch(1, "a", end - 1, end, 10, 1, gpu_memory()), 1)
    assert packing.number == 1


def test_a_single_number_stays_whatever_happens() -> None:
    packing = Packing({1: 7})
    packing.epoch(SharedEpoch(1, "a", 0, 1, 10, 1, GpuMemory(1, 0, 100)), 7)
    assert not packing.lose(1)
    assert (packing.number, packing.concurrency) == (1, 7)


@pytest.mark.parametrize(
    ("nodes", "asked", "slots"),
    [
        ([(16.0, 1.0)], Resources(), {1: (4, 1), 2: (4, 2), 4: (4, 4), 8: (2, 8)}),
        # Beyond one core each there is no room for more.
        ([(4.0, 1.0)], Resources(), {1: (4, 1), 2: (2, 2), 4: (1, 4)}),
        ([(4.0, 1.0)], Resources(cpus=0.5), {1: (0.5, 1), 2: (0.5, 2), 4: (0.5, 4), 8: (0.5, 8)}),
        ([(32.0, 2.0), (32.0, 2.0)], Resources(), {1: (4, 4), 2: (4, 8), 4: (4, 16), 8: (2, 32)}),
        ([(16.0, 1.0)], Resources(concurrency=2), {1: (4, 1), 2: (4, 2)}),
        ([(16.0, 2.0)], Resources(concurrency=1), {1: (4, 1)}),
    ],
)
def test_trials_share_gpus_as_far_as_cores_and_concurrency_let_more_run(
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[tuple[float, float]],
    asked: Resources,
    slots: dict[int, tuple[float, int]],
) -> None:
    living = [Node(str(at), "", *has) for at, has in enumerate(nodes)]
    monkeypatch.setattr(sweep, "living_nodes", lambda: living)
    sharing = share_gpus(asked, print)
    found = {
        share: (placement.cpus, sharing.packing.slots[share])
        for share, placement in sharing.placements.items()
    }
    assert found == slots
    assert [p.gpus for p in sharing.placements.values()] == [1 / share for share in slots]


@pytest.mark.parametrize(
    ("given", "gpus", "lines", "shares"),
    [
        (1, 1.0, 0, None),
        (4, 1.0, 1, None),  # of MPS
        ("auto", 1.0, 1, [1, 2, 4]),
        (4, 0.0, 1, None),
        ("auto", 0.0, 1, None),
    ],
)
def test_one_line_says_what_becomes_of_the_option_and_of_none_where_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch,
    given: int | Literal["auto"],
    gpus: float,
    lines: int,
    shares: list[int] | None,
) -> None:
    nodes = [Node("1", "", 4.0, gpus)]
    for module in (launch, sweep):
        monkeypatch.setattr(module, "living_nodes", lambda: nodes)
    monkeypatch.setattr(launch, "mps_line", lambda: "MPS")
    said: list[str] = []
    options = TuneOptions(trials_per_gpu=given)
    sharing = launch._sharing(options, launch._asked(options), said.append)
    assert (sharing and list(sharing.placements)) == shares
    assert len(said) == lines
    if not gpus:
        assert said == ["--trials-per-gpu changes nothing: there is no GPU to share"]


@pytest.mark.parametrize("number", [1, 2, 3, 6, 7, 8, 11])
def test_a_gpu_has_room_for_the_number_of_trials_that_are_to_share_it(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(sweep, "living_nodes", lambda: [Node("1", "", 16.0, 1.0)])
    placement, concurrency = place(Resources(share=number), growing=False)
    assert concurrency == number
    # Ray counts in ten thousandths, and would round the last trial out.
    assert number * round(placement.gpus, 4) <= 1


def test_what_mps_does_is_said_and_it_is_never_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert mps_line() == ""
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert mps_line().endswith("before the sweep: nvidia-cuda-mps-control -d")
    (tmp_path / "control").touch()
    assert "at the same time, by CUDA's MPS" in mps_line()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert "not for this user" in mps_line()
