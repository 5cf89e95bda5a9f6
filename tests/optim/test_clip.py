"""Clipped gradients against torch's and timm's functions, and the paper's rule."""

import math

import pytest
import torch
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn

from raymlc.labels import Head, Labels
from raymlc.model.network import Network
from raymlc.optim.clip import clip_gradients
from raymlc.trial import TrialConfig

HEADS = [Head(name, tuple("pqr"[:count])) for name, count in (("color", 3), ("a/b", 2), ("z", 2))]
MODES = ["norm", "value", "agc"]


class Kernels(nn.Module):
    """A backbone with weights of four dimensions, of two and of one, for gradients set by hand."""

    head_hidden_size = 8

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.layer = nn.Linear(4, 8)


def network_with_gradients(heads: int = 3, scale: float = 1.0) -> Network:
    """Weights of common size, some rows of zeros among them, and gradients of many sizes."""
    torch.manual_seed(0)
    network = Network(Kernels(), Labels(tuple(HEADS[:heads])), 0.0)
    with torch.no_grad():
        network.backbone.get_parameter("layer.weight")[:2] = 0
    for parameter in network.parameters():
        sizes = torch.logspace(-4, 2, len(parameter)).view(-1, *[1] * (parameter.dim() - 1))
        parameter.grad = scale * sizes * torch.randn(parameter.shape)
    return network


def gradients(network: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def assert_equal(first: list[Tensor], second: list[Tensor], exact: bool = True) -> None:
    tolerance = 0.0 if exact else 1e-5
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=0)


def config_of(mode: str, clip_grad: float) -> TrialConfig:
    return TrialConfig.from_dict({"clip_mode": mode, "clip_grad": clip_grad})


@pytest.mark.parametrize("mode", MODES)
def test_zero_clips_nothing(mode: str) -> None:
    network = network_with_gradients(scale=1e6)
    before = gradients(network)
    clip_gradients(config_of(mode, 0.0), network)
    assert_equal(gradients(network), before)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_below_the_bound_stay_as_they_are(mode: str) -> None:
    network = network_with_gradients(scale=1e-9)
    before = gradients(network)
    clip_gradients(config_of(mode, 1.0), network)
    assert_equal(gradients(network), before)


@pytest.mark.parametrize("most", [1e-3, 1.0, 50.0, 1e6])
def test_a_norm_is_that_of_all_parameters_together_as_torch_bounds_it(most: float) -> None:
    network = network_with_gradients()
    twin = network_with_gradients()
    norm = math.sqrt(sum(float(grad.square().sum()) for grad in gradients(network)))
    assert 50 < norm < 1e6
    clip_gradients(config_of("norm", most), network)
    nn.utils.clip_grad_norm_(twin.parameters(), most)
    assert_equal(gradients(network), gradients(twin), exact=False)
    clipped = math.sqrt(sum(float(grad.square().sum()) for grad in gradients(network)))
    assert clipped == pytest.approx(min(norm, most), rel=1e-4)


@pytest.mark.parametrize("most", [1e-3, 1.0, 50.0, 1e6])
def test_a_value_is_that_of_each_element_as_torch_bounds_it(most: float) -> None:
    network = network_with_gradients()
    before = gradients(network)
    twin = network_with_gradients()
    clip_gradients(config_of("value", most), network)
    nn.utils.clip_grad_value_(twin.parameters(), most)
    assert_equal(gradients(network), gradients(twin))
    assert_equal(gradients(network), [grad.clamp(-most, most) for grad in before])


def of_the_paper(parameter: Tensor, grad: Tensor, share: float) -> Tensor:
    """Each output unit's gradient, at most `share` of its weights' norm long (arXiv:2102.06171)."""
    units = [(parameter, grad)] if grad.dim() < 2 else zip(parameter, grad, strict=True)
    parts = []
    for weights, part in units:
        most = share * max(float(weights.norm()), 1e-3)
        norm = float(part.norm())
        parts.append(part * (most / norm) if norm > most else part)
    return parts[0] if grad.dim() < 2 else torch.stack(parts)


@pytest.mark.parametrize("share", [1e-3, 0.01, 1.0, 100.0])
def test_an_adaptive_bound_is_a_share_of_each_units_norm_as_paper_and_timm_have_it(
    share: float,
) -> None:
    network = network_with_gradients()
    twin = network_with_gradients().backbone
    before = gradients(network.backbone)
    clip_gradients(config_of("agc", share), network)
    adaptive_clip_grad(twin.parameters(), share)
    assert_equal(gradients(network.backbone), gradients(twin))
    pairs = zip(network.backbone.parameters(), before, strict=True)
    expected = [of_the_paper(parameter.detach(), grad, share) for parameter, grad in pairs]
    assert_equal(gradients(network.backbone), expected, exact=False)
    assert not torch.equal(before[0], expected[0])


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_an_adaptive_bound_spares_every_head_and_nothing_else(heads: int) -> None:
    network = network_with_gradients(heads, scale=1e6)
    before = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    clip_gradients(config_of("agc", 0.01), network)
    spared = set()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        if torch.equal(parameter.grad, before[name]):
            spared.add(name)
    assert spared == {
        f"heads.{head}.1.{kind}" for head in range(heads) for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("mode", MODES)
def test_a_frozen_backbone_without_gradients_is_passed_over(mode: str) -> None:
    network = network_with_gradients(scale=1e6)
    for parameter in network.backbone.parameters():
        parameter.grad = None
    before = gradients(network)
    clip_gradients(config_of(mode, 0.01), network)
    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    changed = [not torch.equal(*pair) for pair in zip(gradients(network), before, strict=True)]
    assert all(changed) if mode != "agc" else not any(changed)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_gradients_that_are_not_finite_are_left_to_the_loss_scaler(mode: str, value: float) -> None:
    network = network_with_gradients()
    first = next(network.parameters()).grad
    assert first is not None
    first[0] = value
    clip_gradients(config_of(mode, 0.01), network)  # raises nothing


@pytest.mark.parametrize("mode", MODES)
def test_no_value_is_read_back_to_the_host(mode: str) -> None:
    """Tensors on the meta device have no values to read: the first attempt raises."""
    meta = network_with_gradients().to("meta")
    for parameter in meta.parameters():
        parameter.grad = torch.empty_like(parameter)
    with pytest.raises(RuntimeError, match="item"):
        float(next(meta.parameters()).grad.sum())  # type: ignore[union-attr]
    clip_gradients(config_of(mode, 0.01), meta)
