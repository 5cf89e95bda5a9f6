"""A moving average of a model's weights, with warm-up."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class EMA:
    """An exponential moving average of every floating parameter and buffer of `model`.

    After update t (from 0) the decay is min(decay, 1 - (1 + t)^(-2/3)), timm's warm-up: the first
    update copies the model, so the average never remembers the weights it started from. Buffers of
    whole numbers are copied. `ema.model` is the model to evaluate.

    device: where the average is kept, if not beside the model; each update then copies the weights
    there and waits for them.
    """

    def __init__(self, model: nn.Module, decay: float, device: torch.device | None = None) -> None:
        self.model = copy.deepcopy(model).to(device).requires_grad_(False).eval()
        self.decay = decay
        self._device = device
        self.updates = 0
        averages = self.model.state_dict(keep_vars=True)
        tensors = model.state_dict(keep_vars=True)
        floating = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
        whole = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
        self._averages = [averages[name].detach() for name in floating]
        self._tensors = [tensors[name].detach() for name in floating]
        self._whole_averages = [averages[name].detach() for name in whole]
        self._whole_tensors = [tensors[name].detach() for name in whole]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's present weights; call it after every optimizer step."""
        decay = min(self.decay, 1 - (1 + self.updates) ** (-2 / 3))
        tensors = self._tensors
        if self._device is not None:
            tensors = [tensor.to(self._device) for tensor in tensors]
        torch._foreach_lerp_(self._averages, tensors, 1 - decay)
        if self._whole_tensors:
            torch._foreach_copy_(self._whole_averages, self._whole_tensors)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights and the number of updates."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from another average's state_dict."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
