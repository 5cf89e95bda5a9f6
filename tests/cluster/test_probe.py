"""What a node looks at, in this process, and how what is wrong with nodes is said."""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from raymlc.cluster import probe, sweep
from raymlc.cluster.images import files_of
from raymlc.cluster.probe import Node, check_nodes, look, versions
from raymlc.cluster.sweep import Resources, place, shortage
from raymlc.cluster.trainable import Placement
from raymlc.data.demo import draw_demo
from raymlc.data.table import read_table
from raymlc.errors import UserError

HEAD = Node("0", "head (10.0.0.1)", 0.0, 0.0)
SMALL = Node("1", "small (10.0.0.2)", 2.0, 0.0)
GPU = Node("2", "gpu (10.0.0.3)", 4.0, 1.0)
BIG = Node("3", "big (10.0.0.4)", 64.0, 8.0)


@pytest.fixture
def probes(tmp_path: Path) -> Path:
    """A folder in which the driver has written its word."""
    folder = tmp_path / "probes"
    folder.mkdir()
    (folder / "driver").write_text("word")
    return folder


def test_a_node_that_sees_and_reads_all_leaves_its_own_word_and_has_no_complaint(
    probes: Path,
) -> None:
    assert look(probes, "node", "word", [probes / "driver", probes], versions()) == {}
    assert (probes / "node").read_text() == "word"


@pytest.mark.parametrize(
    ("spoil", "law", "reason"),
    [
        (lambda folder: (folder / "driver").unlink(), "unseen", "No such file or directory"),
        (lambda folder: (folder / "driver").write_text("other"), "unseen", "it reads otherwise"),
        (lambda folder: (folder / "node").mkdir(), "unwritable", "Is a directory"),
    ],
)
def test_a_node_says_why_it_cannot_use_the_folder(
    probes: Path, spoil: Callable[[Path], object], law: str, reason: str
) -> None:
    spoil(probes)
    assert look(probes, "node", "word", [], versions()) == {law: reason}


def test_a_node_names_the_first_file_that_it_cannot_read(probes: Path) -> None:
    files = [probes / "driver", probes / "none.png", probes / "nor.png"]
    assert look(probes, "node", "word", files, versions()) == {
        "unread": f"{probes / 'none.png'}: No such file or directory"
    }


@pytest.mark.parametrize("package", ["python", "raymlc", "torch", "timm", "ray", "optuna"])
def test_a_node_tells_the_version_in_which_it_differs(probes: Path, package: str) -> None:
    wrong = look(probes, "node", "word", [], versions() | {package: "99.0"})
    assert wrong == {"differs": f"{package} {versions()[package]} and the driver 99.0"}


def test_builds_of_one_version_are_the_same_and_a_missing_package_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(package: str) -> str:
        if package == "timm":
            raise metadata.PackageNotFoundError(package)
        return "2.9.1+cu130"

    monkeypatch.setattr(metadata, "version", version)
    assert versions()["torch"] == "2.9.1"
    assert versions()["timm"] == "missing"


def test_an_edit_of_a_source_is_another_version_of_raymlc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cluster").mkdir()
    monkeypatch.setattr(probe, "__file__", str(tmp_path / "cluster" / "probe.py"))
    (tmp_path / "trial.py").write_text("epochs = 1")
    seen = [versions()["raymlc"]]
    # A wheel has the search spaces in the package, a checkout has them beside it.
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "search_spaces" / "default.py").write_text("")
    assert versions()["raymlc"] == seen[0]
    (tmp_path / "trial.py").write_text("epochs = 2")
    assert versions()["raymlc"] != seen[0]


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> dict[Node, dict[str, str]]:
    """What nodes answer, to be filled; without a complaint they write their word as well."""
    answers: dict[Node, dict[str, str]] = {}

    def ask(nodes: Any, probes: Path, word: str, patience: float) -> dict[Node, dict[str, str]]:
        for node in nodes:
            if not answers.setdefault(node, {}):
                (probes / node.id).write_text(word)
        return answers

    monkeypatch.setattr(probe, "_ask", ask)
    return answers


LINES = {
    "silent": "every node must answer within 30 s, but node small (10.0.0.2) did not; see that it"
    " and the storage that it mounts are well, or end its Ray with: ray stop",
    "broken": "every node must be able to run raymlc, but node small (10.0.0.2) is not: REASON;"
    " install there what this process has",
    "differs": "every node must have the same versions, but node small (10.0.0.2) has REASON;"
    " install the same everywhere",
    "unseen": "--output must be a folder that every node sees, but node small (10.0.0.2) does not"
    " see what is written in FOLDER: REASON; mount the same storage there, or name another folder",
    "unwritable": "--output must be a folder that every node writes in, but node small (10.0.0.2)"
    " cannot write in FOLDER: REASON; let it, or name another folder",
    "unread": "every node must be able to read what trials read, but node small (10.0.0.2) cannot"
    " read REASON; put it on storage that every node sees at the same path",
}


@pytest.mark.parametrize("law", LINES)
def test_each_law_has_its_line(
    tmp_path: Path, answered: dict[Node, dict[str, str]], law: str
) -> None:
    answered[SMALL] = {law: "REASON"}
    with pytest.raises(UserError) as refused:
        check_nodes({HEAD: (), SMALL: ()}, tmp_path)
    assert str(refused.value) == LINES[law].replace("FOLDER", str(tmp_path))
    assert not list(tmp_path.iterdir()), "probes are taken away"


def test_several_nodes_with_one_fault_are_counted_and_the_graver_fault_is_said_first(
    tmp_path: Path, answered: dict[Node, dict[str, str]]
) -> None:
    answered[HEAD] = {"unread": "an image"}
    answered[SMALL] = {"unread": "an image", "differs": "timm 1 and the driver 2"}
    answered[GPU] = {"differs": "timm 3 and the driver 2"}
    with pytest.raises(UserError, match=r"node small \(10.0.0.2\) \(and 1 more\) has timm 1 and"):
        check_nodes({HEAD: (), SMALL: (), GPU: ()}, tmp_path)


def test_nodes_without_a_fault_pass_and_leave_nothing(
    tmp_path: Path, answered: dict[Node, dict[str, str]]
) -> None:
    check_nodes({HEAD: (), SMALL: ()}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_node_whose_word_does_not_come_back_writes_elsewhere(
    tmp_path: Path, answered: dict[Node, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_ask", lambda nodes, *_: {node: {} for node in nodes})
    with pytest.raises(UserError, match="its own are not seen here, No such file"):
        check_nodes({SMALL: ()}, tmp_path)


def test_a_folder_that_the_driver_cannot_write_in_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--output must be a folder to write in"):
        check_nodes({SMALL: ()}, tmp_path / "none")


def test_first_and_last_images_of_the_splits_of_a_trial_stand_for_all(tmp_path: Path) -> None:
    draw_demo(tmp_path / "data", rows=60)
    table = read_table(tmp_path / "data")
    train, val = (table.splits[name].images for name in ("train", "val"))
    assert files_of(table) == [train[0], train[-1], val[0], val[-1]]


def placed(
    monkeypatch: pytest.MonkeyPatch, nodes: list[Node], asked: Resources, growing: bool = False
) -> tuple[Placement, int]:
    monkeypatch.setattr(sweep, "living_nodes", lambda: nodes)
    return place(asked, growing)


@pytest.mark.parametrize(
    ("nodes", "asked", "cpus", "gpus", "concurrency"),
    [
        ([SMALL], Resources(), 1, 0, 2),
        ([SMALL, SMALL], Resources(), 1, 0, 4),
        ([GPU], Resources(), 4, 1, 1),
        ([GPU], Resources(gpus=0.5), 2, 0.5, 2),
        ([GPU], Resources(gpus=0), 1, 0, 4),
        ([BIG], Resources(), 4, 1, 8),
        # The cores of a node without a GPU are no share of those beside one.
        ([HEAD, SMALL, GPU, Node("4", "", 2.0, 1.0)], Resources(), 2, 1, 2),
        # Nodes of 2 and 4 cores have room for one worker of 3; the rest of both is not a worker.
        ([SMALL, GPU], Resources(cpus=3, gpus=0), 3, 0, 1),
        ([SMALL, GPU], Resources(cpus=2, gpus=0, workers=2), 2, 0, 1),
        ([SMALL, SMALL], Resources(workers=3), 1, 0, 1),
        ([GPU], Resources(cpus=0), 0, 1, 1),
        ([SMALL], Resources(concurrency=1), 1, 0, 1),
        ([SMALL], Resources(concurrency=9), 1, 0, 2),
    ],
)
def test_trials_are_placed_by_what_each_node_has(
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[Node],
    asked: Resources,
    cpus: float,
    gpus: float,
    concurrency: int,
) -> None:
    placement, fit = placed(monkeypatch, nodes, asked)
    assert (placement.cpus, placement.gpus, fit) == (cpus, gpus, concurrency)


@pytest.mark.parametrize(
    ("nodes", "asked", "line"),
    [
        (
            [SMALL, SMALL],
            Resources(cpus=4),
            "a trial must fit on one node, but asks for 4 CPUs and 0 GPUs, and the largest node,"
            " small (10.0.0.2), has 2 CPUs and 0 GPUs; ask for --cpus-per-worker 2",
        ),
        (
            [SMALL, GPU],
            Resources(workers=2, cpus=8, gpus=2),
            "each of a trial's 2 workers must fit on one node, but asks for 8 CPUs and 2 GPUs, and"
            " the largest node, gpu (10.0.0.3), has 4 CPUs and 1 GPUs; ask for --cpus-per-worker 4"
            " --gpus-per-worker 1",
        ),
        (
            [GPU, Node("4", "cores (10.0.0.5)", 64.0, 0.0)],
            Resources(cpus=4, gpus=2),
            "a trial must fit on one node, but asks for 4 CPUs and 2 GPUs, and the largest node,"
            " gpu (10.0.0.3), has 4 CPUs and 1 GPUs; ask for --gpus-per-worker 1",
        ),
        (
            [SMALL],
            Resources(gpus=1),
            "a trial must fit on one node, but asks for 1 CPUs and 1 GPUs, and the largest node,"
            " small (10.0.0.2), has 2 CPUs and 0 GPUs; ask for --gpus-per-worker 0",
        ),
        (
            [HEAD, SMALL],
            Resources(workers=4),
            "a trial of 4 workers with 1 CPUs and 0 GPUs each must fit into what Ray has, 2 CPUs"
            " and 0 GPUs, but 2 of them do; ask for --workers 2",
        ),
        (
            [SMALL],
            Resources(cpus=0),
            "--cpus-per-worker must be more than 0 where workers have no GPU, but is 0; leave it"
            " out for 1",
        ),
    ],
)
def test_what_fits_no_node_is_refused_with_what_would(
    monkeypatch: pytest.MonkeyPatch, nodes: list[Node], asked: Resources, line: str
) -> None:
    with pytest.raises(UserError) as refused:
        placed(monkeypatch, nodes, asked)
    assert str(refused.value) == line


def test_an_idle_cluster_that_may_grow_asks_for_a_concurrency_and_then_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError) as refused:
        placed(monkeypatch, [HEAD], Resources(), growing=True)
    assert str(refused.value) == (
        "a trial must fit on one node, but asks for 1 CPUs and 0 GPUs, and the largest node, head"
        " (10.0.0.1), has 0 CPUs and 0 GPUs; give --concurrency to wait for nodes that join"
    )
    with pytest.raises(UserError, match=r"ask for --cpus-per-worker 2 or give --concurrency to"):
        placed(monkeypatch, [HEAD, SMALL], Resources(cpus=4), growing=True)
    asked = Resources(concurrency=4, gpus=1, cpus=3)
    placement, concurrency = placed(monkeypatch, [HEAD], asked, growing=True)
    assert (placement, concurrency) == (Placement(1, False, 3, 1), 4)


@pytest.mark.parametrize(
    ("nodes", "concurrency", "growing", "line"),
    [
        ([SMALL], None, False, ""),
        ([SMALL], 2, False, ""),
        (
            [SMALL],
            3,
            False,
            "--concurrency is 3, but 2 trials fit into 2 CPUs and 0 GPUs: 2 run at a time",
        ),
        (
            [SMALL],
            3,
            True,
            "--concurrency is 3, but 2 trials fit into 2 CPUs and 0 GPUs now: others wait for nodes"
            " that join",
        ),
        (
            [HEAD],
            3,
            True,
            "no trial fits now, so all wait for nodes that join: a trial must fit on one node, but"
            " asks for 1 CPUs and 0 GPUs, and the largest node, head (10.0.0.1), has 0 CPUs and 0"
            " GPUs",
        ),
    ],
)
def test_a_concurrency_that_does_not_fit_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[Node],
    concurrency: int | None,
    growing: bool,
    line: str,
) -> None:
    asked = Resources(concurrency=concurrency)
    placement, _ = placed(monkeypatch, nodes, asked, growing)
    assert shortage(asked, placement, growing) == line
