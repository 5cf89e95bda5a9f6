"""A trial whose folder cannot be written for a while loses nothing but the epoch it is in."""

import errno
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import raymlc.training.run as run
from raymlc.data.store import ImageSplit
from raymlc.labels import Labels
from raymlc.training.checkpoint import load_checkpoint, load_history
from raymlc.training.run import BEST, LAST, SUMMARY, Unwritable, run_trial
from raymlc.trial import TrialConfig

Epochs = Iterator[dict[str, float]]


@pytest.fixture
def start(
    labels: Labels, train: ImageSplit, val: ImageSplit, config: TrialConfig, tmp_path: Path
) -> Callable[[], Epochs]:
    """start(): a trial of three epochs, that begins or goes on in the folder "trial"."""
    lasting = config.replace({"epochs": 3})
    folder, cpu = tmp_path / "trial", torch.device("cpu")
    # Each epoch's loss is a better one.
    return lambda: run_trial(lasting, labels, train, val, folder, "val/loss", cpu)


@contextmanager
def no_file_larger_than(size: float) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("share", [0.1, 1.2], ids=["no weights fit", "no state fits"])
def test_a_disk_that_stays_full_ends_in_one_line_and_the_trial_goes_on_later(
    start: Callable[[], Epochs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(run, "PATIENCE", 0.0)
    folder = tmp_path / "trial"
    epochs = start()
    first = next(epochs)
    weights = (folder / BEST / "model.safetensors").stat().st_size
    with no_file_larger_than(share * weights), pytest.raises(Unwritable) as caught:
        next(epochs)
    assert str(caught.value) == (
        f"{folder} must be writable, but was not for 0 s: File too large; once it is, --resume goes"
        " on"
    )
    assert load_history(folder / LAST) == [first]
    load_checkpoint(folder / BEST)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [BEST, LAST]
    assert [metrics["epoch"] for metrics in start()] == [1, 2, 3]


@contextmanager
def mended_while_it_waits(
    monkeypatch: pytest.MonkeyPatch, mend: Callable[[], object]
) -> Iterator[list[float]]:
    """The pauses that are made; in the second of them `mend` is called."""
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            mend()

    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", pause)
        yield pauses
    assert pauses == [0.5, 1.0]


def test_a_disk_that_gets_room_again_is_waited_for(
    start: Callable[[], Epochs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = start()
    next(epochs)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        no_file_larger_than(20_000),
        mended_while_it_waits(
            monkeypatch, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        ),
    ):
        next(epochs)
    assert [metrics["epoch"] for metrics in epochs] == [3]
    assert len(load_history(tmp_path / "trial" / LAST)) == 3


def test_storage_that_is_gone_for_a_while_is_waited_for_and_nothing_is_written_in_its_place(
    start: Callable[[], Epochs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, away = tmp_path / "trial", tmp_path / "away"
    epochs = start()
    next(epochs)
    folder.rename(away)

    def back() -> None:
        assert not folder.exists()
        away.rename(folder)

    with mended_while_it_waits(monkeypatch, back):
        next(epochs)
    assert [metrics["epoch"] for metrics in epochs] == [3]
    assert [metrics["epoch"] for metrics in load_history(folder / LAST)] == [1, 2, 3]
    assert len((folder / SUMMARY).read_text().splitlines()) == 4


def test_what_the_system_says_only_when_data_reach_the_disk_is_told(
    start: Callable[[], Epochs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "PATIENCE", 0.0)

    def full(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unwritable, match="Disk quota exceeded"):
        next(start())
