"""Learning curves from a folder that is not in the repository, as the simulator has them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.search.simulator import Curves, Hyperparameter


def load_curves(folder: Path, name: str) -> Curves:
    """Curves of a task of the folder's own `loader.py`; its seconds are kept where it has them."""
    task = _loader(folder).load(name)
    count, epochs = task.loss.shape
    length_N = task.n.astype(np.int64)
    alive_N = np.minimum(task.observed, task.n).astype(np.int64)
    ends_NE = np.tile(np.arange(1.0, epochs + 1), (count, 1))
    if task.T is not None:
        for row, alive in enumerate(alive_N):
            seconds = np.asarray(task.T[row, :alive], dtype=np.float64)
            mean = seconds[-1] / alive if alive else float(np.nanmean(task.T[:, 0]))
            tail = (seconds[-1] if alive else 0.0) + mean * np.arange(1, epochs - alive + 1)
            ends_NE[row] = np.concatenate([seconds, tail])
    axes = [
        Hyperparameter(h["name"], h["low"], h["high"], h["log"], h["type"] == "int")
        for h in task.hps
    ]
    return Curves(name, axes, task.U, task.X, task.loss, length_N, alive_N, ends_NE)


def family(name: str) -> str:
    """The family of a task: near siblings count as one. Tasks of taskset are siblings."""
    return "taskset" if name.startswith("taskset/") else name


def _loader(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("curves_loader", folder / "loader.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{folder} must hold loader.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
