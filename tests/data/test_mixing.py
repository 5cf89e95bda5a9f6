"""A batch is mixed with itself, alike by all workers of a step.

Shapes: B images, C channels, H and W pixels, N steps.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from timm.data.mixup import cutmix_bbox_and_lam
from torch import Tensor

from raymlc.data.mixing import mix_
from raymlc.trial import TrialConfig

Samples = NDArray[np.float64]
SIZE = (12, 20)


def images(batch: int, size: tuple[int, int] = SIZE) -> Tensor:
    images_BCHW = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))
    return images_BCHW.contiguous(memory_format=torch.channels_last)


def mixed(batch: int = 4, epoch: int = 0, step: int = 0, **fields: Any) -> tuple[Tensor, float]:
    """A batch after `mix_`, and its share."""
    images_BCHW = images(batch)
    share = mix_(images_BCHW, TrialConfig(**fields), epoch, step)
    return images_BCHW, share


def shares(steps: int, **fields: Any) -> Samples:
    config = TrialConfig(**fields)
    return np.array([mix_(images(2), config, 0, step) for step in range(steps)])


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("step", range(5))
def test_mixup_blends_each_image_with_its_partner_from_the_end(batch: int, step: int) -> None:
    mixed_BCHW, share = mixed(batch, step=step, mixup_alpha=0.7)
    assert 0 < share < 1
    before_BCHW = images(batch)
    expected_BCHW = share * before_BCHW + (1 - share) * before_BCHW.flip(0)
    torch.testing.assert_close(mixed_BCHW, expected_BCHW)


@pytest.mark.parametrize("batch", [2, 6])
@pytest.mark.parametrize("step", range(30))
def test_cutmix_pastes_a_rectangle_of_the_partner_of_exactly_the_rest(
    batch: int, step: int
) -> None:
    mixed_BCHW, share = mixed(batch, step=step, cutmix_alpha=1.0)
    before_BCHW = images(batch)
    own_BCHW, partner_BCHW = mixed_BCHW == before_BCHW, mixed_BCHW == before_BCHW.flip(0)
    assert (own_BCHW | partner_BCHW).all()
    pasted_HW = partner_BCHW[0, 0]
    assert (partner_BCHW == pasted_HW).all()
    assert pasted_HW.sum() == round((1 - share) * math.prod(SIZE))
    assert abs(pasted_HW.double().mean() - (1 - share)) < 1e-9
    rows_H, columns_W = pasted_HW.any(1), pasted_HW.any(0)
    assert torch.equal(pasted_HW, rows_H[:, None] & columns_W)
    for line in (rows_H, columns_W):
        assert np.abs(np.diff(np.pad(line.int(), 1))).sum() in (0, 2)


def test_cutmixs_shares_are_timms(
    assert_one_distribution: Callable[[Samples, Samples], None],
) -> None:
    rng = np.random.default_rng(0)
    np.random.seed(0)
    theirs_N = np.array([cutmix_bbox_and_lam(SIZE, rng.beta(1, 1))[1] for _ in range(2000)])
    assert_one_distribution(shares(2000, cutmix_alpha=1.0), theirs_N)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_mixups_shares_are_beta(
    assert_one_distribution: Callable[[Samples, Samples], None], alpha: float
) -> None:
    theirs_N = np.random.default_rng(0).beta(alpha, alpha, 5000)
    assert_one_distribution(shares(2000, mixup_alpha=alpha), theirs_N)


def test_with_both_half_of_the_mixed_batches_are_of_each_kind() -> None:
    kinds = []
    for step in range(600):
        mixed_BCHW, share = mixed(step=step, mixup_alpha=1.0, cutmix_alpha=1.0)
        before_BCHW = images(4)
        pasted = ((mixed_BCHW == before_BCHW) | (mixed_BCHW == before_BCHW.flip(0))).all()
        kinds.append(bool(pasted))
        assert share < 1 or pasted
    assert abs(np.mean(kinds) - 0.5) < 4 * math.sqrt(0.25 / 600)


@pytest.mark.parametrize("prob", [0.0, 0.3, 1.0])
def test_the_share_of_mixed_batches_is_the_asked_one(prob: float) -> None:
    found = (shares(600, mixup_alpha=1.0, mix_prob=prob) < 1).mean()
    assert abs(found - prob) <= 4 * math.sqrt(prob * (1 - prob) / 600)


@pytest.mark.parametrize(
    "fields",
    [{}, {"mixup_alpha": 1.0, "mix_prob": 0.0}, {"cutmix_alpha": 1.0, "mix_off_epochs": 10}],
)
def test_a_batch_that_is_not_mixed_stays(fields: dict[str, Any]) -> None:
    mixed_BCHW, share = mixed(**fields)
    assert share == 1.0
    assert torch.equal(mixed_BCHW, images(4))


@pytest.mark.parametrize(("off", "epochs"), [(0, 6), (2, 4), (6, 0)])
def test_the_last_epochs_are_not_mixed(off: int, epochs: int) -> None:
    mixes = [
        mixed(epoch=epoch, mixup_alpha=1.0, mix_off_epochs=off, epochs=6)[1] < 1
        for epoch in range(6)
    ]
    assert mixes == [True] * epochs + [False] * (6 - epochs)


@pytest.mark.parametrize("fields", [{"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}])
def test_all_workers_of_a_step_mix_alike_whatever_else_they_drew(fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    first_BCHW, first = mixed(step=3, **fields)
    torch.manual_seed(1)
    torch.rand(5)
    second_BCHW, second = mixed(step=3, lr=0.5, **fields)
    assert first == second
    assert torch.equal(first_BCHW, second_BCHW)


def test_seed_epoch_and_step_each_change_the_share() -> None:
    found = {
        mixed(epoch=epoch, step=step, mixup_alpha=1.0, seed=seed)[1]
        for seed in range(3)
        for epoch in range(3)
        for step in range(3)
    }
    assert len(found) == 27
