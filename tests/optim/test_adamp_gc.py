"""AdamP's centralized updates against their formulas. R rows, D their length."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raymlc.optim.adamp import AdamP

BETA1, BETA2, EPS = 0.9, 0.999, 1e-3
SHAPES = [
    (3,), (1, 6), (6, 1), (5, 6), (3, 6), (4, 3, 2), (4, 2, 3, 3), (6, 1, 3, 3), (5, 1, 1, 1),
    (2, 2, 2, 2, 2),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights_of(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    """Random weights whose rows have means about as large as their deviations."""
    generator = torch.Generator().manual_seed(1)
    return [
        nn.Parameter((1 + torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype))
        for shape in shapes
    ]


def random_grads(params: Sequence[Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        noise = torch.randn(param.shape, generator=generator, dtype=param.dtype)
        param.grad = 0.3 + noise


def copied(params: Sequence[Tensor]) -> list[Tensor]:
    return [nn.Parameter(param.detach().clone()) for param in params]


def is_centralized(param: Tensor, conv_only: bool) -> bool:
    return param.ndim > (3 if conv_only else 1) and param.numel() > len(param)


def row_means(weight: Tensor) -> Tensor:
    return weight.detach().double().flatten(1).mean(1)


class Plain:
    """AdamP with centralized updates on one parameter, as the formulas have it."""

    def __init__(self, param: Tensor, gc: bool, wd_ratio: float, nesterov: bool) -> None:
        self.weight = param.detach().clone()
        self.gc, self.wd_ratio, self.nesterov = gc, wd_ratio, nesterov
        self.first, self.second = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
        self.steps = 0

    def step(self, grad: Tensor, lr: float, weight_decay: float, delta: float) -> str:
        """Returns the view that was projected: "rows", "whole" or "none"."""
        self.steps += 1
        self.first = BETA1 * self.first + (1 - BETA1) * grad
        self.second = BETA2 * self.second + (1 - BETA2) * grad**2
        first = BETA1 * self.first + (1 - BETA1) * grad if self.nesterov else self.first
        rms = (self.second / (1 - BETA2**self.steps)).sqrt()
        p, w = first / (1 - BETA1**self.steps) / (rms + EPS), self.weight
        if self.gc:
            p, w = (torch.stack([row - row.mean() for row in tensor]) for tensor in (p, w))
        projected = "none"
        for view, rows in (("rows", len(grad)), ("whole", 1)) if grad.ndim > 1 else ():
            g_RD, raw_RD = grad.reshape(rows, -1), self.weight.reshape(rows, -1)
            cosines_R = (g_RD * raw_RD).sum(1) / g_RD.norm(dim=1) / raw_RD.norm(dim=1)
            if bool((cosines_R.abs() < delta / g_RD.shape[1] ** 0.5).all()):
                p_RD, w_RD = p.reshape(rows, -1), w.reshape(rows, -1)
                share_R = (p_RD * w_RD).sum(1) / (w_RD.norm(dim=1) + EPS) ** 2
                p = (p_RD - share_R[:, None] * w_RD).reshape(grad.shape)
                weight_decay *= self.wd_ratio
                projected = view
                break
        self.weight = self.weight - lr * (p + weight_decay * w)
        return projected


@pytest.mark.parametrize(("wd_ratio", "nesterov"), [(0.01, True), (0.1, False)])
@pytest.mark.parametrize("conv_only", [False, True])
def test_200_steps_agree_with_the_formulas(
    conv_only: bool, wd_ratio: float, nesterov: bool
) -> None:
    params = weights_of(SHAPES, torch.float64)
    plain = [Plain(p, is_centralized(p, conv_only), wd_ratio, nesterov) for p in params]
    optimizer = AdamP(
        params,
        lr=0.01,
        eps=EPS,
        weight_decay=0.1,
        delta=0.9,
        wd_ratio=wd_ratio,
        nesterov=nesterov,
        gc=True,
        gc_conv_only=conv_only,
    )
    views = set()
    for seed in range(200):
        random_grads(params, seed)
        for param, reference in zip(params, plain, strict=True):
            assert param.grad is not None
            view = reference.step(param.grad, lr=0.01, weight_decay=0.1, delta=0.9)
            if reference.gc:
                views.add(view)
        optimizer.step()
    assert views == {"rows", "whole", "none"}
    for param, reference in zip(params, plain, strict=True):
        torch.testing.assert_close(param.detach(), reference.weight, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("conv_only", [False, True])
def test_moments_see_the_gradient_as_it_is_and_grad_stays(conv_only: bool) -> None:
    params = weights_of(SHAPES, torch.float32)
    twins = copied(params)
    optimizer = AdamP(params, gc=True, gc_conv_only=conv_only)
    without = AdamP(twins)
    for seed in range(3):
        random_grads(params, seed)
        random_grads(twins, seed)
        optimizer.step()
        without.step()
    for param, twin in zip(params, twins, strict=True):
        assert param.grad is not None
        assert twin.grad is not None
        assert torch.equal(param.grad, twin.grad)
        assert torch.equal(param, twin) != is_centralized(param, conv_only)
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[param][name], without.state[twin][name])


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize("delta", [0.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_an_update_have_no_mean_and_projected_ones_are_orthogonal_to_the_weight(
    dtype: torch.dtype, delta: float, weight_decay: float
) -> None:
    """delta projects all weights or none; lr 1 keeps rounding out of the update."""
    params = weights_of([(6, 40), (8, 4, 3, 3), (8, 1, 7, 7), (4, 1500)], dtype)
    optimizer = AdamP(params, lr=1.0, delta=delta, weight_decay=weight_decay, gc=True)
    for seed in range(5):
        before = [param.detach().clone() for param in params]
        random_grads(params, seed)
        optimizer.step()
        for param, weight in zip(params, before, strict=True):
            weight_RD = weight.flatten(1).double()
            centred_RD = weight_RD - weight_RD.mean(1, keepdim=True)
            update_RD = param.detach().flatten(1).double() - weight_RD
            norms_R = update_RD.norm(dim=1)
            assert (update_RD.mean(1) / norms_R).abs().max() < 1e-6 / weight_RD.shape[1] ** 0.5
            for along_RD in (weight_RD, centred_RD):
                dots_R = (update_RD * along_RD).sum(1)
                cosines_R = dots_R / (norms_R * along_RD.norm(dim=1))
                orthogonal = bool(delta) and not weight_decay
                assert bool((cosines_R.abs() < 1e-6).all()) == orthogonal


@pytest.mark.parametrize("conv_only", [False, True])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 3e-6), (torch.float64, 1e-14)])
def test_a_row_keeps_its_mean_for_ever_under_weight_decay(
    dtype: torch.dtype, most: float, conv_only: bool
) -> None:
    params = weights_of(SHAPES[1:], dtype)
    before = copied(params)
    optimizer = AdamP(params, lr=0.02, weight_decay=0.5, gc=True, gc_conv_only=conv_only)
    for seed in range(100):
        random_grads(params, seed)
        optimizer.step()
    for param, old in zip(params, before, strict=True):
        drift_R = (row_means(param) - row_means(old)).abs()
        assert (param - old).abs().max() > 0.1
        if is_centralized(param, conv_only):
            assert drift_R.max() < most
        else:
            assert drift_R.min() > 1e-3


@pytest.mark.parametrize(
    ("shapes", "conv_only"),
    [
        ([(5,), (0, 3), (6, 1), (5, 1, 1), (5, 1, 1, 1)], False),
        ([(5,), (4, 6), (4, 3, 2), (6, 1), (5, 1, 1, 1)], True),
    ],
)
def test_where_gc_has_nothing_to_centralize_it_changes_no_bit(
    shapes: Sequence[tuple[int, ...]], conv_only: bool
) -> None:
    """Rows of one element are their own mean: they train on, and do not freeze."""
    params = weights_of(shapes, torch.float32)
    twins, before = copied(params), copied(params)
    optimizers = [
        AdamP(params, weight_decay=0.1, gc=True, gc_conv_only=conv_only),
        AdamP(twins, weight_decay=0.1),
    ]
    for seed in range(5):
        random_grads(params, seed)
        random_grads(twins, seed)
        for optimizer in optimizers:
            optimizer.step()
    for param, twin, old in zip(params, twins, before, strict=True):
        assert torch.equal(param, twin)
        assert not param.numel() or not torch.equal(param, old)


def test_each_group_is_centralized_as_it_says_from_the_step_that_it_says_so() -> None:
    centralized, plain, switched = (
        weights_of([(5, 6), (4, 2, 3, 3)], torch.float64) for _ in "abc"
    )
    before = [row_means(weight) for weight in centralized]
    groups: list[dict[str, Any]] = [
        {"params": centralized, "gc": True},
        {"params": plain},
        {"params": switched, "gc": True, "gc_conv_only": True},
    ]
    optimizer = AdamP(groups, lr=0.01)
    for seed in range(4):
        optimizer.param_groups[2]["gc"] = seed != 1
        for params in (centralized, plain, switched):
            random_grads(params, seed)
        moving = [row_means(weight) for weight in switched]
        optimizer.step()
        stays = [
            torch.allclose(row_means(weight), old, rtol=0, atol=1e-14)
            for weight, old in zip(switched, moving, strict=True)
        ]
        assert stays == [False, seed != 1]
    for weight, other, old in zip(centralized, plain, before, strict=True):
        assert torch.allclose(row_means(weight), old, rtol=0, atol=1e-14)
        assert (row_means(other) - old).abs().min() > 1e-5
