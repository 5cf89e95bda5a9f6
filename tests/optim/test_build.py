"""Parameter groups, optimizers by name and the schedule. F features, K classes of a head."""

import copy
import io
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.optim import list_optimizers, param_groups_weight_decay
from torch import Tensor, nn

from raymlc.errors import UserError
from raymlc.labels import Labels
from raymlc.model.network import Network, build_network
from raymlc.optim.adamp import AdamP
from raymlc.optim.build import (
    build_optimizer,
    lr_factor,
    parameter_groups,
    plateau_decays,
    set_lr,
)
from raymlc.trial import TrialConfig

LABELS = Labels.learn({"color": ["red", "green", "blue"], "tags": ["a|b", "c|"]})
SMALL = TrialConfig(backbone="test_vit", pretrained=False, image_size=32)
OPTIMIZERS = [
    "adabelief",
    "adafactor",
    "adamw",
    "lamb",
    "lion",
    "muon",
    "nadamw",
    "radam",
    "rmsproptf",
    "sgd",
]
LOOKAHEADS = ["lookahead_adamp", "lookahead_adamw", "lookahead_sgd"]
SCHEDULES = ["cosine", "step", "plateau", "constant"]
# Without a GPU and the libraries of the first two kinds; and a trial has two betas, one derivative.
REFUSED = {
    name
    for name in list_optimizers()
    if name.startswith(("bnb", "fused")) or name.endswith(("adan", "adanw")) or "hessian" in name
}
COMPILED = "kron"  # by torch, which takes a minute or two; kronc and kronw are the same class


class Shift(nn.Module):
    """A bias of two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, 8))


class Linear(nn.Module):
    """A backbone of a weight, a bias, a bias of two dimensions and a listed parameter of two."""

    head_hidden_size = 8

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 8)
        self.shift = Shift()
        self.token = nn.Parameter(torch.ones(1, 8))

    def forward(self, images_BF: Tensor) -> Tensor:
        features_BF: Tensor = self.layer(images_BF) + self.shift.bias + self.token
        return features_BF

    def no_weight_decay(self) -> set[str]:
        return {"token"}


class Kernels(nn.Module):
    """A backbone with weights of four, three and two dimensions, for gradients that a test sets."""

    head_hidden_size = 8

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(2, 4, 3)
        self.line = nn.Conv1d(2, 4, 3)
        self.layer = nn.Linear(4, 8)
        self.norm = nn.BatchNorm2d(4)


def small_network() -> Network:
    torch.manual_seed(0)
    return Network(Linear(), LABELS, 0.0)


def step(network: Network, optimizer: torch.optim.Optimizer) -> None:
    generator = torch.Generator().manual_seed(1)
    optimizer.zero_grad()
    logits = network(torch.randn(6, 4, generator=generator))
    torch.autograd.backward([part.square().sum() for part in logits.values()])
    optimizer.step()


def ids(parameters: Sequence[Tensor]) -> set[int]:
    return {id(parameter) for parameter in parameters}


def decayed(network: Network, config: TrialConfig) -> set[int]:
    groups = parameter_groups(config, network)
    return ids([part for group in groups if group["weight_decay"] for part in group["params"]])


@pytest.mark.parametrize("backbone", ["test_vit", "test_efficientnet", "test_convnext"])
def test_the_groups_hold_every_parameter_once(backbone: str) -> None:
    network = build_network(SMALL.replace({"backbone": backbone}), LABELS)
    held = [part for group in parameter_groups(SMALL, network) for part in group["params"]]
    assert len(ids(held)) == len(held) == len(list(network.parameters()))
    assert ids(held) == ids(list(network.parameters()))


@pytest.mark.parametrize(
    "backbone",
    ["test_vit", "test_efficientnet", "test_convnext", "test_maxvit", "xcit_nano_12_p16_224"],
)
def test_weight_decay_spares_what_timm_spares_in_the_backbone_and_the_heads_biases(
    backbone: str,
) -> None:
    network = build_network(SMALL.replace({"backbone": backbone}), LABELS)
    listed: set[str] = getattr(network.backbone, "no_weight_decay", set)()
    timms = param_groups_weight_decay(network.backbone, 0.05, no_weight_decay_list=listed)
    expected = ids([part for group in timms if group["weight_decay"] for part in group["params"]])
    for name, parameter in network.heads.named_parameters():
        if name.endswith("weight"):
            expected.add(id(parameter))
    assert decayed(network, SMALL.replace({"weight_decay": 0.05})) == expected


def test_weight_decay_spares_a_bias_of_any_shape() -> None:
    network = small_network()
    weights = [part for name, part in network.named_parameters() if name.endswith("weight")]
    assert decayed(network, SMALL) == ids(weights)


def test_weight_decay_spares_each_name_that_the_backbone_lists() -> None:
    network = build_network(SMALL, LABELS)
    listed = network.backbone.no_weight_decay()  # type: ignore[operator]
    spared = [name for name, _ in network.backbone.named_parameters() if name in listed]
    assert spared
    names = dict(network.backbone.named_parameters())
    assert any(names[name].dim() > 1 for name in spared)
    assert not decayed(network, SMALL) & ids([names[name] for name in spared])


def test_a_frozen_parameter_is_in_no_group() -> None:
    network = small_network()
    network.backbone.layer.requires_grad_(False)
    held = [part for group in parameter_groups(SMALL, network) for part in group["params"]]
    assert ids(held) == ids([part for part in network.parameters() if part.requires_grad])
    assert len(held) == len(list(network.parameters())) - 2


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_only_the_heads_peak_lr_is_scaled(scale: float) -> None:
    network = small_network()
    config = SMALL.replace({"lr": 0.02, "head_lr_scale": scale})
    peaks = {
        id(part): group["peak_lr"]
        for group in build_optimizer(config, network).param_groups
        for part in group["params"]
    }
    for name, parameter in network.named_parameters():
        expected = 0.02 * scale if name.startswith("heads.") else 0.02
        assert peaks[id(parameter)] == pytest.approx(expected)


def test_set_lr_moves_each_group_to_its_share_of_its_peak() -> None:
    config = SMALL.replace({"lr": 0.02, "head_lr_scale": 3.0, "optimizer": "adamw"})
    optimizer = build_optimizer(config, small_network())
    for factor in (0.5, 0.1, 1.0):
        set_lr(optimizer, factor)
        assert {round(group["lr"], 12) for group in optimizer.param_groups} == {
            round(0.02 * factor, 12),
            round(0.06 * factor, 12),
        }


def test_parameters_beside_the_networks_train_at_the_trials_lr_without_weight_decay() -> None:
    network = small_network()
    others = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]
    config = SMALL.replace({"lr": 0.02, "head_lr_scale": 3.0, "optimizer": "sgd"})
    alone = build_optimizer(config, network).param_groups
    optimizer = build_optimizer(config, network, iter(others))
    *groups, last = optimizer.param_groups
    assert ids(last["params"]) == ids(others)
    assert (last["lr"], last["peak_lr"], last["weight_decay"]) == (0.02, 0.02, 0.0)
    assert [ids(group["params"]) for group in groups] == [ids(group["params"]) for group in alone]
    for other in others:
        other.grad = torch.ones_like(other)
    set_lr(optimizer, 0.5)
    optimizer.step()
    for other in others:  # Nesterov's first step is 1.9 gradients long
        torch.testing.assert_close(other.detach(), torch.full_like(other, 1 - 0.01 * 1.9))


@pytest.mark.parametrize(
    ("warmup_epochs", "step", "expected"),
    [
        (0.0, 0, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.25 / 10))),
        (0.0, 19, 0.1 + 0.9 * 0.5),
        (0.0, 39, 0.1),
        (2.5, 0, 0.25 / 2.5),
        (2.5, 4, 1.25 / 2.5),
        (2.5, 8, 2.25 / 2.5),
        (2.5, 9, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.25))),
        (2.5, 29, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.75))),
        (2.5, 39, 0.1),
        (0.1, 0, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.25 / 10))),
    ],
)
def test_the_lr_at_a_step_is_warm_up_and_then_cosine_over_all_epochs(
    warmup_epochs: float, step: int, expected: float
) -> None:
    """Ten epochs of four steps, down to a tenth."""
    config = TrialConfig(epochs=10, warmup_epochs=warmup_epochs, min_lr_ratio=0.1)
    assert lr_factor(config, step, 4) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.125), (6, 0.875), (7, 1.0), (39, 1.0)])
def test_the_lr_of_a_constant_schedule_stays_at_its_peak_after_warm_up(
    step: int, expected: float
) -> None:
    config = TrialConfig(epochs=10, warmup_epochs=2.0, schedule="constant", min_lr_ratio=0.1)
    assert lr_factor(config, step, 4) == expected


@pytest.mark.parametrize("epochs", [1, 3, 50])
@pytest.mark.parametrize("steps_per_epoch", [1, 7])
@pytest.mark.parametrize("warmup_share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("min_lr_ratio", [0.0, 0.01, 1.0])
def test_the_lr_rises_from_above_zero_to_at_most_its_peak_and_ends_at_its_least(
    epochs: int, steps_per_epoch: int, warmup_share: float, min_lr_ratio: float
) -> None:
    config = TrialConfig(
        epochs=epochs, warmup_epochs=warmup_share * epochs, min_lr_ratio=min_lr_ratio
    )
    factors = [lr_factor(config, step, steps_per_epoch) for step in range(epochs * steps_per_epoch)]
    assert factors[0] > 0 or (len(factors) == 1 and min_lr_ratio == 0)
    assert max(factors) <= 1
    assert factors[-1] == pytest.approx(min_lr_ratio, abs=1e-12)
    warm = [f for i, f in enumerate(factors) if (i + 1) / steps_per_epoch < config.warmup_epochs]
    assert warm == sorted(warm)
    assert factors[len(warm) :] == sorted(factors[len(warm) :], reverse=True)


def lr_of_2021(config: TrialConfig, t: float) -> float:
    """Warm-up and cosine by the formulas of the scripts of 2021, for a peak of 1; t in epochs."""
    start, least = config.warmup_lr_ratio, config.min_lr_ratio
    if t < config.warmup_epochs:
        return start + t * (1 - start) / config.warmup_epochs
    length = config.epochs - config.cooldown_epochs
    if t >= length:
        return least
    return least + 0.5 * (1 - least) * (1 + math.cos(math.pi * t / length))


@st.composite
def schedules(draw: st.DrawFn) -> tuple[TrialConfig, int]:
    """A trial of any schedule, and its steps an epoch."""
    epochs = draw(st.integers(1, 12))
    cooldown = draw(st.floats(0, epochs * 0.9))
    config = TrialConfig(
        epochs=epochs,
        cooldown_epochs=cooldown,
        warmup_epochs=draw(st.floats(0, epochs - cooldown, exclude_max=True)),
        warmup_lr_ratio=draw(st.floats(0, 1)),
        min_lr_ratio=draw(st.floats(0, 1)),
        schedule=draw(st.sampled_from(SCHEDULES)),
        decay_epochs=draw(st.floats(0.1, 5)),
        decay_rate=draw(st.floats(0.01, 0.99)),
    )
    return config, draw(st.integers(1, 9))


@given(schedules())
def test_a_cosine_with_warm_up_and_cooldown_is_that_of_2021_at_each_step(
    drawn: tuple[TrialConfig, int],
) -> None:
    config, steps = drawn[0].replace({"schedule": "cosine"}), drawn[1]
    for step in range(config.epochs * steps):
        expected = lr_of_2021(config, (step + 1) / steps)
        assert lr_factor(config, step, steps) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert lr_factor(config, config.epochs * steps - 1, steps) == config.min_lr_ratio


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.2 + 0.8 * 0.25 / 2),
        (6, 0.2 + 0.8 * 1.75 / 2),
        (7, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 2 / 8))),
        (15, 0.1 + 0.9 * 0.5),
        (31, 0.1),
        (32, 0.1),
        (39, 0.1),
    ],
)
def test_a_cosine_ends_where_its_cooldown_begins_and_a_warm_up_starts_from_its_ratio(
    step: int, expected: float
) -> None:
    """Ten epochs of four steps, the last two of them cooldown."""
    config = TrialConfig(
        epochs=10, warmup_epochs=2, warmup_lr_ratio=0.2, cooldown_epochs=2, min_lr_ratio=0.1
    )
    assert lr_factor(config, step, 4) == pytest.approx(expected, rel=1e-12)


@given(schedules(), st.integers(0, 9))
def test_no_schedule_leaves_its_bounds_nor_rises_after_warm_up(
    drawn: tuple[TrialConfig, int], decays: int
) -> None:
    config, steps = drawn
    factors = [lr_factor(config, step, steps, decays) for step in range(config.epochs * steps)]
    warm = sum((step + 1) / steps < config.warmup_epochs for step in range(len(factors)))
    assert all(config.warmup_lr_ratio <= factor <= 1 + 1e-9 for factor in factors[:warm])
    assert factors[:warm] == sorted(factors[:warm])
    assert all(config.min_lr_ratio <= factor <= 1 + 1e-9 for factor in factors[warm:])
    for before, after in zip(factors[warm:], factors[warm + 1 :], strict=False):
        assert after <= before + 1e-12


@pytest.mark.parametrize("min_lr_ratio", [0.0, 0.3])
@pytest.mark.parametrize("decay_epochs", [1, 2, 5])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_lr_of_steps_is_that_of_torchs_scheduler_down_to_its_least(
    steps: int, decay_epochs: int, min_lr_ratio: float
) -> None:
    config = TrialConfig(
        epochs=12,
        warmup_epochs=0,
        schedule="step",
        decay_epochs=decay_epochs,
        decay_rate=0.7,
        min_lr_ratio=min_lr_ratio,
    )
    reference = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(reference, decay_epochs, gamma=0.7)
    for epoch in range(12):
        expected = max(reference.param_groups[0]["lr"], min_lr_ratio)
        for step in range(epoch * steps, (epoch + 1) * steps):
            assert lr_factor(config, step, steps, decays=3) == pytest.approx(expected, rel=1e-12)
        reference.step()
        scheduler.step()


@given(st.integers(1, 997), st.integers(1, 50), st.integers(0, 50_000))
def test_a_decay_after_a_fraction_of_an_epoch_is_due_at_its_exact_step(
    steps: int, tenths: int, step: int
) -> None:
    """Above all at the steps at which a decay is due, that rounding errors lie about."""
    config = TrialConfig(
        warmup_epochs=0, schedule="step", decay_epochs=tenths / 10, decay_rate=0.999, min_lr_ratio=0
    )
    period = Fraction(steps * tenths, 10)
    due = math.ceil(period * (step % 100))
    for at in (step, due, due + 1, max(due - 1, 0)):
        expected = 0.999 ** math.floor(at / period)
        assert lr_factor(config, at, steps) == pytest.approx(expected, rel=1e-9, abs=0)


edges = [math.nan, math.inf, -math.inf, 0.0, 1.0, 1 - 1e-4, 1 - 1.1e-4, 0.5, -1.0, -1 + 1e-4, -2.0]


@given(
    st.lists(st.sampled_from(edges) | st.floats(0, 2), max_size=40),
    st.integers(0, 4),
    st.sampled_from([0.0, 0.2]),
)
def test_the_lr_of_plateaus_is_that_of_torchs_scheduler_down_to_its_least(
    losses: list[float], patience: int, min_lr_ratio: float
) -> None:
    config = TrialConfig(
        warmup_epochs=0,
        schedule="plateau",
        decay_rate=0.5,
        patience_epochs=patience,
        min_lr_ratio=min_lr_ratio,
    )
    reference = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        reference, factor=0.5, patience=patience, min_lr=min_lr_ratio, eps=0
    )
    for epoch in range(len(losses) + 1):
        decays = plateau_decays(losses[:epoch], config.patience_epochs)
        assert lr_factor(config, epoch, 1, decays) == reference.param_groups[0]["lr"]
        if epoch < len(losses):
            scheduler.step(losses[epoch])


@pytest.mark.parametrize(
    ("losses", "patience", "decays"),
    [
        ([], 0, 0),
        ([1.0], 0, 0),
        ([1.0, 1.0], 0, 1),
        ([1.0, 0.9, 0.8], 0, 0),
        ([1.0, 0.99995], 0, 1),
        ([1.0, 0.9998], 0, 0),
        ([1.0, 1.0, 1.0], 2, 0),
        ([1.0, 1.0, 1.0, 1.0], 2, 1),
        ([1.0, 1.0, 1.0, 0.5, 0.6, 0.6], 2, 0),
        ([1.0] + 6 * [2.0], 2, 2),
        ([math.nan, math.nan], 1, 1),
    ],
)
def test_a_plateau_is_met_after_more_epochs_than_its_patience(
    losses: list[float], patience: int, decays: int
) -> None:
    assert plateau_decays(losses, patience) == decays


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_plateaus_change_no_other_schedule(schedule: str) -> None:
    config = TrialConfig(schedule=schedule)  # type: ignore[arg-type]
    for step in range(40):
        assert lr_factor(config, step, 4, decays=5) == lr_factor(config, step, 4)


def kernels() -> Network:
    torch.manual_seed(0)
    return Network(Kernels(), LABELS, 0.0).double()


def random_step(network: Network, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """A step from random gradients, without a call of zero_grad."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    optimizer.step()


def centralized(grad: Tensor, least: int) -> Tensor:
    if grad.dim() < least:
        return grad
    return torch.stack([row - row.mean() for row in grad])


# Before every test that steps a lookahead by other ways: its class changes at its first zero_grad.
@pytest.mark.parametrize("conv_only", [False, True])
@pytest.mark.parametrize("optimizer", ["lookahead_adamw", "lookahead_sgd", *OPTIMIZERS])
def test_centralization_of_any_other_optimizer_than_adamp_is_that_of_its_gradients(
    optimizer: str, conv_only: bool
) -> None:
    config = SMALL.replace({"optimizer": optimizer, "gc_conv_only": conv_only, "lr": 0.01})
    network, twin, plain = kernels(), kernels(), kernels()
    ours = build_optimizer(config.replace({"gc": True}), network)
    reference = build_optimizer(config, twin)
    without = build_optimizer(config, plain)
    for seed in range(14):
        generator = torch.Generator().manual_seed(seed)
        for parameter in twin.parameters():
            grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.grad = centralized(grad, 4 if conv_only else 2)
        reference.step()
        random_step(network, ours, seed)
        random_step(plain, without, seed)
        if seed in (0, 13):
            trio = zip(network.parameters(), twin.parameters(), plain.parameters(), strict=True)
            for one, other, third in trio:
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
                if optimizer == "sgd":  # the others have norms over parameters, signs or moments
                    changes = one.dim() >= (4 if conv_only else 2)
                    assert torch.equal(one, third) != changes


@pytest.mark.parametrize("conv_only", [False, True])
def test_a_centralized_update_has_rows_of_mean_zero_and_leaves_biases(conv_only: bool) -> None:
    config = SMALL.replace({"optimizer": "sgd", "gc_conv_only": conv_only, "weight_decay": 0.0})
    updates = []
    for gc in (False, True):
        network = kernels()
        before = {name: part.detach().clone() for name, part in network.named_parameters()}
        random_step(network, build_optimizer(config.replace({"gc": gc}), network), seed=0)
        updates.append({n: p.detach() - before[n] for n, p in network.named_parameters()})
    plain, ours = updates
    for name, update in ours.items():
        means = update.flatten(1).mean(1) if update.dim() > 1 else update
        if update.dim() > (3 if conv_only else 1):
            assert means.abs().max() < 1e-15
            assert plain[name].flatten(1).mean(1).abs().max() > 1e-4
        else:
            assert torch.equal(update, plain[name])


@pytest.mark.parametrize("conv_only", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", *LOOKAHEADS])
def test_centralization_is_in_the_groups_and_so_in_checkpoints(
    optimizer: str, conv_only: bool
) -> None:
    config = SMALL.replace({"optimizer": optimizer, "gc": True, "gc_conv_only": conv_only})
    others = [nn.Parameter(torch.ones(3))]
    built = build_optimizer(config, small_network(), others)
    for groups in (built.param_groups, built.state_dict()["param_groups"]):
        assert len(groups) == 5
        assert all((group["gc"], group["gc_conv_only"]) == (True, conv_only) for group in groups)


@pytest.mark.parametrize("gc", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", *LOOKAHEADS])
def test_an_optimizer_goes_on_from_its_state_as_if_never_stopped(optimizer: str, gc: bool) -> None:
    config = SMALL.replace({"optimizer": optimizer, "gc": gc})
    network, resumed = kernels(), kernels()
    built, other = build_optimizer(config, network), build_optimizer(config, resumed)
    set_lr(built, 0.5)
    for seed in range(8):
        random_step(network, built, seed)
    file = io.BytesIO()
    torch.save({"network": network.state_dict(), "optimizer": built.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed.load_state_dict(state["network"])
    other.load_state_dict(state["optimizer"])
    for seed in range(8, 20):
        for model, optimizer_ in ((network, built), (resumed, other)):
            set_lr(optimizer_, 1 - seed / 20)
            random_step(model, optimizer_, seed)
    for one, twin in zip(network.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, twin)


@pytest.mark.parametrize("optimizer", LOOKAHEADS)
def test_a_lookahead_goes_half_the_way_of_its_optimizer_every_sixth_step(optimizer: str) -> None:
    config = SMALL.replace({"optimizer": optimizer, "lr": 0.01})
    name = optimizer.removeprefix("lookahead_")
    network, twin = kernels(), kernels()
    built = build_optimizer(config, network)
    inner = build_optimizer(config.replace({"optimizer": name}), twin)
    slow: list[Tensor] = []
    for seed in range(20):
        random_step(network, built, seed)
        random_step(twin, inner, seed)
        if (seed + 1) % 6 == 0:  # timm's first look ahead only remembers the weights
            fast = [parameter.detach().clone() for parameter in twin.parameters()]
            slow = [a + (b - a) / 2 for a, b in zip(slow or fast, fast, strict=True)]
            with torch.no_grad():
                torch._foreach_copy_(list(twin.parameters()), slow)
        for one, other in zip(network.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert built.param_groups[0]["lookahead_step"] == 20


@pytest.mark.parametrize("optimizer", ["adamp", "sgd", "adamw", *LOOKAHEADS])
def test_a_centralized_step_never_reads_a_value_back_to_the_host(optimizer: str) -> None:
    """Tensors on the meta device have no values to read: the first attempt raises.

    timm's AdamP does, so that the one inside a lookahead is raymlc's, too.
    """
    config = SMALL.replace({"optimizer": optimizer, "gc": True})
    network = copy.deepcopy(kernels()).to("meta")
    built = build_optimizer(config, network)
    for parameter in network.parameters():
        parameter.grad = torch.empty_like(parameter)
    for _ in range(7):
        built.step()
    states: dict[str, Any] = built.state_dict()["state"]
    assert len(states) == len(list(network.parameters()))


@pytest.mark.parametrize("optimizer", ["adamp", *LOOKAHEADS, *OPTIMIZERS])
def test_each_of_these_optimizers_lowers_the_loss_of_every_head(optimizer: str) -> None:
    network = small_network()
    built = build_optimizer(SMALL.replace({"optimizer": optimizer, "lr": 1e-3}), network)
    images_BF = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    before = {head: part.square().sum() for head, part in network(images_BF).items()}
    weights = [parameter.detach().clone() for parameter in network.parameters()]
    for _ in range(5):
        step(network, built)
    for head, part in network(images_BF).items():
        assert part.square().sum() < before[head]
    for weight, parameter in zip(weights, network.parameters(), strict=True):
        assert not torch.equal(weight, parameter)


@pytest.mark.filterwarnings("ignore:.*opt_einsum")
@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(name, marks=pytest.mark.slow if name == COMPILED else ())
        for name in list_optimizers()
        if name not in REFUSED | {COMPILED + "c", COMPILED + "w"}
    ],
)
def test_every_optimizer_that_timm_names_takes_steps_to_finite_weights(optimizer: str) -> None:
    network = small_network()
    weights = [parameter.detach().clone() for parameter in network.parameters()]
    built = build_optimizer(SMALL.replace({"optimizer": optimizer}), network)
    for _ in range(2):
        step(network, built)
    moved = [
        not torch.equal(weight, parameter)
        for weight, parameter in zip(weights, network.parameters(), strict=True)
    ]
    assert all(moved)
    assert all(parameter.isfinite().all() for parameter in network.parameters())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can run some of them")
@pytest.mark.parametrize("optimizer", sorted(REFUSED))
def test_an_optimizer_that_a_trial_cannot_run_is_refused_before_training(optimizer: str) -> None:
    with pytest.raises(UserError, match=f"optimizer '{optimizer}' needs ") as error:
        build_optimizer(SMALL.replace({"optimizer": optimizer}), small_network())
    assert "\n" not in str(error.value)


def test_a_lookahead_around_an_optimizer_that_a_trial_cannot_run_is_refused() -> None:
    with pytest.raises(UserError, match="optimizer 'adahessian' needs second derivatives"):
        build_optimizer(SMALL.replace({"optimizer": "lookahead_adahessian"}), small_network())


def test_an_optimizer_that_does_not_take_a_value_of_the_trial_is_refused() -> None:
    with pytest.raises(UserError, match="'sgd' does not take the trial's values: Nesterov"):
        build_optimizer(SMALL.replace({"optimizer": "sgd", "momentum": 0.0}), small_network())


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("adamm", "'adam'"),
        ("adam_p", "adamp"),
        ("SGD", "list_optimizers"),
        ("lookahead_adamww", "'adamw'"),
        ("lookahead_lookahead_adamw", "list_optimizers"),
        ("lookahead_", "list_optimizers"),
        ("lookaheadadamw", "list_optimizers"),
        ("", "list_optimizers"),
    ],
)
def test_an_unknown_optimizer_is_refused_with_near_names(name: str, near: str) -> None:
    with pytest.raises(UserError, match="optimizer must be one of timm's") as error:
        build_optimizer(SMALL.replace({"optimizer": name}), small_network())
    assert near in str(error.value)
    assert "\n" not in str(error.value)


def test_the_trials_values_are_in_the_groups_and_so_in_checkpoints() -> None:
    values = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-5, "weight_decay": 0.3, "lr": 0.03}
    for optimizer in ("adamp", "adamw"):
        config = SMALL.replace({**values, "optimizer": optimizer})
        for group in build_optimizer(config, small_network()).state_dict()["param_groups"]:
            assert group["betas"] == (0.8, 0.95)
            assert group["eps"] == 1e-5
            assert group["lr"] == group["peak_lr"] == 0.03
            assert group["weight_decay"] in (0.3, 0.0)
    sgd = build_optimizer(SMALL.replace({"optimizer": "sgd", "momentum": 0.7}), small_network())
    assert all(group["momentum"] == 0.7 for group in sgd.param_groups)


@pytest.mark.parametrize(("gc", "conv_only"), [(False, False), (True, False), (True, True)])
def test_adamp_is_ours_with_the_trials_centralization(gc: bool, conv_only: bool) -> None:
    config = SMALL.replace({"gc": gc, "gc_conv_only": conv_only})
    optimizer = build_optimizer(config, small_network())
    assert type(optimizer) is AdamP
    for group in optimizer.param_groups:
        assert (group["gc"], group["gc_conv_only"]) == (gc, conv_only)
