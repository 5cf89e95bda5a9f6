"""Parameter groups, optimizers by name and the schedule. F features, K classes of a head."""

import math
from collections.abc import Sequence

import pytest
import torch
from timm.optim import list_optimizers, param_groups_weight_decay
from torch import Tensor, nn

from raymlc.errors import UserError
from raymlc.labels import Labels
from raymlc.model.network import Network, build_network
from raymlc.optim.adamp import AdamP
from raymlc.optim.build import build_optimizer, lr_factor, parameter_groups, set_lr
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


@pytest.mark.parametrize("optimizer", ["adamp", *OPTIMIZERS])
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


def test_an_optimizer_that_does_not_take_a_value_of_the_trial_is_refused() -> None:
    with pytest.raises(UserError, match="'sgd' does not take the trial's values: Nesterov"):
        build_optimizer(SMALL.replace({"optimizer": "sgd", "momentum": 0.0}), small_network())


@pytest.mark.parametrize(
    ("name", "near"), [("adamm", "'adam'"), ("adam_p", "adamp"), ("SGD", "list_optimizers")]
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
