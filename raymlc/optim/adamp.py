"""AdamP with gradient centralization, in few calls and without waiting for the device.

Parameters are copied end to end into one flat array, so that Adam's arithmetic is one call for all
of them. AdamP's test and projection need sums over rows (a row holds the weights of one output
unit): rows of one length are neighbours, so that one call sums them all; the rest is arithmetic on
a few numbers per row.

Axes in names: R rows, T weights (parameters of two or more dimensions), L lines, which are the rows
and then each weight as one line, S kinds of sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from raymlc.errors import UserError
from raymlc.optim.rows import FlatArray, kind_of, matrices_of

# Elements updated together: on a CPU few enough for its cache, which is worth a fifth of the time;
# elsewhere few enough for the scratch memory, three such arrays, to stay near 200 MB in float32.
CPU_BATCH = 2**20
DEVICE_BATCH = 2**24


class AdamP(torch.optim.Optimizer):
    """AdamP (arXiv:2006.08217): Adam that does not grow the norm of scale-invariant weights.

    A weight of two or more dimensions counts as scale-invariant while its gradient is nearly
    orthogonal to it: |cos(gradient, weight)| < delta / sqrt(length) in each of its rows, or else in
    the whole weight taken as one row. From those rows the part of the update along the weight is
    removed, and weight decay, which is decoupled, acts on them `wd_ratio` times as strongly.

    lr: step size, at least 0.
    betas: decays of the first and second moment, each in [0, 1).
    eps: above 0; added to Adam's denominator and to the norm that a projection divides by, and the
        least norm that a cosine divides by.
    weight_decay: at least 0; a step takes off the share lr * weight_decay of a parameter.
    delta: threshold of the cosine, at least 0; 0 never projects.
    wd_ratio: at least 0.
    nesterov: take the first moment one step ahead. On, with wd_ratio 0.01, as timm's factory sets
        "adamp"; the paper has it off, with wd_ratio 0.1.
    gc: gradient centralization (arXiv:2004.01461) where its authors later advise it for adaptive
        optimizers (github.com/Yonghongwei/Gradient-Centralization): not of the gradient, which
        moments and test see as it is, but of the update. With p~ the update and w~ the weight, less
        the mean of each row, the projection gives p~ - (p~.w~ / |w~|^2) w~, and weight decay acts
        on w~: a row keeps its mean for ever, and a projected update is orthogonal to w~ and to w.
        For weights of two or more dimensions; those with rows of one element, each of which is its
        own mean and would never move (as it would not with a centralized gradient), are left out.
    gc_conv_only: centralize only weights of more than three dimensions; no effect without `gc`.

    Parameters without a gradient are skipped. The state of a parameter: `step` (int), `exp_avg`,
    `exp_avg_sq`; the latter two are parts of arrays that parameters share.
    Raises UserError for a value outside its range, and for complex or sparse parameters.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.01,
        nesterov: bool = True,
        gc: bool = False,
        gc_conv_only: bool = False,
    ) -> None:
        self._batches: dict[tuple[Tensor, ...], list[_Batch]] = {}
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "delta": delta,
            "wd_ratio": wd_ratio,
            "nesterov": nesterov,
            "gc": gc,
            "gc_conv_only": gc_conv_only,
        }
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # after a load the state lies in new tensors: gather it anew
        self._batches = {}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; the optimizer's defaults fill what it leaves out. Raises UserError."""
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1])
        except UserError:
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; returns what `closure` returns, if given.

        closure: computes the loss and its gradients anew.
        Raises UserError for a sparse gradient, and inside of a CUDA graph's capture.
        """
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise UserError(
                "AdamP counts its steps on the host, so a CUDA graph would repeat one step for"
                " ever; capture the network's forward and backward pass, and step outside"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        in_use = {}
        for group in self.param_groups:
            for params in self._alike(group["params"]):
                batches = self._batches.get(params) or _batches(params, self.state)
                in_use[params] = batches
                for batch in batches:
                    batch.step(group)
        self._batches = in_use
        return loss

    def _alike(self, params: list[Tensor]) -> list[tuple[Tensor, ...]]:
        """The parameters that have gradients, apart by device, dtype and number of steps taken."""
        alike: dict[tuple[torch.device, torch.dtype, int], list[Tensor]] = {}
        for param in params:
            if param.grad is None:
                continue
            if param.grad.layout != torch.strided:
                raise UserError(
                    f"AdamP needs dense gradients, but one is {param.grad.layout}; make its layer"
                    " with sparse=False"
                )
            state = self.state[param]
            if not state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(param)
                state["exp_avg_sq"] = torch.zeros_like(param)
            alike.setdefault((param.device, param.dtype, state["step"]), []).append(param)
        return [tuple(params) for params in alike.values()]


def _batches(params: Sequence[Tensor], states: Mapping[Tensor, dict[str, Any]]) -> list[_Batch]:
    """Parameters alike in device and dtype, cut into batches that share their scratch memory."""
    limit = CPU_BATCH if params[0].device.type == "cpu" else DEVICE_BATCH
    cut: list[list[Tensor]] = []
    size = 0
    for param in sorted(params, key=kind_of):
        size += param.numel()
        if not cut or size > limit or kind_of(param).weight != kind_of(cut[-1][0]).weight:
            cut.append([])
            size = param.numel()
        cut[-1].append(param)
    largest = max(sum(param.numel() for param in batch) for batch in cut)
    scratch = torch.empty(3, largest, dtype=params[0].dtype, device=params[0].device)
    return [_Batch(batch, [states[param] for param in batch], scratch) for batch in cut]


class _Batch:
    """Parameters updated together: alike in device, dtype, steps taken, and weights or vectors."""

    def __init__(self, params: list[Tensor], states: list[dict[str, Any]], scratch: Tensor) -> None:
        self.params = params
        self.states = states
        self.is_weights = kind_of(params[0]).weight
        self.kinds = list(dict.fromkeys(map(kind_of, params)))
        size = sum(param.numel() for param in params)
        self.exp_avg = FlatArray(scratch.new_empty(size), params)
        self.exp_avg_sq = FlatArray(scratch.new_empty(size), params)
        for name, array in (("exp_avg", self.exp_avg), ("exp_avg_sq", self.exp_avg_sq)):
            torch._foreach_copy_(array.parts, [state[name] for state in states])
            for state, part in zip(states, array.parts, strict=True):
                state[name] = part
        self.grad, self.update, self.work = (FlatArray(memory[:size], params) for memory in scratch)
        self.pairs = matrices_of(scratch[1:, :size], params)  # update and copied weights as one
        self.step_count = scratch.new_zeros((), dtype=torch.float32)
        self.sum_dtype = torch.promote_types(scratch.dtype, torch.float32)
        if self.is_weights:
            self._index_rows()

    def _index_rows(self) -> None:
        # Filled on the device: a copy of a list to it would wait for it.
        def filled(count: int, value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((count,), value, dtype=dtype, device=self.work.flat.device)

        self.rows = [len(matrix) for matrix in self.work.matrices]
        rows = [filled(len(w), w.numel() / len(w), self.sum_dtype) for w in self.params]
        whole = [filled(1, w.numel(), self.sum_dtype) for w in self.params]
        self.length_L = torch.cat([*rows, *whole])
        self.length_R = self.length_L[: -len(whole)]
        self.weight_R = torch.cat(
            [filled(len(w), index, torch.int64) for index, w in enumerate(self.params)]
        )

    def step(self, group: dict[str, Any]) -> None:
        """One step with the hyperparameters of a group."""
        steps = self.states[0]["step"] + 1
        for state in self.states:
            state["step"] = steps
        self.step_count.fill_(steps)
        torch._foreach_copy_(self.grad.parts, [p.grad for p in self.params if p.grad is not None])
        self._adam(group, steps)
        if self.is_weights:
            self._project(group)
        elif group["weight_decay"] > 0:
            torch._foreach_add_(self.update.parts, self.params, alpha=group["weight_decay"])
        torch._foreach_add_(self.params, self.update.parts, alpha=-group["lr"])

    def _adam(self, group: dict[str, Any], steps: int) -> None:
        """Take in the gradient and leave Adam's update of lr 1, in one pass over all elements.

        Torch's fused Adam moves a parameter along the first moment m; with Nesterov's it has to be
        b1 m + (1 - b1) g, which is m after a step with b1^2 from the same m before. So it takes
        that step, and m is got back from it.
        """
        beta1, beta2 = group["betas"]
        ahead = group["nesterov"] and beta1 > 0
        torch._fused_adam_(
            [self.update.flat.zero_()],
            [self.grad.flat],
            [self.exp_avg.flat],
            [self.exp_avg_sq.flat],
            [],
            [self.step_count],
            lr=-(1 - beta1 ** (2 * steps)) / (1 - beta1**steps) if ahead else -1.0,
            beta1=beta1**2 if ahead else beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
        if ahead:
            self.exp_avg.flat.lerp_(self.grad.flat, 1 - 1 / beta1)

    def _project(self, group: dict[str, Any]) -> None:
        """Take the part along the weight off the update's rows that pass; add weight decay."""
        params = self.work
        torch._foreach_copy_(params.parts, self.params)
        grad_squares_R = self._squares(self.grad)
        # Products take the gradient's place, which nothing needs later: a smaller working set.
        dots_R = self._products(self.grad, params)
        if group["gc"]:
            squares_R, centred_squares_R = self._centralize(group["gc_conv_only"])
        else:
            squares_R = centred_squares_R = self._squares(params)
        update_dots_R = self._products(self.update, params)
        sums_RS = torch.stack(
            [squares_R, grad_squares_R, dots_R, centred_squares_R, update_dots_R], dim=1
        )

        shares_R, projected_T = self._shares(sums_RS, group["delta"], group["eps"])
        decay = group["weight_decay"]
        if decay > 0:
            weaker_R = shares_R - decay * group["wd_ratio"]
            shares_R = torch.where(projected_T[self.weight_R], weaker_R, shares_R - decay)
        columns = shares_R.to(self.update.flat.dtype).unsqueeze(1).split_with_sizes(self.rows)
        matrices = zip(self.update.matrices, params.matrices, columns, strict=True)
        for update, param, share in matrices:
            update.addcmul_(param, share, value=-1)

    def _centralize(self, conv_only: bool) -> tuple[Tensor, Tensor]:
        """Take the row means off update and copied weights; the weights' squares before, after."""
        means = []
        for pair, kind in zip(self.pairs, self.kinds, strict=True):
            if kind.length > 1 and (kind.conv or not conv_only):
                means.append(pair.mean(2, keepdim=True, dtype=self.sum_dtype))
                pair.sub_(means[-1])
            else:
                means.append(pair.new_zeros(*pair.shape[:2], 1, dtype=self.sum_dtype))
        centred_squares_R = self._squares(self.work)
        # Adding the mean's part loses no digits; taking it off sums over raw elements would.
        mean_R = torch.cat(means, dim=1)[1].squeeze(1)
        squares_R = torch.addcmul(centred_squares_R, mean_R * self.length_R, mean_R)
        return squares_R, centred_squares_R

    def _shares(self, sums_RS: Tensor, delta: float, eps: float) -> tuple[Tensor, Tensor]:
        """What share of its weight each row's update has to lose, and which weights lose any."""
        rows, weights = len(sums_RS), len(self.params)
        sums_TS = sums_RS.new_zeros(weights, 5).index_add_(0, self.weight_R, sums_RS)
        sums_LS = torch.cat([sums_RS, sums_TS])
        squares_L, grad_squares_L, dots_L, centred_squares_L, update_dots_L = sums_LS.unbind(1)
        bounds_L = grad_squares_L.sqrt().clamp_min(eps) * squares_L.sqrt().clamp_min(eps)
        passes_L = dots_L.abs() / bounds_L < delta / self.length_L.sqrt()
        shares_L = update_dots_L / (centred_squares_L.sqrt() + eps) ** 2

        failures_R = passes_L[:rows].logical_not().to(sums_RS.dtype)
        by_row_T = sums_RS.new_zeros(weights).index_add_(0, self.weight_R, failures_R) == 0
        whole_passes_T = passes_L[rows:]
        whole_shares_T = torch.where(whole_passes_T, shares_L[rows:], 0)
        shares_R = torch.where(
            by_row_T[self.weight_R], shares_L[:rows], whole_shares_T[self.weight_R]
        )
        return shares_R, by_row_T | whole_passes_T

    def _squares(self, array: FlatArray) -> Tensor:
        norms = [
            torch.linalg.vector_norm(matrix, dim=1, dtype=self.sum_dtype)
            for matrix in array.matrices
        ]
        return torch.cat(norms).square()

    def _products(self, left: FlatArray, right: FlatArray) -> Tensor:
        torch.mul(left.flat, right.flat, out=self.grad.flat)
        return torch.cat([matrix.sum(1, dtype=self.sum_dtype) for matrix in self.grad.matrices])


def _check(group: dict[str, Any]) -> None:
    """Raises UserError for a group that AdamP cannot run with."""
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise UserError(f"betas must lie in [0, 1), but are {group['betas']}")
    if not 0 < group["eps"] < math.inf:
        raise UserError(f"eps must be above 0 and finite, but is {group['eps']}")
    for name in ("lr", "weight_decay", "delta", "wd_ratio"):
        if not 0 <= group[name] < math.inf:
            raise UserError(f"{name} must be at least 0 and finite, but is {group[name]}")
    for param in group["params"]:
        if param.is_complex() or param.layout != torch.strided:
            kind = f"{param.dtype} in layout {param.layout}"
            raise UserError(f"AdamP needs real, dense parameters, but one is {kind}; leave it out")
