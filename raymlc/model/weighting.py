"""How much each head's loss counts in the loss of a step: fixed, or learnt while training.

Shapes: B images, F features, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raymlc.labels import Labels
from raymlc.trial import TrialConfig

_GRADNORM_LR = 0.025  # of the weights, as in the paper
_LEAST_WEIGHT = 1e-3  # of a head, before the weights are scaled: below 0 it would unlearn


class TaskWeighting:
    """The weights of the heads' losses, and their state.

    A step's gradients may be added up over parts of a batch, and averaged over workers. With L_h
    the mean loss of head h over the whole step, heads without a label in it left out, the loss is
    "fixed": the mean of L_h by head_weights. "uncertainty" (arXiv:1705.07115): the mean over heads
    of exp(-s_h) L_h + s_h / 2, with learnt s_h. "gradnorm" (arXiv:1711.02257): the mean over heads
    of w_h L_h, with weights that sum to the number of heads and move so that each head's gradient
    has the norm that its speed of learning calls for. The norms are taken at the features that the
    heads share, and not, as in the paper, at the last shared weights: that costs the heads'
    backward pass alone. A head's speed is told from its loss in the first step that has it.

    Use: `combine` for each part, and with `needs_features` also `observe`, before its backward
    pass; after the last part the optimizer's step and then `update`, so that a step is taken with
    the weights from before it. `forget` begins a step anew. No wrapped network holds
    `parameters()`, so the caller has to average their gradients over workers: their sum by an
    all-reduce, divided by the workers. Nothing of a step reads a value back from the device.
    """

    def __init__(self, config: TrialConfig, labels: Labels, device: torch.device) -> None:
        self._kind = config.task_weighting
        self._alpha = config.gradnorm_alpha
        self.names = labels.names
        heads = len(self.names)
        self._fixed = {name: config.head_weights.get(name, 1.0) for name in self.names}
        # uncertainty: s; gradnorm: w.
        start = torch.ones if self._kind == "gradnorm" else torch.zeros
        self._learnt_H = nn.Parameter(start(heads, device=device))
        self._first_H = torch.zeros(heads, device=device)  # gradnorm: each head's first loss
        self._seen_2H = torch.zeros(2, heads, device=device)  # losses and squared gradient norms
        # Fused, it counts its steps on the device and has nothing to read back.
        self._adam = torch.optim.Adam([self._learnt_H], lr=_GRADNORM_LR, fused=True)

    @property
    def needs_features(self) -> bool:
        """Whether `observe` and `update` have to be called."""
        return self._kind == "gradnorm"

    def parameters(self) -> list[nn.Parameter]:
        """What the trial's optimizer has to train beside the network."""
        return [self._learnt_H] if self._kind == "uncertainty" else []

    def combine(
        self, sums: Mapping[str, Tensor], known: Mapping[str, float], part: float
    ) -> Tensor:
        """The loss of a part of a worker's batch, to call backward on; a scalar.

        sums: each head's loss summed over the part. known: how many labels the whole step has for
        each head, divided by the workers. part: the share of the worker's rows.
        """
        present = [name for name in self.names if known[name] > 0]
        total = sum(self._fixed[name] for name in present) or 1.0
        losses = []
        for place, name in enumerate(self.names):
            if name not in present:
                losses.append(sums[name] * 0.0)  # so that every head is part of the graph
                continue
            mean = sums[name] / known[name]
            if self._kind == "fixed":
                losses.append(mean * (self._fixed[name] / total))
            elif self._kind == "uncertainty":
                s = self._learnt_H[place]
                losses.append((torch.exp(-s) * mean + part * s / 2) / len(present))
            else:
                losses.append(self._learnt_H[place].detach() * mean / len(present))
        return torch.stack(losses).sum()

    def observe(
        self, sums: Mapping[str, Tensor], known: Mapping[str, float], features_BF: Tensor
    ) -> None:
        """Take in the losses of a part, and how steep they are at its features.

        sums, known: as `combine` has them. features_BF: the backbone's output, from which the
        heads' logits were computed.
        """
        seen = []
        for name in self.names:
            if known[name] > 0:
                # Of the sum, as the gradient of a mean over many rows may be too small for float16.
                (grad_BF,) = torch.autograd.grad(sums[name], features_BF, retain_graph=True)
                square = (grad_BF.float() / known[name]).square().sum()
                seen.append(torch.stack([sums[name].detach() / known[name], square]))
            else:
                seen.append(torch.zeros_like(self._seen_2H[:, 0]))
        self._seen_2H += torch.stack(seen, dim=1)

    def forget(self) -> None:
        """Leave out what was observed of a step that is taken again from its beginning."""
        self._seen_2H.zero_()

    @torch.no_grad()
    def update(self, sum_: Callable[[Tensor], None], workers: int) -> None:
        """After a step, move the weights by what was observed, alike on every worker.

        sum_: adds up a tensor over the workers, in place.
        """
        sum_(self._seen_2H)
        # Parts of a step hold other rows, so their losses and squared norms add up; each worker's
        # are those of its part times the number of workers.
        loss_H = self._seen_2H[0] / workers
        norm_H = self._seen_2H[1].sqrt() / workers
        # A head without labels in the step has a loss and a norm of 0, and is no part of a mean.
        count = (loss_H > 0).sum().clamp(min=1)
        self._first_H.copy_(torch.where(self._first_H > 0, self._first_H, loss_H))
        progress_H = loss_H / self._first_H.clamp(min=1e-12)
        rate_H = progress_H / (progress_H.sum() / count).clamp(min=1e-12)
        norms_H = self._learnt_H * norm_H
        wanted_H = norms_H.sum() / count * rate_H**self._alpha
        self._learnt_H.grad = torch.sign(norms_H - wanted_H) * norm_H
        self._adam.step()
        self._learnt_H.clamp_(min=_LEAST_WEIGHT)
        self._learnt_H.mul_(len(self.names) / self._learnt_H.sum())
        self._seen_2H.zero_()

    def weights(self) -> Tensor:
        """What each head's mean loss is multiplied by in the mean over heads; detached, (H,)."""
        learnt_H = self._learnt_H.detach()
        if self._kind == "uncertainty":
            return torch.exp(-learnt_H)
        if self._kind == "gradnorm":
            return learnt_H.clone()
        fixed_H = torch.tensor(list(self._fixed.values()), device=learnt_H.device)
        return fixed_H / fixed_H.mean()

    def state_dict(self) -> dict[str, Any]:
        """All that goes on changing."""
        return {
            "learnt": self._learnt_H.detach().clone(),
            "first": self._first_H.clone(),
            "adam": self._adam.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from another's state_dict."""
        with torch.no_grad():
            self._learnt_H.copy_(state["learnt"])
        self._first_H.copy_(state["first"])
        self._adam.load_state_dict(state["adam"])
