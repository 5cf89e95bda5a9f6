"""A small drawn data set, and a sweep on a Ray of the test's own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from raymlc.cluster.environment import prepare_environment

prepare_environment(own_ray=True)

from raymlc.cluster.sweep import ray_session  # noqa: E402
from raymlc.cluster.worker import Job  # noqa: E402
from raymlc.data.demo import draw_demo  # noqa: E402
from raymlc.data.table import read_table  # noqa: E402
from raymlc.search.space import Space  # noqa: E402
from raymlc.search.storage import open_study  # noqa: E402
from raymlc.search.study import StudyBook  # noqa: E402
from raymlc.watch.recorder import Recorder  # noqa: E402

SweepMaker = Callable[..., tuple[Recorder, Job, StudyBook]]


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 200 small pictures in train.csv and val.csv."""
    folder = tmp_path_factory.mktemp("data") / "demo"
    draw_demo(folder, rows=200)
    return folder


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """A Ray of the test's own, ended with the module."""
    with ray_session(None, verbose=False):
        yield


@pytest.fixture
def make_sweep(drawn: Path, tmp_path: Path) -> SweepMaker:
    """make_sweep(space, trials): a recorder, a job and the study of a new sweep."""

    def make(space: Space, trials: int, name: str = "sweep") -> tuple[Recorder, Job, StudyBook]:
        folder = tmp_path / name
        study = open_study(folder / "study.journal", "val/accuracy", "random", "none", 0, 4)
        book = StudyBook(study, space, "val/accuracy", trials)
        table = read_table(drawn)
        recorder = Recorder(book, folder, table.labels.names, trials, Console(quiet=True))
        job = Job(table, folder, tmp_path / "cache", "stop", "val/accuracy")
        return recorder, job, book

    return make
