"""A real sweep in which the number of trials that share a GPU grows, and steps back.

There need be no GPU: Ray is told of one, the trials train on the CPU, and what they would take of
it and how fast they are is made up where it is measured.
"""

from collections.abc import Iterator
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import BaseTrial

from raymlc.cluster.sweep import Resources, run_sweep, share_gpus
from raymlc.search.space import Space
from raymlc.training.checkpoint import load_history
from raymlc.trial import TrialConfig
from raymlc.watch.recorder import trial_folder
from tests.patched import patch_in_processes

MADE_UP = """
    import os, pathlib, time
    import torch
    from raymlc.cluster.packing import GpuMemory

    epochs, in_process = module.TrialRunner.epochs, module.Trial._in_process

    def on_cpu(self, folder, config, device, **more):
        return epochs(self, folder, config, torch.device("cpu"), **more)

    def told(self):
        share, first = round(1 / self._placement.gpus), self._folder.name == "0000"
        shares, deadline = pathlib.Path(os.environ["SHARES"]), time.time() + 120
        began = time.time()
        for metrics in in_process(self):
            metrics["images_per_second"] = 100.0  # as fast as if each were alone
            if share == 2 and first and metrics["epoch"] == 3:
                while "2 0001" not in shares.read_text() and time.time() < deadline:
                    time.sleep(0.05)
            if share == 2 and not first and metrics["epoch"] == 2:
                metrics["micro_batch_size"] = 16.0  # memory did not do
            with shares.open("a") as file:
                file.write(f"{share} {self._folder.name} {began} {time.time()}\\n")
            yield metrics
            began = time.time()

    module.TrialRunner.epochs = on_cpu
    module.Trial._in_process = told
    module.gpu_memory = lambda: GpuMemory(2 << 30, 1 << 30, 80 << 30)
"""
EPOCHS, TRIALS = 5, 3


@pytest.fixture
def one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Ray that believes in a GPU, and the file in which each epoch says how it was placed."""
    import ray

    shares = tmp_path / "shares.txt"
    monkeypatch.setenv("SHARES", str(shares))
    patch_in_processes(tmp_path, monkeypatch, "raymlc.cluster.trainable", MADE_UP)
    # Not the one that another test may have started.
    ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield shares
    ray.shutdown()


def one_space(trial: BaseTrial) -> TrialConfig:
    """Short epochs of a small network."""
    trial.suggest_float("drop_rate", 0.0, 0.0)
    return TrialConfig(
        backbone="test_convnext", pretrained=False, image_size=48, epochs=EPOCHS, batch_size=32
    )


@pytest.mark.slow
def test_trials_that_share_a_gpu_become_more_and_step_back_when_memory_does_not_do(
    make_sweep: Any, one_gpu: Path
) -> None:
    said: list[str] = []
    recorder, job, book = make_sweep(Space(Path("one.py"), one_space, {}), TRIALS)
    sharing = share_gpus(Resources(cpus=1.0), said.append)
    assert sharing.packing.slots == {1: 1, 2: 2}
    run_sweep(recorder, job, sharing.placements[1], 1, sharing)
    recorder.close()

    assert [line.partition(" a GPU")[0] for line in said] == [
        "1 trial",
        "2 trials",
        "1 trial",
    ]
    assert said[-1].endswith("images/s are 100 by 1, memory did not do for 2")
    lines = [line.split() for line in one_gpu.read_text().splitlines()]
    epochs = sorted((float(began), float(ended), int(share)) for share, _, began, ended in lines)
    assert [share for share, _ in groupby(epochs, key=itemgetter(2))] == [1, 2, 1]
    pairs = list(pairwise(epochs))
    assert any(b[0] < a[1] for a, b in pairs if a[2] == 2), "two train at the same time"
    assert not any(b[0] < a[1] for a, b in pairs if a[2] == 1), "one has the GPU for itself"
    # No epoch is trained twice, or lost, by a trial that moves.
    for trial in book.study.trials:
        assert trial.state.name == "COMPLETE", trial.user_attrs
        history = load_history(trial_folder(job.folder, trial.number) / "last")
        assert [metrics["epoch"] for metrics in history] == list(range(1, EPOCHS + 1))
        assert list(trial.intermediate_values) == list(range(1, EPOCHS + 1))
