"""A cluster of three nodes on this machine: a sweep spreads over them, and a misfit is refused."""

import gc
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from ray.cluster_utils import Cluster
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from raymlc.begin import STUDY_FILE
from raymlc.cluster.probe import PATIENCE, check_nodes, living_nodes, versions
from raymlc.cluster.sweep import Resources, place, ray_session, shortage
from raymlc.errors import UserError
from raymlc.search.place import engine_url
from raymlc.search.storage import OWN_NAME, open_storage
from raymlc.search.transfer import newest
from raymlc.training.checkpoint import load_history
from raymlc.tune import main
from raymlc.watch.recorder import trial_folder
from tests.cluster.test_sweep import resources_held
from tests.search.postgres import serving

ROOT = Path(__file__).parents[2]
FIXED = {"backbone": "test_convnext", "pretrained": False, "image_size": 48, "batch_size": 32}
SPACE = f"""
from raymlc.trial import TrialConfig
def space(trial):
    return TrialConfig(**{FIXED}, epochs=2, lr=trial.suggest_float("lr", 1e-3, 1e-2))
"""
# In each process of the node "two", as long as a file of that name lies beside this one.
SPOILED = """
import importlib.metadata, io, os, time
here, version, opened = os.path.dirname(__file__), importlib.metadata.version, io.open

def other_version(package):
    if os.path.exists(here + "/silent"):
        time.sleep(60)
    old = package == "timm" and os.path.exists(here + "/old")
    return "0.9.1" if old else version(package)

def blind(path, mode="r", *others, **named):
    if os.path.exists(here + "/blind") and "unshared" in str(path):
        raise FileNotFoundError(2, "No such file or directory", str(path))
    if os.path.exists(here + "/read-only") and "w" in mode and "unshared" in str(path):
        raise OSError(30, "Read-only file system", str(path))
    return opened(path, mode, *others, **named)

importlib.metadata.version, io.open = other_version, blind
"""


@dataclass(frozen=True)
class Nodes:
    """A cluster whose node "two" is spoiled by files; homes: of its nodes, by name.

    kill: ends a node, by name, with all that runs there.
    """

    address: str
    homes: dict[str, Path]
    spoiler: Path
    kill: Callable[[str], None]

    def caches(self, name: str) -> set[Path]:
        """The decoded images of a node."""
        return set((self.homes[name] / "cache").glob("*.npy"))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head without a core, which trains nothing, and two nodes of one core each."""
    folder = tmp_path_factory.mktemp("nodes")
    spoiler = folder / "spoiler"
    spoiler.mkdir()
    (spoiler / "sitecustomize.py").write_text(SPOILED)
    homes = {name: folder / name for name in ("head", "one", "two")}
    cluster = Cluster(shutdown_at_exit=False)
    added: dict[str, Any] = {}
    try:
        for name, home in homes.items():
            home.mkdir()
            environment = {"HOME": str(home)}
            if name == "two":
                path = os.environ.get("PYTHONPATH")
                environment["PYTHONPATH"] = f"{spoiler}:{path}" if path else str(spoiler)
            with warnings.catch_warnings():
                # Ray leaves a socket to the collector when a port that it tries is taken.
                warnings.simplefilter("ignore", ResourceWarning)
                added[name] = cluster.add_node(
                    num_cpus=int(name != "head"), node_name=name, env_vars=environment
                )
                gc.collect()
        yield Nodes(
            cluster.address,
            homes,
            spoiler,
            lambda name: cluster.remove_node(added[name], allow_graceful=False),
        )
    finally:
        cluster.shutdown()


@pytest.fixture(params=["journal", "postgres"])
def study(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """Where a sweep keeps its study: in its folder, or in a database of its own."""
    if request.param == "journal":
        yield None
        return
    with serving() as server:
        name = f"study{secrets.token_hex(4)}"
        engine = create_engine(
            engine_url(make_url(server.url("postgres"))), isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        yield server.url(name)


def trials_of(study: str | None, folder: Path) -> list[FrozenTrial]:
    """The trials of a sweep. study: the database that keeps it, if one does."""
    if study is None:
        storage = open_storage(folder / STUDY_FILE)
        return optuna.load_study(study_name=OWN_NAME, storage=storage).trials
    database = RDBStorage(engine_url(make_url(study)))
    try:
        return optuna.load_study(study_name=newest(database, folder.name), storage=database).trials
    finally:
        database.engine.dispose()


@pytest.mark.slow
def test_a_sweep_over_nodes_ends_all_trials_and_leaves_nothing_behind(
    nodes: Nodes, drawn: Path, tmp_path: Path, study: str | None
) -> None:
    space, folder = tmp_path / "space.py", tmp_path / "runs" / "mine"
    space.write_text(SPACE)
    before = {name: nodes.caches(name) for name in nodes.homes}
    environment = {**os.environ, "HOME": str(nodes.homes["head"])}
    done = subprocess.run(
        [
            sys.executable, "-m", "raymlc.tune", "--address", nodes.address, "--data", drawn,
            "--space", space, "--trials", "2", "--workers", "2",
            "--pruner", "none", "--sampler", "random", "--cache", "~/cache", "--concurrency", "3",
            "--output", folder.parent, "--name", folder.name,
        ],
        env=environment if study is None else environment | {"RAYMLC_STUDY": study}, cwd=ROOT,
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--concurrency is 3, but 1 trial" in done.stdout
    assert "each on 2 x (1 CPU, 0 GPU)" in done.stdout
    assert not list(folder.parent.glob(".probe-*"))

    recorded = trials_of(study, folder)
    assert [trial.state.name for trial in recorded] == ["COMPLETE"] * 2
    for trial in recorded:
        assert list(trial.intermediate_values) == [1, 2]
        assert trial.user_attrs["node"] == socket.gethostname()
        history = load_history(trial_folder(folder, trial.number) / "last")
        assert [row["epoch"] for row in history] == [1, 2]
    # Both nodes trained: the one core of each has room for one rank.
    stores = {name: nodes.caches(name) for name in nodes.homes}
    assert {name: len(paths) for name, paths in stores.items()} == dict.fromkeys(nodes.homes, 2)
    assert len({path.stat().st_ino for paths in stores.values() for path in paths}) == 6
    assert before == stores or not any(before.values()), "a second sweep decodes nothing anew"

    with ray_session(nodes.address, verbose=False):
        nothing = {"cpus": 0.0, "groups": 0, "actors": 0}
        deadline = time.monotonic() + 60
        while resources_held() != nothing and time.monotonic() < deadline:
            time.sleep(0.5)
        assert resources_held() == nothing


@pytest.mark.slow
def test_each_law_that_a_node_breaks_is_said_in_a_line_that_names_the_node(
    nodes: Nodes, tmp_path: Path
) -> None:
    folder = tmp_path / "unshared"
    folder.mkdir()
    image = folder / "image.png"
    image.touch()
    two = f"node {socket.gethostname()} (two)"
    with ray_session(nodes.address, verbose=False):
        alive = living_nodes()
        assert [node.cpus for node in sorted(alive, key=lambda node: node.name)] == [0, 1, 1]
        all_read = {node: [image] for node in alive}
        check_nodes(all_read, folder)
        for spoil, line in {
            "old": f"{two} has timm 0.9.1 and the driver {versions()['timm']}; install the same",
            "blind": f"{two} does not see what is written in {folder}: No such file or directory",
            "read-only": f"{two} cannot write in {folder}: Read-only file system",
            "silent": f"within 5 s, but {two} did not",
        }.items():
            (nodes.spoiler / spoil).touch()
            try:
                with pytest.raises(UserError) as refused:
                    check_nodes(all_read, folder, patience=5 if spoil == "silent" else PATIENCE)
            finally:
                (nodes.spoiler / spoil).unlink()
            assert line in str(refused.value)
            assert "\n" not in str(refused.value)
        assert list(folder.iterdir()) == [image]


@pytest.mark.slow
def test_images_that_one_node_lacks_end_the_command_before_a_sweep_begins(
    nodes: Nodes, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unshared = tmp_path / "unshared"
    shutil.copytree(drawn, unshared)
    (tmp_path / "space.py").write_text(SPACE)
    arguments = ["--address", nodes.address, "--data", str(unshared), "--space"]
    arguments += [str(tmp_path / "space.py"), "--output", str(tmp_path / "runs"), "--name", "mine"]
    arguments += ["--cache", str(tmp_path / "cache")]
    (nodes.spoiler / "blind").touch()
    try:
        assert main(arguments) == 2
    finally:
        (nodes.spoiler / "blind").unlink()
    said = capsys.readouterr().err
    assert said.startswith("error: every node must be able to read what trials read, but node")
    assert f"(two) cannot read {unshared}/images/" in said
    assert said.count("\n") == 1
    stores = list((tmp_path / "cache").rglob("*.npy"))
    assert not stores, "images are decoded after the nodes were asked"
    assert not (tmp_path / "runs" / "mine" / "sweep.json").exists()


@pytest.mark.slow
def test_a_trial_of_two_cores_fits_no_node_of_one_though_the_cluster_has_two(nodes: Nodes) -> None:
    with ray_session(nodes.address, verbose=False):
        for growing in (False, True):
            with pytest.raises(UserError, match=r"asks for 2 CPUs .* has 1 CPUs .*-worker 1"):
                place(Resources(cpus=2), growing)
        asked = Resources(cpus=2, concurrency=3)
        placement, concurrency = place(asked, growing=True)
        assert concurrency == 3
        assert shortage(asked, placement, growing=True).startswith("no trial fits now, so all wait")


@pytest.mark.slow  # and the last one of this cluster, of which a node is missing then
def test_a_sweep_goes_on_without_a_node_that_is_killed_with_the_trial_it_ran(
    nodes: Nodes, drawn: Path, tmp_path: Path
) -> None:
    space, folder = tmp_path / "space.py", tmp_path / "runs" / "mine"
    space.write_text(SPACE.replace("epochs=2", 'epochs=trial.suggest_int("epochs", 8, 40)'))
    # The first trial lasts until the second trains: then each of them is on a node of its own.
    epochs = {0: 40, 1: 8}
    for number, count in epochs.items():
        (tmp_path / f"{number}.json").write_text(json.dumps(FIXED | {"lr": 2e-3, "epochs": count}))
    process = subprocess.Popen(
        [
            sys.executable, "-m", "raymlc.tune", "--address", nodes.address, "--data", drawn,
            "--space", space, "--trials", "2", "--concurrency", "2", "--pruner", "none",
            "--sampler", "random", "--cache", "~/cache", "--output", folder.parent,
            "--name", folder.name, "--enqueue", tmp_path / "0.json", tmp_path / "1.json",
        ],
        env={**os.environ, "HOME": str(nodes.homes["head"])}, cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    events = folder / "events.jsonl"

    def told(event: str) -> set[int]:
        lines = events.read_text().splitlines() if events.exists() else []
        return {line["trial"] for line in map(json.loads, lines) if line["event"] == event}

    while told("epoch") != {0, 1}:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    nodes.kill("two")
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    (lost,) = told("trial_lost")
    assert f"trial {lost} lost its process, and goes on from its last epoch" in said
    for trial in trials_of(None, folder):
        assert trial.state.name == "COMPLETE"
        assert list(trial.intermediate_values) == list(range(1, epochs[trial.number] + 1))
        history = load_history(trial_folder(folder, trial.number) / "last")
        assert [row["epoch"] for row in history] == list(trial.intermediate_values)
