"""Asks every node of a cluster for what its trials will need, before one of them takes a GPU."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymlc.errors import UserError, one_line

PATIENCE = 30.0  # seconds that a node has to answer, the start of a process included

_DRIVER = "driver"  # the driver's file among those that the nodes write
# What can be wrong with a node, in the order in which it is said.
_LAWS = {
    "silent": (
        "every node must answer within {patience:g} s, but node {node} did not; see that it and the"
        " storage that it mounts are well, or end its Ray with: ray stop"
    ),
    "broken": (
        "every node must be able to run raymlc, but node {node} is not: {reason}; install there"
        " what this process has"
    ),
    "differs": (
        "every node must have the same versions, but node {node} has {reason}; install the same"
        " everywhere"
    ),
    "unseen": (
        "--output must be a folder that every node sees, but node {node} does not see what is"
        " written in {folder}: {reason}; mount the same storage there, or name another folder"
    ),
    "unwritable": (
        "--output must be a folder that every node writes in, but node {node} cannot write in"
        " {folder}: {reason}; let it, or name another folder"
    ),
    "unread": (
        "every node must be able to read what trials read, but node {node} cannot read {reason};"
        " put it on storage that every node sees at the same path"
    ),
}


@dataclass(frozen=True)
class Node:
    """A living node of the Ray that is joined. cpus, gpus: all that it has, taken or free."""

    id: str
    name: str
    cpus: float
    gpus: float

    def room(self, cpus: float, gpus: float) -> int:
        """How many workers of `cpus` and `gpus` it has room for; of neither both may be 0."""
        by_cpu = self.cpus / cpus if cpus else float("inf")
        by_gpu = self.gpus / gpus if gpus else float("inf")
        return int(min(by_cpu, by_gpu) + 1e-9)


def living_nodes() -> list[Node]:
    """The nodes that Ray has now. Needs a `ray_session`."""
    return [
        Node(
            node["NodeID"],
            f"{node['NodeManagerHostname']} ({node['NodeName']})",
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def check_nodes(
    nodes: Mapping[Node, Sequence[Path]], folder: Path, patience: float = PATIENCE
) -> None:
    """Have each node read and write in a folder, read its files, and tell its versions.

    nodes: and the files that each will read. folder: where sweeps are kept, which is there.
    A node that joins later, such as one that an autoscaler starts, is not asked: what is wrong with
    it is known when a trial fails there. Needs a `ray_session`.
    Raises UserError, naming the node, for the first law of `_LAWS` that one breaks.
    """
    probes = folder / f".probe-{secrets.token_hex(4)}"
    word = secrets.token_hex(8)
    try:
        probes.mkdir()
        (probes / _DRIVER).write_text(word)
        answers = _ask(nodes, probes, word, patience)
        for node, answer in answers.items():
            if not answer:
                reason = _unread(probes / node.id, word)
                answer |= {"unseen": f"its own are not seen here, {reason}"} if reason else {}
    except OSError as error:
        raise UserError(f"--output must be a folder to write in, but {folder}: {error}") from error
    finally:
        shutil.rmtree(probes, ignore_errors=True)
    for law, text in _LAWS.items():
        wrong = {node.name: answer[law] for node, answer in answers.items() if law in answer}
        if wrong:
            name, reason = next(iter(wrong.items()))
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise UserError(
                text.format(node=name + more, reason=reason, folder=folder, patience=patience)
            )


def _ask(
    nodes: Mapping[Node, Sequence[Path]], probes: Path, word: str, patience: float
) -> dict[Node, dict[str, str]]:
    """What is wrong with each node, by law."""
    mine = versions()
    asked = {
        # On this very node, whatever it has left.
        ray.remote(look)
        .options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        )
        .remote(probes, node.id, word, list(files), mine): node
        for node, files in nodes.items()
    }
    done, silent = ray.wait(list(asked), num_returns=len(asked), timeout=patience)
    answers: dict[Node, dict[str, str]] = {asked[reference]: {"silent": ""} for reference in silent}
    for reference in silent:
        ray.cancel(reference, force=True)
    for reference in done:
        try:
            answers[asked[reference]] = ray.get(reference)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            answers[asked[reference]] = {"broken": one_line(cause)}
    return answers


def look(
    probes: Path, name: str, word: str, files: Sequence[Path], wanted: Mapping[str, str]
) -> dict[str, str]:
    """What is wrong on the node where it runs, by law, with the reason; nothing if all is well.

    probes: a folder in which the driver has written `word`, and the node does under `name`.
    wanted: the `versions` of the driver.
    """
    wrong = {}
    mine = versions()
    for package, version in wanted.items():
        if mine[package] != version:
            wrong["differs"] = f"{package} {mine[package]} and the driver {version}"
            break
    reason = _unread(probes / _DRIVER, word)
    if reason:
        wrong["unseen"] = reason
    else:
        try:
            (probes / name).write_text(word)
        except OSError as error:
            wrong["unwritable"] = _reason(error)
    for file in files:
        try:
            if not file.is_dir():  # a checkpoint's folder may be read as well as a file
                with file.open("rb") as opened:
                    opened.read(1)
        except OSError as error:
            wrong["unread"] = f"{file}: {_reason(error)}"
            break
    return wrong


def versions() -> dict[str, str]:
    """The versions that must be the same on all nodes; that of raymlc is of its sources."""
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}", "raymlc": _sources()}
    for package in ("torch", "timm", "ray", "optuna"):
        try:
            # Builds for a GPU and for none, as of torch, are named after the +.
            found[package] = metadata.version(package).partition("+")[0]
        except metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def _sources() -> str:
    """Tells apart two copies of raymlc that share a number, of which one was edited."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package)
        if place.parts[0] != "search_spaces":  # which a checkout has elsewhere
            digest.update(f"\n{place.as_posix()}\n".encode() + path.read_bytes())
    return f"sources {digest.hexdigest()[:8]}"


def _unread(path: Path, word: str) -> str:
    """Why a probe cannot be read; "" if it can."""
    try:
        return "" if path.read_text() == word else "it reads otherwise"
    except OSError as error:
        return _reason(error)


def _reason(error: OSError) -> str:
    return error.strerror or one_line(error)
