"""Workers of a TorchTrainer of which one runs out of memory go on with half as many images."""

from pathlib import Path
from typing import Any

import pytest

from raymlc.cluster.sweep import ray_session, run_sweep
from raymlc.cluster.trainable import Placement
from raymlc.search.space import Space
from raymlc.training.checkpoint import load_history
from raymlc.trial import TrialConfig
from raymlc.watch.recorder import trial_folder
from tests.patched import patch_in_processes

SHORT_OF_MEMORY = """
    import torch
    gradients = module.Learner._gradients

    def short(self, batch):
        size = self.training.micro_batch_size or len(batch)
        if self.workers.size == 2 and self.workers.rank == 1 and size > 5:
            if self.training.epoch >= 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return gradients(self, batch)

    module.Learner._gradients = short
"""


def one_trial(trial: Any) -> TrialConfig:
    """The same trial whatever is asked."""
    trial.suggest_float("drop_rate", 0.0, 0.0)
    return TrialConfig(
        backbone="test_convnext", pretrained=False, image_size=48, epochs=3, batch_size=32
    )


@pytest.mark.slow
def test_a_worker_out_of_memory_restarts_all_with_half_the_images_from_the_last_epoch(
    make_sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_in_processes(tmp_path, monkeypatch, "raymlc.training.step", SHORT_OF_MEMORY)
    with ray_session(None, verbose=False):
        recorder, job, book = make_sweep(Space(Path("one.py"), one_trial, {}), 1)
        run_sweep(recorder, job, Placement(2, True, 1.0, 0.0), concurrency=1)
        recorder.close()
    (trial,) = book.study.trials
    assert trial.state.name == "COMPLETE", trial.user_attrs
    history = load_history(trial_folder(job.folder, 0) / "last")
    assert [metrics["epoch"] for metrics in history] == [1, 2, 3]
    # 16 images a worker did not fit after the first epoch, and 8 not either.
    assert [metrics.get("micro_batch_size") for metrics in history] == [None, 4, 4]
