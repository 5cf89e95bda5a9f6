"""What a TorchTrainer's controller runs of raymlc; apart, for it does without torch and timm."""

from __future__ import annotations

from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2.api.callback import UserCallback


class Losses(UserCallback):  # type: ignore[misc]
    """In the controller: passes on that workers were lost."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        told = (f"worker {rank}: {error}\n" for rank, error in worker_exceptions.items())
        self._mailbox.lose.remote("\n".join(told))


class HandOver(ControllerCallback):  # type: ignore[misc]
    """In the controller: gives the trial's process a handle by which to end it."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_controller_start(self, train_run_context: Any) -> None:
        self._mailbox.hand_over.remote(ray.get_runtime_context().current_actor)
